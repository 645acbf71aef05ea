"""What a machine is, for the planner: from a data sheet, or measured here in a few seconds.

Measured are the very operations that decoding consists of: a dense product, experts in the form in
which they lie in their slots, bringing experts there with as many threads as the store has, the
disk, and layers with next to no feed-forward part. Other programs on the machine are measured
along.
"""

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from k2lab.engine.generate import reader
from k2lab.engine.taps import untouched
from k2lab.engine.threads import alone, small
from k2lab.errors import InputError
from k2lab.evals.disk import disk_rate, evict
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.synthetic import write_synthetic
from k2lab.spec.amounts import nbytes
from k2lab.spec.config import K2Config
from k2lab.spec.costs import bytes_on_disk, parameters
from k2lab.spec.keys import TensorSpec, tensors
from k2lab.tensors.int4 import GROUP
from k2lab.tensors.linear import linear
from k2lab.tensors.shards import TORCH_NAMES, Shards, check
from k2lab.weights.budget import Offload, compute_dtype, needs
from k2lab.weights.dense import dense_specs
from k2lab.weights.forms import Ask, build, choose, slot_bytes
from k2lab.weights.forms import Room as Slots
from k2lab.weights.host import Host
from k2lab.weights.links import Direct, Past
from k2lab.weights.memory import free
from k2lab.weights.planner import Machine
from k2lab.weights.resident import Resident
from k2lab.weights.slab import Slabs, layout
from k2lab.weights.tiered import Tiered

GIB = 2**30
GPUS = {
    "A100": (79.1 * GIB, 2.04e12),  # the 80 GB one; 81,920 MiB, torch finds 79.14 GiB or more
    "B200": (178.3 * GIB, 8.0e12),  # 183,359 MiB, 178.35 GiB
    "H100": (79.1 * GIB, 3.35e12),  # 81,559 MiB, 79.10 GiB or more
    "H200": (139.7 * GIB, 4.8e12),  # 143,771 MiB, 139.72 GiB or more
    "L40S": (44.3 * GIB, 0.864e12),  # 46,068 MiB, 44.39 GiB or more
    "RTX4090": (23.5 * GIB, 1.008e12),  # 24,564 MiB, 23.52 GiB or more
    "RTX5090": (31.3 * GIB, 1.792e12),  # 32,607 MiB, 31.34 GiB or more
    "RTXPRO6000": (94.9 * GIB, 1.792e12),  # 97,887 MiB, 94.97 GiB
}
"""Bytes that a program finds, and by the data sheet bytes per second of memory.

Beside each, what nvidia-smi reports and what torch does, the least in public logs of those who ran
out of it. What is sold as 80 GB is 85 · 10⁹ bytes.
"""

UNKNOWN_RATE = 1e12  # bytes per second of a GPU that is given by its size alone
PCIE_RATE = 55e9  # of PCIe 5.0 × 16 as one reads it in practice
NVME_RATE = 7e9  # of one PCIe 4.0 drive
DENSE_SAMPLE = 2**30  # bytes of the dense product, more than a processor's caches hold
TRIES = 5
SAMPLED = 32  # experts that are brought while that is measured
LAYERS = 4  # with experts, of the network whose calls are timed
TOKENS = 96  # that it decodes
FEW = 24  # the same where attention is large, and what a token takes changes less
IN_PLACE_LIMIT = 2**26  # bytes of a checkpoint with experts of the right size to try them with


def described(gpu: str, *, host: int, disk: float | None, link: float | None) -> Machine:
    """A machine with GPUs such as `8xH200`, `H100` or `2x24GiB`, as they are known to be.

    `disk` and `link` in bytes per second are those of common parts where they are not given.
    """
    _check_rates(disk=disk, link=link)
    found = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(.+?)\s*", gpu)
    count, name = int(found[1] or 1) if found else 0, found[2] if found else gpu
    known = GPUS.get(name.upper().replace(" ", "").replace("-", ""))
    try:
        size, rate = known or (nbytes(name), UNKNOWN_RATE)
    except InputError as error:
        raise InputError(
            f"The GPU {gpu!r}.",
            expected=f"one of {', '.join(GPUS)}, or an amount of memory; several as in '8xH200'.",
            mend="Write it as in '8xH200' or '2x24GiB'.",
        ) from error
    if not count:
        raise InputError(
            f"{gpu!r} names no GPU.", expected="at least one.", mend="Leave out --gpu for a CPU."
        )
    return Machine(
        name=f"{count} × {name}",
        gpus=count,
        device_bytes=int(size),
        memory_rate=rate,
        expert_rate=rate,
        link_rate=PCIE_RATE if link is None else link,
        host_bytes=host,
        disk_rate=NVME_RATE if disk is None else disk,
    )


def measured(
    config: K2Config, folder: Path | None, *, disk: float | None = None, memory: int | None = None
) -> Machine:
    """This machine's CPU and, where there is a folder, the disk that it lies on.

    `disk` in bytes per second and `memory` in bytes are measured where they are not given.
    """
    _check_rates(disk=disk)
    memory = free(torch.device("cpu")) if memory is None else memory
    slabs = None if folder is None else Slabs(Shards(folder), config)
    # First of all: what others of these give back would be taken for fresh memory.
    files = [] if folder is None or disk is not None else sorted(folder.glob("*.safetensors"))
    loading = math.inf if slabs is None else _loading(config, slabs, files)
    if disk is None:
        disk = disk_rate(files) if files else NVME_RATE
    fetch, rate = math.inf, _dense(config)
    small = _small(config)
    if config.moe_layers and bytes_on_disk(small) <= IN_PLACE_LIMIT:
        calls, wait, link = _in_place(small)
        experts = math.inf  # what they take is in the calls
    else:
        calls, wait = _calls(config, rate), 0.0
        experts, link = math.inf, math.inf
        if config.moe_layers:
            experts, link, fetch = _experts(config, slabs, files)
    return Machine(
        name=f"CPU, {torch.get_num_threads()} threads",
        gpus=0,
        device_bytes=memory,
        memory_rate=rate,
        expert_rate=experts,
        link_rate=link,
        host_bytes=memory,
        disk_rate=disk,
        fetch_rate=fetch,
        layer_seconds=calls,
        miss_seconds=wait,
        tensor_seconds=0.0 if folder is None else _tensor(config, folder),
        load_rate=loading,
    )


def _check_rates(**rates: float | None) -> None:
    """Raise unless each rate that is given is one."""
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < math.inf:
            raise InputError(
                f"A {name} that gives {rate} bytes per second.",
                expected="a rate above 0.",
                mend="Write it as in '7GB', or leave it out.",
            )


def _dense(config: K2Config) -> float:
    """Bytes of dense weights that one token's products read per second."""
    dtype = compute_dtype(config, torch.device("cpu"))
    sample = min(_dense_bytes(config, dtype), DENSE_SAMPLE)
    rows = max(1, sample // (config.hidden_size * dtype.itemsize))
    weight = torch.full((rows, config.hidden_size), 0.01, dtype=dtype)
    x = torch.full((1, config.hidden_size), 0.5, dtype=dtype)
    return weight.nbytes / _typical(lambda: linear(x, weight))


def _dense_bytes(config: K2Config, dtype: torch.dtype) -> int:
    counts = parameters(config)
    return (counts.total - counts.routed - counts.embedding) * dtype.itemsize


def _experts(
    config: K2Config, slabs: Slabs | None, files: Sequence[Path]
) -> tuple[float, float, float]:
    """Bytes per second of computing with experts in their slots, and of bringing them there.

    From the page cache first, then from the disk if `files` are given; by the threads and buffers
    of the store, and as many at once as one layer asks for.
    """
    device, shape = torch.device("cpu"), layout(config)
    dtype = compute_dtype(config, device)
    form, chosen = choose(config, device), config.num_experts_per_tok
    slots = min(config.n_routed_experts, SAMPLED) // chosen * chosen
    held = build(form, config, shape, dtype, Slots(1, slots), Direct(), device)
    blank = torch.zeros(shape.nbytes, dtype=torch.uint8)
    offload = Offload(device=device, dtype=dtype, device_budget=0)
    host = None if slabs is None else Host(config, slabs, offload, Direct())

    def bring(expert: int) -> None:
        if host is None:
            held.fill(0, expert % slots, blank, Past())
            return
        host.bring(0, expert, held, 0, expert % slots, Past())

    with ThreadPoolExecutor(offload.threads) as readers:

        def bring_all(experts: Sequence[int]) -> None:
            for first in range(0, slots, chosen):
                list(readers.map(bring, experts[first : first + chosen]))

        def bring_cold() -> None:
            evict(files)
            bring_all(random.sample(range(config.n_routed_experts), slots))

        filling = _typical(partial(bring_all, range(slots)))  # thrown away first: it reads the disk
        fetching = _typical(bring_cold) if files else 0.0
    x = torch.full((1, config.hidden_size), 0.5, dtype=dtype)
    seconds = []
    for first in range(0, slots, chosen):  # in turn, as decoding asks for them
        used = list(range(first, first + chosen))
        ask = Ask(0, used, torch.tensor([used]), _here)
        seconds.append(_typical(partial(held.rows, ask, x, None)))
    slot, brought = slot_bytes(form, config, shape, dtype), slots * shape.nbytes
    return (
        chosen * slot / median(seconds),
        brought / filling,
        brought / fetching if fetching else math.inf,
    )


def settle(device: torch.device) -> None:
    """Waits until the device has computed all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _here(slot: int) -> None:
    """The slot is filled."""


def _small(config: K2Config) -> K2Config:
    """The same kinds of layers without any size, and experts as they are."""
    return replace(
        _short(config),
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=config.q_lora_rank and 32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
    )


def _short(config: K2Config) -> K2Config:
    """A few layers of each kind, few words, and next to nothing that is dense but attention."""
    dense = min(1, config.first_k_dense_replace)
    return replace(
        config,
        vocab_size=512,
        num_hidden_layers=LAYERS + dense,
        first_k_dense_replace=dense,
        intermediate_size=64,
        n_shared_experts=1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _calls(config: K2Config, rate: float) -> float:
    """Seconds of one layer beyond the reading of its dense weights at this rate.

    Attention has its true size, and all else next to none: its matrices are smaller than the one
    whose rate was taken, and some are multiplied head by head.
    """
    dtype = compute_dtype(config, torch.device("cpu"))
    experts = 2 * config.num_experts_per_tok
    lean = replace(_short(config), moe_intermediate_size=GROUP, n_routed_experts=experts)
    model = K2(lean, Resident(lean, _ones(lean), dtype=dtype))
    _decode([model], FEW)  # what is made once
    seconds = _decode([model], FEW)[0][0]
    reading = _dense_bytes(lean, dtype) / rate
    return max(0.0, seconds - reading) / lean.num_hidden_layers


def _in_place(config: K2Config) -> tuple[float, float, float]:
    """Seconds of a layer that finds all experts, more of one that does not, bytes per second.

    Small experts cost the handing over, not the bytes, so the store itself is run: with all slots,
    with some, with the fewest. Time is taken to be linear in layers that miss and in misses.
    """
    with TemporaryDirectory(prefix="k2lab-") as place:
        slabs = Slabs(Shards(write_synthetic(config, Path(place) / "small")), config)
        device = torch.device("cpu")
        dtype = compute_dtype(config, device)
        plain = Offload(device=device, dtype=dtype, device_budget=0)
        need = needs(config, slabs.layout, plain)
        middle = need.smallest + (need.most - need.smallest) * 2 // 3
        stores = [
            Tiered(config, slabs, replace(plain, device_budget=budget))
            for budget in (need.most, middle, need.smallest)
        ]
        models = [K2(config, store) for store in stores]
        _decode(models)  # finds what can be found
        timed = _decode(models)
        for store in stores:
            store.close()
    seconds, missed = zip(*timed, strict=True)
    layers, chosen = len(config.moe_layers), config.num_experts_per_tok
    some, most = (max(each - seconds[0], 0.0) for each in seconds[1:])
    # Layers that miss anything, were misses spread evenly: two equations for two prices.
    wake = [layers * (1 - (1 - count / (layers * chosen)) ** chosen) for count in missed[1:]]
    determinant = wake[0] * missed[2] - wake[1] * missed[1]
    per_layer = (some * missed[2] - most * missed[1]) / determinant if determinant else 0.0
    per_layer = min(max(per_layer, 0.0), most / wake[1])
    per_miss = max((most - per_layer * wake[1]) / missed[2], 1e-9)
    return seconds[0] / config.num_hidden_layers, per_layer, slabs.layout.nbytes / per_miss


def _decode(models: Sequence[K2], tokens: int = TOKENS) -> list[tuple[float, float]]:
    """Seconds of one token, hiccups of the machine among them, and experts missed for it, of each.

    Token by token in turn, so that what else the machine does falls on all alike.
    """
    caches, forwards = [LatentCache(model.config) for model in models], [*map(reader, models)]
    little = small(models[0])
    before = [model.store.ledger().misses for model in models]
    seconds, draw = [0.0] * len(models), torch.Generator().manual_seed(0)
    for _ in range(tokens):
        token = int(torch.randint(0, models[0].config.vocab_size, (), generator=draw))
        for place, (forward, cache) in enumerate(zip(forwards, caches, strict=True)):
            began = time.perf_counter()
            with torch.inference_mode(), alone(wanted=little):
                forward([token], cache, untouched)
            seconds[place] += time.perf_counter() - began
    return [
        (spent / tokens, (model.store.ledger().misses - earlier) / tokens)
        for spent, model, earlier in zip(seconds, models, before, strict=True)
    ]


def _ones(config: K2Config) -> Callable[[str], torch.Tensor]:
    specs = {spec.key: spec for spec in tensors(config)}

    def read(key: str) -> torch.Tensor:
        spec = specs[key]
        return torch.ones(spec.shape, dtype=getattr(torch, TORCH_NAMES[spec.dtype]))

    return read


def _loading(config: K2Config, slabs: Slabs, files: Sequence[Path]) -> float:
    """Bytes per second of making dense tensors of what lies in files, and keeping them.

    As loading does, from the disk if `files` are given, and in memory that was used before: what a
    virtual machine has not touched yet comes at a third of the rate (measured), but only once.
    """
    dtype, chosen = compute_dtype(config, torch.device("cpu")), list[TensorSpec]()
    for spec in dense_specs(config):
        if spec.nbytes <= DENSE_SAMPLE and sum(each.nbytes for each in chosen) < DENSE_SAMPLE:
            chosen.append(spec)
    seconds = 0.0
    for _ in range(2):  # the first time is thrown away
        evict(files)
        began = time.perf_counter()
        held = [slabs.read(spec.key).to(dtype) for spec in chosen]
        seconds = time.perf_counter() - began
        del held
    return sum(spec.nbytes for spec in chosen) / seconds


def _tensor(config: K2Config, folder: Path) -> float:
    """Seconds of opening and checking one tensor of the folder."""
    began = time.perf_counter()
    shards = Shards(folder)
    check(shards, config)
    Slabs(shards, config)
    return (time.perf_counter() - began) / len(shards.keys)


def _typical(work: Callable[[], object]) -> float:
    """Median seconds; the first time is thrown away."""
    seconds = []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])
