"""The way from host memory to the compute device: pinned memory, a copy stream, events.

A copy waits until the network is done with the slot, and the network waits for the copy: both by
events, so that copies and arithmetic run at the same time. Pinned memory is taken in its exact
size: `Tensor.pin_memory` rounds each block up to a power of two.
What it is not: no thread, no cache; `weights/tiered.py` decides what goes where.
"""

import mmap
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from k2lab.errors import InputError


class Event(Protocol):
    """Something that will have happened."""

    def synchronize(self) -> None:
        """Return once it has."""
        ...


class Link(Protocol):
    """Copies from host memory to one device."""

    apart: bool
    """Whether the device's memory is another one, into which no file can be read."""

    def arena(self, nbytes: int) -> Tensor:
        """Host memory, uint8 [nbytes], from which this link copies at full speed."""
        ...

    def used(self) -> Event:
        """All that the network has been told to compute so far."""
        ...

    def copy(self, source: Tensor, target: Tensor, after: Event) -> Event:
        """Begin to copy once `after` has happened; the end of the copy."""
        ...

    def wait(self, event: Event) -> None:
        """What the network is told to compute from now on waits for `event`."""
        ...


class Past:
    """An event that has happened."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Direct:
    """The device is the CPU: a copy is done when it returns."""

    apart = False

    def arena(self, nbytes: int) -> Tensor:
        """Plain memory, not touched yet."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def used(self) -> Event:
        """The CPU has computed what it was told to."""
        return Past()

    def copy(self, source: Tensor, target: Tensor, after: Event) -> Event:
        """The copy itself."""
        after.synchronize()
        target.copy_(source)
        return Past()

    def wait(self, event: Event) -> None:
        """The copy is done."""
        event.synchronize()


class _Pages(mmap.mmap):
    """Memory that is no longer pinned when the system gets it back.

    The system may give the same addresses again, and CUDA refuses to pin what it thinks is pinned.
    """

    last: Callable[[], object] | None = None

    def __del__(self) -> None:
        if self.last is not None:
            self.last()


class Cuda:
    """A GPU: copies on a stream of their own."""

    apart = True

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        """`cuda` is torch.cuda, or what stands in for it where there is no GPU."""
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)

    def arena(self, nbytes: int) -> Tensor:
        """Pinned memory of exactly this size, until the last tensor in it is gone."""
        pages, runtime = _Pages(-1, max(nbytes, 1)), self._cuda.cudart()
        memory = torch.frombuffer(pages, dtype=torch.uint8)[:nbytes]
        address = memory.data_ptr()
        # cudaHostRegister gives 0 for success.
        if nbytes and (code := int(runtime.cudaHostRegister(address, nbytes, 0))):
            raise InputError(
                f"{nbytes} bytes of host memory cannot be pinned (CUDA error {code}).",
                expected="a host budget that the system lets one process lock.",
                mend="Give a smaller host_budget.",
            )
        if nbytes:
            pages.last = partial(runtime.cudaHostUnregister, address)
        return memory

    def used(self) -> Event:
        """What has been put on the network's stream so far."""
        return self._record(self._cuda.current_stream(self._device))

    def copy(self, source: Tensor, target: Tensor, after: Event) -> Event:
        """Puts the copy on the copy stream."""
        with self._cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self._record(self._stream)

    def wait(self, event: Event) -> None:
        """Holds back the network's stream, not this thread."""
        self._cuda.current_stream(self._device).wait_event(event)

    def _record(self, stream: Any) -> Any:
        event = self._cuda.Event()
        event.record(stream)
        return event
