"""Offloaded experts: from the original shards on disk over host memory into a few device slots.

Everything but the routed experts lies on the device. Each MoE layer has slots of its own (`unit`
expert: a cache shared by all layers would hold nothing once a token's experts outgrow it), or whole
layers come and go (`unit` layer). All experts that a layer misses are fetched at once, by threads
that read, unpack and copy, while the network computes the shared expert. A failed read ends the
run and leaves the slot empty, so the next run fetches the expert again.
What it is not: a judge of sizes (`budget.py`), of who leaves (`residency.py`), or of numbers
(`forms.py`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.weights.budget import Offload, divide, needs
from k2lab.weights.dense import read_dense
from k2lab.weights.forms import Ask, build
from k2lab.weights.host import Host
from k2lab.weights.links import Cuda, Direct, Event, Link, Past
from k2lab.weights.residency import Load, Residency, distinct
from k2lab.weights.slab import Slabs
from k2lab.weights.store import Lease, Ledger, Moves

DISK, HOST = "disk→host", "host→device"
"""The links in a ledger."""

AHEAD = 1
"""Experts of the next layer that prefetching brings: those its router is surest of.

Asked a layer early, K2-nano's routers are right about the first in four cases of five, about the
eighth in one of three, and the disk is idle for no more than one (both measured).
"""

JOB_BYTES = 2**18  # that one job of a reading thread brings at least, where there is that much


class Tiered:
    """A weight store that brings routed experts when they are asked for."""

    def __init__(
        self, config: K2Config, slabs: Slabs, offload: Offload, link: Link | None = None
    ) -> None:
        """Reads what always lies on the device; no expert is read yet."""
        self.config, self.device, self.dtype = config, offload.device, offload.dtype
        self.offload, self._slabs = offload, slabs
        self.needs = needs(config, slabs.layout, offload)
        self.room = divide(config, self.needs, offload)
        self._layers = len(config.moe_layers)
        fitting = Direct() if self.device.type == "cpu" else Cuda(self.device)
        self._link: Link = link or fitting
        self.form = offload.form_of(config)
        self._slots = build(
            self.form, config, slabs.layout, self.dtype, self.room, self._link, self.device
        )
        self._host = Host(config, slabs, offload, self._link)
        whole = offload.unit == "layer"
        self._held = (
            [Residency(self.room.frames, offload.policies(0))]
            if whole
            else [Residency(self.room.slots, offload.policies(n)) for n in range(self._layers)]
        )
        self._pending: dict[tuple[int, int], Future[Event]] = {}  # by frame and slot
        self._used: dict[int, Event] = {}  # by frame: the network is done with its slots
        self._ahead: set[tuple[int, int]] = set()  # (layer, expert) fetched and not asked for yet
        self._ledger, self._moves = Ledger(), _Tally(self._layers)
        self._counting = Lock()
        # One job for several small experts: handing it over costs as much as reading one.
        self._together = max(1, JOB_BYTES // max(1, slabs.layout.nbytes))
        self._readers = ThreadPoolExecutor(offload.threads, thread_name_prefix="k2lab-read")
        self._leases = read_dense(config, slabs.read, self.device, self.dtype)

    @property
    def slots(self) -> int:
        """Slots per MoE layer."""
        return self.room.slots

    @property
    def slab_bytes(self) -> int:
        """Bytes of one expert in the files, as far as anything is computed with them."""
        return self._slabs.layout.nbytes

    def dense(self, layer: int | None, part: str) -> Lease:
        """Tensors of one part, which stay where they are."""
        return self._leases[layer, part]

    def experts(self, layer: int, ids: Tensor) -> "TieredBatch":
        """The fetching of all experts that the layer lacks has begun."""
        at = layer - self.config.first_k_dense_replace
        chosen = ids.cpu().numpy()
        self._ledger.hits += chosen.size
        self._moves.hits[at] += chosen.size
        self._clean()
        waves = self._waves(at, distinct(chosen))
        return TieredBatch(partial(self._rows, at, chosen, next(waves), waves))

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """Fetch these too, where prefetching is on and the unit is an expert."""
        if not self.offload.prefetch or self.offload.unit == "layer":
            return
        at = layer - self.config.first_k_dense_replace
        loads = self._held[at].bring_ahead(ids.flatten().tolist())
        self._start(at, at, loads, ahead=True)

    def ledger(self) -> Ledger:
        """What was found and brought so far."""
        return self._ledger

    def take_moves(self) -> Moves:
        """What was moved since the last call."""
        with self._counting:
            taken, self._moves = self._moves, _Tally(self._layers)
        return Moves(
            tuple(taken.hits),
            tuple(taken.misses),
            tuple(taken.stall),
            tuple(taken.loads),
            dict(taken.bytes_moved),
        )

    def close(self) -> None:
        """End the reading threads; the store cannot be used afterwards."""
        self._readers.shutdown(cancel_futures=True)

    def _waves(self, at: int, ids: Sequence[int]) -> Iterator["_Here"]:
        """Experts in their slots, wave by wave; the fetching of each wave has begun."""
        if self.offload.unit == "layer":
            yield self._whole(at, ids)
            return
        held = self._held[at]
        for wave in held.waves(ids):
            self._start(at, at, wave.loads)
            for expert in wave.found:
                self._ahead.discard((at, expert))
            slots = {each: held.slot_of[each] for each in wave.found}
            slots |= {load.expert: load.slot for load in wave.loads}
            yield _Here(at, slots)

    def _whole(self, at: int, ids: Sequence[int]) -> "_Here":
        """The whole layer, and the next one begun if there is room for two."""
        held = self._held[0]
        for wave in held.waves([at]):
            for load in wave.loads:
                self._bring_layer(load)
                self._count_misses(at, len(ids))
        if self.offload.prefetch and self.room.frames > 1:
            for load in held.bring_ahead([(at + 1) % self._layers], keep=[at]):
                self._bring_layer(load, ahead=True)
        self._ahead -= {(at, expert) for expert in range(self.room.slots)}
        return _Here(held.slot_of[at], {expert: expert for expert in ids})

    def _bring_layer(self, load: Load, *, ahead: bool = False) -> None:
        every = range(self.room.slots)
        if load.evicted is not None:
            self._waste([(load.evicted, expert) for expert in every])
        loads = tuple(Load(expert, expert, None) for expert in every)
        self._start(load.expert, load.slot, loads, ahead=ahead)

    def _start(self, at: int, frame: int, loads: Sequence[Load], *, ahead: bool = False) -> None:
        """Begin to fetch."""
        after = self._used.get(frame) or self._link.used()
        for start in range(0, len(loads), self._together):
            now = loads[start : start + self._together]
            for load in now:
                earlier = self._pending.get((frame, load.slot))
                if earlier is not None:  # fetched ahead for another expert, and still on its way
                    earlier.exception()
                if load.evicted is not None:
                    self._waste([(at, load.evicted)])
                evicted = -1 if load.evicted is None else load.evicted
                self._moves.loads.append((at, load.slot, load.expert, evicted))
            job = self._readers.submit(self._fetch, at, frame, now, after)
            self._pending.update({(frame, load.slot): job for load in now})
        if ahead:
            self._ahead.update((at, load.expert) for load in loads)
            self._ledger.prefetched_bytes += len(loads) * self._slabs.layout.nbytes
        elif self.offload.unit == "expert":
            self._count_misses(at, len(loads))

    def _fetch(self, at: int, frame: int, loads: Sequence[Load], after: Event) -> Event:
        """In a reading thread: experts into their slots; the end of the last copy."""
        filled: Event = Past()
        for load in loads:
            filled, read, copied = self._host.bring(
                at, load.expert, self._slots, frame, load.slot, after
            )
            self._count_bytes(read, copied)
        return filled

    def _count_bytes(self, read: int, copied: int) -> None:
        moved = {DISK: read} if read else {}
        if copied and (self._host.slots or self.device.type != "cpu"):
            moved[HOST] = copied
        with self._counting:
            for link, count in moved.items():
                self._moves.bytes_moved[link] += count
                held = self._ledger.bytes_moved
                held[link] = held.get(link, 0) + count

    def _rows(
        self, at: int, chosen: NDArray[np.int64], here: "_Here", rest: Iterator["_Here"], x: Tensor
    ) -> Tensor:
        """Rows of all waves, the first of which has begun to come."""
        self._predict(at, x)
        slot_of = np.full(self.config.n_routed_experts, -1)
        out = None
        for wave in chain([here], rest):
            experts, slots = list(wave.slots), list(wave.slots.values())
            slot_of[experts] = slots
            places = torch.from_numpy(slot_of[chosen]).to(x.device)
            slot_of[experts] = -1
            ask = Ask(wave.frame, slots, places, partial(self._arrive, at, wave.frame))
            out = self._slots.rows(ask, x, out)
            self._used[wave.frame] = self._link.used()
        assert out is not None, "a forward asks for at least one expert"
        return out

    def _arrive(self, at: int, frame: int, slot: int) -> None:
        """Wait until this slot is filled; where it cannot be, its expert is no longer there."""
        job = self._pending.get((frame, slot))
        if job is None:
            return
        began = time.perf_counter()
        failed = job.exception()  # may be left by ^C: the next run waits for it again
        seconds = time.perf_counter() - began
        del self._pending[frame, slot]
        self._ledger.stall_seconds += seconds
        self._moves.stall[at] += seconds
        if failed is None:
            self._link.wait(job.result())
            return
        self._forget(frame, slot)
        for other in self._pending.values():
            other.exception()  # nothing may be on its way when the next run begins
        self._clean()
        raise failed

    def _clean(self) -> None:
        """Forget what was fetched in vain and not asked for since."""
        for (frame, slot), job in list(self._pending.items()):
            if job.done() and job.exception():
                del self._pending[frame, slot]
                self._forget(frame, slot)

    def _forget(self, frame: int, slot: int) -> None:
        """The slot could not be filled."""
        whole = self.offload.unit == "layer"
        held, lost = self._held[0 if whole else frame], frame if whole else slot
        for each in [each for each, where in held.slot_of.items() if where == lost]:
            held.drop(each)

    def _count_misses(self, at: int, count: int) -> None:
        self._ledger.misses += count
        self._ledger.hits -= count
        self._moves.misses[at] += count
        self._moves.hits[at] -= count

    def _waste(self, gone: Sequence[tuple[int, int]]) -> None:
        unused = self._ahead.intersection(gone)
        self._ahead -= unused
        self._ledger.wasted_bytes += len(unused) * self._slabs.layout.nbytes

    def _predict(self, at: int, x: Tensor) -> None:
        """Fetch ahead whom the next layer's router would choose first for this layer's input."""
        layer = at + self.config.first_k_dense_replace + 1
        if not self.offload.prefetch or len(x) > 1 or layer >= self.config.num_hidden_layers:
            return
        with self.dense(layer, "mlp.gate") as w:
            scores = F.linear(x.float(), w.weight.float()).sigmoid() + w.e_score_correction_bias
        self.hint(layer, scores.topk(AHEAD, -1).indices, 1.0)


class _Here(NamedTuple):
    """Experts of one wave, in their slots or on the way there."""

    frame: int
    slots: dict[int, int]  # by expert; first those that were found


class _Tally:
    """What was moved since it was last told."""

    def __init__(self, layers: int) -> None:
        self.hits, self.misses = [0] * layers, [0] * layers
        self.stall = [0.0] * layers
        self.loads: list[tuple[int, int, int, int]] = []
        self.bytes_moved: dict[str, int] = defaultdict(int)


@dataclass(frozen=True, slots=True)
class TieredBatch:
    """The chosen experts of one layer, on their way."""

    compute: Callable[[Tensor], Tensor]

    def rows(self, x: Tensor) -> Tensor:
        """Each chosen expert's output, unsummed: [token, slot, hidden] for x [token, hidden]."""
        return self.compute(x)
