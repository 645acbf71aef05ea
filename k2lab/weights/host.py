"""Host memory on the way of an expert: a cache of slabs, and buffers for those it does not keep.

Each MoE layer has its own part of the cache, and whoever was not asked for longest leaves.
What it is not: the device's slots; a slab that lies here still has to be copied there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock, Semaphore

from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.weights.budget import Offload
from k2lab.weights.forms import Form
from k2lab.weights.links import Event, Link, Past
from k2lab.weights.residency import Lru, Residency
from k2lab.weights.slab import Slabs


class Host:
    """Slabs in memory from which the link copies fast."""

    def __init__(self, config: K2Config, slabs: Slabs, offload: Offload, link: Link) -> None:
        self._slabs, self._first = slabs, config.first_k_dense_replace
        layers, nbytes = len(config.moe_layers), slabs.layout.nbytes
        self.slots = min(config.n_routed_experts, offload.host_budget // max(1, layers * nbytes))
        memory = link.arena(layers * self.slots * nbytes)
        self._arena = memory.view(layers, self.slots, nbytes)
        self._policies = [Lru() for _ in range(layers)]
        self._held = [Residency(self.slots, policy) for policy in self._policies]
        self._busy: set[tuple[int, int]] = set()  # (layer, expert) somebody reads or copies
        self._lock = Lock()
        # Whoever has read lets the next one read while it fills its slot. Did all read at once, all
        # would fill at once, and the disk would wait.
        self._reading = Semaphore(max(1, offload.threads // 2))
        self._buffers: SimpleQueue[Tensor] = SimpleQueue()
        for buffer in link.arena(offload.threads * nbytes).view(offload.threads, nbytes):
            self._buffers.put(buffer)

    def bring(
        self, at: int, expert: int, slots: Form, frame: int, slot: int, after: Event
    ) -> tuple[Event, int, int]:
        """One expert of the MoE layer `at` into its slot, once `after` has happened.

        The end of the copy, which has happened, the bytes read from files, and those copied.
        """
        place = slots.place(frame, slot)
        if place is not None:
            after.synchronize()
        with self._slab(at, expert, place) as (slab, read):
            if slab is place:
                return Past(), read, 0
            filled = slots.fill(frame, slot, slab, after)
            filled.synchronize()  # the slab may be overwritten from here on
            return filled, read, slab.numel()

    @contextmanager
    def _slab(self, at: int, expert: int, place: Tensor | None) -> Iterator[tuple[Tensor, int]]:
        """One expert, for the time of the block, and bytes read for it; in `place` if not kept."""
        slot, present = self._claim(at, expert)
        if slot is None:
            yield from self._passing(at, expert, place)
            return
        try:
            slab, read = self._arena[at, slot], 0
            if not present:
                try:
                    read = self._read(at, expert, slab)
                except BaseException:
                    with self._lock:
                        self._held[at].drop(expert)
                    raise
            yield slab, read
        finally:
            with self._lock:
                self._busy.discard((at, expert))

    def _passing(self, at: int, expert: int, place: Tensor | None) -> Iterator[tuple[Tensor, int]]:
        """To its place or through a buffer, kept by nobody."""
        if place is not None:  # nothing is filled that others could read beside
            yield place, self._slabs.read_into(at + self._first, expert, place.numpy())
            return
        buffer = self._buffers.get()
        try:
            yield buffer, self._read(at, expert, buffer)
        finally:
            self._buffers.put(buffer)

    def _read(self, at: int, expert: int, slab: Tensor) -> int:
        with self._reading:
            return self._slabs.read_into(at + self._first, expert, slab.numpy())

    def _claim(self, at: int, expert: int) -> tuple[int | None, bool]:
        """The slot for an expert and whether it is there; None: all slots are in use just now."""
        held = self._held[at]
        with self._lock:
            if (at, expert) in self._busy:
                return None, False
            present = expert in held.slot_of
            if not present:
                busy = [other for layer, other in self._busy if layer == at]
                if not held.bring_ahead([expert], keep=busy):
                    return None, False
            self._policies[at].asked([expert])
            self._busy.add((at, expert))
            return held.slot_of[expert], present
