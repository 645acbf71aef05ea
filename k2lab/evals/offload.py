"""Offloading, measured: against the disk itself, and against others who offload the same model.

A fixed row of seeded tokens is decoded one by one, the same for all sides, so that routing does not
depend on what a side computes. For cold figures the checkpoint's pages are evicted from the page
cache before every token, outside the clock; bytes which the system really read from the device are
reported beside those that the store asked for, and tell whether that worked. The planner's word
stands beside each figure. Not here: the others themselves (`peers.py`), prefill, batches.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from k2lab.evals.disk import device_bytes, disk_rate, evict
from k2lab.evals.machine import measured, settle
from k2lab.evals.peers import Peer, peers
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.load import Places
from k2lab.spec.config import K2Config
from k2lab.tensors.shards import Shards
from k2lab.weights.budget import Offload, compute_dtype, needs
from k2lab.weights.memory import free
from k2lab.weights.planner import Machine, Wish, plan
from k2lab.weights.slab import Slabs, layout
from k2lab.weights.tiered import DISK, Tiered

WARM_UP = 2  # tokens before the clock runs
MOST_SLOTS = 64  # of the sweep, per layer
SHARE = 0.7  # of free memory that the sweep may take
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
    layers_bytes_s: float  # over the layers with experts, attention and all: what K2's 60 tend to
    delivery_bytes_s: float  # from the router's choice to the last expert's output
    hit_rate: float
    stall_ms_per_token: float
    others: float | None  # cores that other programs kept busy meanwhile


@dataclass(frozen=True, slots=True)
class Check:
    """The planner's word beside a measurement; rates are measured right before and after it."""

    what: str
    planned: float
    measured: float
    ratio: float  # planned / measured


@dataclass(frozen=True, slots=True)
class OffloadFigures:
    """One run of the comparison."""

    model: str
    device: str
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
    layers_share_of_disk: float
    delivery_share_of_disk: float
    bytes_ratio: float  # cold, bytes asked / least bytes
    sweep: tuple[Passage, ...]  # warm, from the smallest budget to the largest
    checks: tuple[Check, ...]  # what the planner had said
    peers: tuple[Peer, ...]
    notes: dict[str, str]  # why a peer is missing


def offload(
    folder: Path, *, tokens: int = 16, peer: bool = True, device: str = "cpu"
) -> OffloadFigures:
    """The figures of a checkpoint folder on a device of this machine.

    The planner is asked where the CPU computes; on a GPU it is left out.
    """
    (where,) = Places(device=device).devices
    config = K2Config.from_json(folder)
    files = sorted(folder.glob("*.safetensors"))
    ids, planner = _ids(config, tokens + WARM_UP), _Planner(config, folder, where)
    with _tiered(folder, config, config.num_experts_per_tok, where):
        pass  # from here on memory was used before, as where the planner's rates are taken
    evict(files)
    began = time.perf_counter()
    with _tiered(folder, config, config.num_experts_per_tok, where) as model:
        loading = time.perf_counter() - began
        cold = _decode(model, ids, lambda: evict(files))
        planner.check("tokens/s, cold", cold, cached=False, loading=loading)
        _decode(model, ids, _nothing)
        warm = _decode(model, ids, _nothing)
        planner.check("tokens/s, warm", warm, cached=True)
        form, slab = _store(model).form, _store(model).needs.slot
    del model
    disk = median(planner.disk_rates)
    sweep: list[Passage] = []
    for slots in _steps(config):
        if sweep and _offload(config, slots, where).device_budget > SHARE * free(where):
            break
        with _tiered(folder, config, slots, where) as model:
            planner.look(disk)
            _decode(model, ids, _nothing)
            sweep.append(_decode(model, ids, _nothing))
            planner.check(f"tokens/s, {slots} slots", sweep[-1], cached=True, disk=disk)
        del model  # two at a time would not fit
    others, notes = list[Peer](), {"all": "not asked for"}
    if peer:
        others, notes = peers(folder, config, ids, where)
    return OffloadFigures(
        model=folder.name,
        device=str(where),
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
        layers_share_of_disk=cold.layers_bytes_s / disk,
        delivery_share_of_disk=cold.delivery_bytes_s / disk,
        bytes_ratio=cold.bytes_per_token / max(cold.least_bytes_per_token, 1),
        sweep=tuple(sweep),
        checks=tuple(planner.checks),
        peers=tuple(
            replace(
                each,
                cold_ratio=cold.tok_s / each.cold_tok_s,
                warm_ratio=warm.tok_s / each.warm_tok_s,
            )
            for each in others
        ),
        notes=notes,
    )


class _Planner:
    """The planner's word beside each passage, from a machine that is measured around it."""

    def __init__(self, config: K2Config, folder: Path, device: torch.device) -> None:
        self.checks: list[Check] = []
        self.disk_rates: list[float] = []  # bytes per second
        self._config, self._folder, self._cpu = config, folder, device.type == "cpu"
        self._before: Machine | None = None  # None: a GPU, of which only the disk is measured
        self.look()

    def look(self, disk: float | None = None) -> None:
        """Measures the machine, and its disk where that rate is not given."""
        if self._cpu:
            self._before = measured(self._config, self._folder, disk=disk)
        if disk is None:
            files = sorted(self._folder.glob("*.safetensors"))
            self.disk_rates.append(self._before.disk_rate if self._before else disk_rate(files))

    def check(
        self,
        what: str,
        passage: Passage,
        *,
        cached: bool,
        disk: float | None = None,
        loading: float | None = None,
    ) -> None:
        """Notes what the planner says to the same budget and hits, and to loading, in seconds.

        It is told what part of the bytes came from the disk; `cached` says whether the files were
        to lie in the page cache, where the system does not count that.
        """
        before = self._before
        self.look(disk)
        after = self._before
        if before is None or after is None:
            return
        machine = _between(before, after)
        wish = Wish(context=64, weights=passage.device_budget, hit_rate=passage.hit_rate)
        cold, warm = (
            plan(self._config, replace(machine, host_bytes=host), wish) for host in (0, 10**15)
        )
        share = _from_disk(passage, cached=cached)
        rows = [(what, 1 / (share / cold.tok_s + (1 - share) / warm.tok_s), passage.tok_s)]
        if loading is not None:
            rows.insert(0, ("seconds to load, cold", cold.load_seconds, loading))
        self.checks += [Check(name, said, seen, said / seen) for name, said, seen in rows]


def _from_disk(passage: Passage, *, cached: bool) -> float:
    """What part of the bytes that were asked for did not lie in the page cache."""
    if passage.device_bytes_per_token is None:
        return 0.0 if cached else 1.0
    return min(1.0, passage.device_bytes_per_token / max(1.0, passage.bytes_per_token))


def _between(first: Machine, second: Machine) -> Machine:
    """Rates half-way between two measurements of one machine."""
    rates = ("memory_rate", "expert_rate", "link_rate", "disk_rate", "fetch_rate", "load_rate")
    times = ("miss_seconds", "layer_seconds", "tensor_seconds")
    changes = {name: _rate(getattr(first, name), getattr(second, name)) for name in rates}
    changes |= {name: (getattr(first, name) + getattr(second, name)) / 2 for name in times}
    return replace(first, **changes)  # type: ignore[arg-type]


def _rate(first: float, second: float) -> float:
    """The rate at which a byte takes the mean of its times at both."""
    mean = (1 / first + 1 / second) / 2
    return 1 / mean if mean else math.inf


def _decode(model: K2, ids: Sequence[int], before: Callable[[], None]) -> Passage:
    """One token after the other; `before` runs before each, outside the clock."""
    settled = partial(settle, model.device)
    store, timer = _store(model), _Delivery(model.config, settled)
    ledger, cache = store.ledger(), LatentCache(model.config)
    seconds = 0.0
    start: dict[str, Any] = {}
    for place, token in enumerate(ids):
        if place == WARM_UP:
            timer.seconds, timer.layers, seconds = 0.0, 0.0, 0.0
            start = {
                "moved": ledger.bytes_moved.get(DISK, 0),
                "hits": ledger.hits,
                "misses": ledger.misses,
                "stall": ledger.stall_seconds,
                "device": device_bytes(),
                "others": _others_seconds(),
                "clock": time.perf_counter(),
            }
        before()
        began = time.perf_counter()
        with torch.inference_mode():
            step = model.step(1, cache=cache, tap=timer)
            model(torch.tensor([[token]], device=model.device), step)
        settled()
        seconds += time.perf_counter() - began
    count = len(ids) - WARM_UP
    moved = ledger.bytes_moved.get(DISK, 0) - start["moved"]
    hits, misses = ledger.hits - start["hits"], ledger.misses - start["misses"]
    device, others = device_bytes(), _others_seconds()
    return Passage(
        slots=store.slots,
        device_budget=store.offload.device_budget,
        tok_s=count / seconds,
        bytes_per_token=moved / count,
        least_bytes_per_token=misses * store.slab_bytes / count,
        device_bytes_per_token=None if device is None else (device - start["device"]) / count,
        bytes_s=moved / seconds,
        layers_bytes_s=moved / max(timer.layers, 1e-9),
        delivery_bytes_s=moved / max(timer.seconds, 1e-9),
        hit_rate=hits / max(1, hits + misses),
        stall_ms_per_token=(ledger.stall_seconds - start["stall"]) / count * 1e3,
        others=None
        if others is None
        else max(0.0, (others - start["others"]) / (time.perf_counter() - start["clock"])),
    )


class _Delivery:
    """A tap that watches how long experts, and the layers that have some, take."""

    def __init__(self, config: K2Config, settled: Callable[[], object]) -> None:
        self.seconds = 0.0  # from a router's choice to its experts' outputs
        self.layers = 0.0  # from the first such layer's input to the last one's output
        self._chosen = self._entered = 0.0
        self._first = f"layers.{config.first_k_dense_replace}.input"
        self._settled = settled  # called before the clock is read

    def __call__(self, site: str, value: Tensor) -> Tensor:
        """The value itself."""
        if site == self._first:
            self._entered = self._now()
        elif site.endswith(".mlp.router.weights"):
            self._chosen = self._now()
        elif site.endswith(".mlp.experts.rows"):
            self.seconds += self._now() - self._chosen
        elif site == "norm":
            self.layers += self._now() - self._entered
        return value

    def _now(self) -> float:
        self._settled()
        return time.perf_counter()


@contextmanager
def _tiered(folder: Path, config: K2Config, slots: int, device: torch.device) -> Iterator[K2]:
    """The network with so many slots per layer."""
    offload = _offload(config, slots, device)
    store = Tiered(config, Slabs(Shards(folder), config), offload)
    try:
        yield K2(config, store)
    finally:
        store.close()


def _offload(config: K2Config, slots: int, device: torch.device) -> Offload:
    """The options that give so many slots per layer."""
    plain = Offload(device=device, dtype=compute_dtype(config, device), device_budget=0)
    need = needs(config, layout(config), plain)
    more = (slots - config.num_experts_per_tok) * len(config.moe_layers) * need.slot
    return replace(plain, device_budget=need.smallest + more)


def _steps(config: K2Config) -> list[int]:
    """Slots per layer of the sweep: doubling from those of one token."""
    steps = [config.num_experts_per_tok]
    while 2 * steps[-1] < min(config.n_routed_experts, MOST_SLOTS):
        steps.append(2 * steps[-1])
    return [*steps, min(config.n_routed_experts, MOST_SLOTS)]


def _ids(config: K2Config, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (count,), generator=generator).tolist()


def _others_seconds() -> float | None:
    """Seconds that the processors have worked for others; None where nobody counts."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, *rest = map(int, fields)  # idle and waiting left out
    return sum((user, nice, system, *rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _store(model: K2) -> Tiered:
    assert isinstance(model.store, Tiered), "built by `_tiered`"
    return model.store


def _nothing() -> None:
    """Leaves the page cache as it is."""
