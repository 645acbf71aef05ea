"""Offloading, measured: against the disk itself, and against others who offload the same model.

A fixed row of seeded tokens is decoded one by one, the same for all sides, so that routing does not
depend on what a side computes. For cold figures the checkpoint's pages are evicted from the page
cache before every token, outside the clock; bytes which the system really read from the device are
reported beside those that the store asked for, and tell whether that worked. The peer is
transformers with accelerate's disk offload of the routed experts alone: all else is in memory there
too, which is its best case. Not here: prefill, batches, several requests.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from k2lab.errors import MissingError
from k2lab.evals.disk import disk_rate, evict
from k2lab.model.cache import LatentCache
from k2lab.model.export import export_transformers
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.tensors.shards import Shards
from k2lab.weights.budget import Offload, compute_dtype, needs
from k2lab.weights.slab import Slabs
from k2lab.weights.tiered import DISK, Tiered

WARM_UP = 2  # tokens before the clock runs
MOST_SLOTS = 128  # of the sweep, per layer
PEER_TOKENS = 4  # that the peer decodes for each figure
PEER_LIMIT = 8 * 10**9  # bytes of a bfloat16 export up to which the peer is run
EVICTED = "posix_fadvise(POSIX_FADV_DONTNEED) on the checkpoint's files before every token"


@dataclass(frozen=True, slots=True)
class Passage:
    """Decoding with one budget, per token and per second."""

    slots: int  # per MoE layer
    device_budget: int
    tok_s: float
    bytes_per_token: float  # asked from the files
    least_bytes_per_token: float  # of the experts that were missed
    device_bytes_per_token: float | None  # read from the block device, as the system counts
    bytes_s: float  # over the whole token: attention, head and all
    delivery_bytes_s: float  # from the router's choice to the last expert's output
    hit_rate: float
    stall_ms_per_token: float


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody else's offloading of the same model."""

    name: str
    cold_tok_s: float
    warm_tok_s: float
    cold_ratio: float  # k2lab / peer, both cold, smallest budget
    warm_ratio: float


@dataclass(frozen=True, slots=True)
class OffloadFigures:
    """One run of the comparison."""

    model: str
    moe_layers: int
    experts: int
    expert_bytes: int
    form: str
    disk_bytes_s: float  # sequential, evicted before, median
    eviction: str
    tokens: int
    threads: int
    cold: Passage
    warm: Passage
    share_of_disk: float  # cold.bytes_s / disk_bytes_s
    delivery_share_of_disk: float
    bytes_ratio: float  # cold, bytes asked / least bytes
    sweep: tuple[Passage, ...]  # warm, from the smallest budget to the largest
    accelerate: Peer | None
    accelerate_note: str


def offload(folder: Path, *, tokens: int = 16, peer: bool = True) -> OffloadFigures:
    """The figures of a checkpoint folder on this machine's CPU."""
    config = K2Config.from_json(folder)
    files = sorted(folder.glob("*.safetensors"))
    ids = _ids(config, tokens + WARM_UP)
    rates = [disk_rate(files)]
    with _tiered(folder, config, config.num_experts_per_tok) as model:
        rates.append(disk_rate(files))
        cold = _decode(model, ids, lambda: evict(files))
        rates.append(disk_rate(files))
        _decode(model, ids, _nothing)
        warm = _decode(model, ids, _nothing)
        form, slab = _store(model).form, _store(model).needs.slot
    sweep = []
    for slots in _steps(config):
        with _tiered(folder, config, slots) as model:
            _decode(model, ids, _nothing)
            sweep.append(_decode(model, ids, _nothing))
    disk = median(rates)
    found, note = (None, "not asked for") if not peer else _accelerate(folder, config, ids)
    compared = found and replace(
        found,
        cold_ratio=cold.tok_s / found.cold_tok_s,
        warm_ratio=warm.tok_s / found.warm_tok_s,
    )
    return OffloadFigures(
        model=folder.name,
        moe_layers=len(config.moe_layers),
        experts=config.n_routed_experts,
        expert_bytes=slab,
        form=form,
        disk_bytes_s=disk,
        eviction=EVICTED,
        tokens=tokens,
        threads=torch.get_num_threads(),
        cold=cold,
        warm=warm,
        share_of_disk=cold.bytes_s / disk,
        delivery_share_of_disk=cold.delivery_bytes_s / disk,
        bytes_ratio=cold.bytes_per_token / max(cold.least_bytes_per_token, 1),
        sweep=tuple(sweep),
        accelerate=compared,
        accelerate_note=note,
    )


def _decode(model: K2, ids: Sequence[int], before: Callable[[], None]) -> Passage:
    """One token after the other; `before` runs before each, outside the clock."""
    store, timer = _store(model), _Delivery()
    ledger, cache = store.ledger(), LatentCache(model.config)
    seconds = 0.0
    start: dict[str, Any] = {}
    for place, token in enumerate(ids):
        if place == WARM_UP:
            timer.seconds, seconds = 0.0, 0.0
            start = {
                "moved": ledger.bytes_moved.get(DISK, 0),
                "hits": ledger.hits,
                "misses": ledger.misses,
                "stall": ledger.stall_seconds,
                "device": _device_bytes(),
            }
        before()
        began = time.perf_counter()
        with torch.inference_mode():
            step = model.step(1, cache=cache, tap=timer)
            model(torch.tensor([[token]]), step)
        seconds += time.perf_counter() - began
    count = len(ids) - WARM_UP
    moved = ledger.bytes_moved.get(DISK, 0) - start["moved"]
    hits, misses = ledger.hits - start["hits"], ledger.misses - start["misses"]
    device = _device_bytes()
    return Passage(
        slots=store.slots,
        device_budget=store.offload.device_budget,
        tok_s=count / seconds,
        bytes_per_token=moved / count,
        least_bytes_per_token=misses * store.slab_bytes / count,
        device_bytes_per_token=None if device is None else (device - start["device"]) / count,
        bytes_s=moved / seconds,
        delivery_bytes_s=moved / max(timer.seconds, 1e-9),
        hit_rate=hits / max(1, hits + misses),
        stall_ms_per_token=(ledger.stall_seconds - start["stall"]) / count * 1e3,
    )


class _Delivery:
    """A tap that watches the time from a router's choice to its experts' outputs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __call__(self, site: str, value: Tensor) -> Tensor:
        """The value itself."""
        if site.endswith(".mlp.router.weights"):
            self._began = time.perf_counter()
        elif site.endswith(".mlp.experts.rows"):
            self.seconds += time.perf_counter() - self._began
        return value


@contextmanager
def _tiered(folder: Path, config: K2Config, slots: int) -> Iterator[K2]:
    """The network with so many slots per layer."""
    device = torch.device("cpu")
    slabs = Slabs(Shards(folder), config)
    plain = Offload(device=device, dtype=compute_dtype(config, device), device_budget=0)
    need = needs(config, slabs.layout, plain)
    more = (slots - config.num_experts_per_tok) * len(config.moe_layers) * need.slot
    store = Tiered(config, slabs, replace(plain, device_budget=need.smallest + more))
    try:
        yield K2(config, store)
    finally:
        store.close()


def _steps(config: K2Config) -> list[int]:
    """Slots per layer of the sweep: doubling from those of one token."""
    steps = [config.num_experts_per_tok]
    while 2 * steps[-1] < min(config.n_routed_experts, MOST_SLOTS):
        steps.append(2 * steps[-1])
    return [*steps, min(config.n_routed_experts, MOST_SLOTS)]


def _accelerate(folder: Path, config: K2Config, ids: Sequence[int]) -> tuple[Peer | None, str]:
    """transformers with the routed experts on disk; a note where that cannot be run here."""
    size = bytes_on_disk(replace(config, quantization_config=None))
    if size > PEER_LIMIT:
        return None, (
            f"transformers expands INT4 experts to bfloat16: {size:,} bytes and as many again for "
            f"accelerate's own copy, above this command's limit of {PEER_LIMIT:,}"
        )
    try:
        import transformers
    except ImportError as error:
        raise MissingError(
            "The package transformers is not installed.",
            expected="the peer of the comparison.",
            mend="Install it with `pip install k2lab[test]`.",
        ) from error
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory(prefix="k2lab-peer-", dir=folder.parent) as place:
        exported = export_transformers(folder, Path(place) / "export")
        model = transformers.DeepseekV3ForCausalLM.from_pretrained(
            exported,
            dtype=torch.bfloat16,
            device_map=_map(config),
            offload_folder=f"{place}/offload",
        ).eval()
        files = [file for file in Path(place).rglob("*") if file.is_file()]
        cold = _peer_decode(model, ids, lambda: evict(files))
        warm = _peer_decode(model, ids, _nothing)
    name = f"transformers {transformers.__version__}, accelerate disk offload of routed experts"
    return Peer(f"{name}, bfloat16", cold, warm, 0.0, 0.0), "measured"


def _map(config: K2Config) -> dict[str, str]:
    """All in memory but the routed experts: the finest that a device map can say."""
    outer = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    where = dict.fromkeys(outer, "cpu")
    for layer in range(config.num_hidden_layers):
        moe = ("mlp.gate", "mlp.shared_experts")
        inner = ("self_attn", "input_layernorm", "post_attention_layernorm")
        for name in (*inner, *(moe if config.is_moe(layer) else ("mlp",))):
            where[f"model.layers.{layer}.{name}"] = "cpu"
        if config.is_moe(layer):
            where[f"model.layers.{layer}.mlp.experts"] = "disk"
    return where


def _peer_decode(model: Any, ids: Sequence[int], before: Callable[[], None]) -> float:
    """Tokens per second of the peer's own forward and cache."""
    state, seconds = None, 0.0
    for place, token in enumerate(ids[: WARM_UP + PEER_TOKENS]):
        if place == WARM_UP:
            seconds = 0.0
        before()
        began = time.perf_counter()
        with torch.inference_mode():
            past = None if state is None else state.past_key_values
            state = model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
        seconds += time.perf_counter() - began
    return PEER_TOKENS / seconds


def _ids(config: K2Config, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (count,), generator=generator).tolist()


def _device_bytes() -> int | None:
    """Bytes that this process has read from block devices; None where nobody counts."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return int(next(line for line in lines if line.startswith("read_bytes:")).split()[1])


def _store(model: K2) -> Tiered:
    assert isinstance(model.store, Tiered), "built by `_tiered`"
    return model.store


def _nothing() -> None:
    """Leaves the page cache as it is."""
