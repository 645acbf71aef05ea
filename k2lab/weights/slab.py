"""Reading of experts from the original shards: one expert is one slab of bytes.

A slab holds the codes of gate, up and down and then their scales (or the three plain matrices),
without what nobody computes with. It is read by positioned reads into memory that is there
already, from any thread. Before each read the file is looked at: one that is gone, shorter or
another one since it was opened is a CheckpointError which names the file and the tensor; once the
old content is back, reading goes on. Unlike a mapped page, a lost one never kills the process.
What it is not: a cache; pages that the system keeps are shared by all who read the file.
"""

import hashlib
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.errors import CheckpointError
from k2lab.spec.config import K2Config
from k2lab.spec.keys import expert_leaves
from k2lab.tensors.shards import TORCH_NAMES, Shards
from k2lab.tensors.stored import leaves

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
SCRAP = 4096  # bytes between two tensors that are cheaper to read along than to jump over
STRETCH = 2**24  # bytes of a large tensor that one thread reads at once
STRETCHES = 4  # threads that do
SAMPLE = 2**16  # bytes at either end of a file's data by which it is known from another
AGAIN = "Put the file back as it was, then run again: the session goes on."

Bytes = NDArray[np.uint8]


class Part(NamedTuple):
    """One tensor of an expert, and where it lies in the slab."""

    name: str  # relative to the expert, such as `gate_proj.weight_packed`
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The slab of one expert."""

    parts: tuple[Part, ...]
    nbytes: int

    def view(self, slab: Tensor) -> dict[str, Tensor]:
        """The tensors in a slab (uint8 [nbytes], on any device), by name."""
        return {
            part.name: slab[part.start : part.stop].view(part.dtype).view(part.shape)
            for part in self.parts
        }

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of one matrix's tensors, such as `weight_packed` and `weight_scale`."""
        return tuple(dict.fromkeys(part.name.partition(".")[2] for part in self.parts))

    def gate_up(self, slab: Tensor, leaf: str) -> Tensor:
        """Gate and up, which lie side by side: [..., 2, …] of slabs [..., nbytes]."""
        gate, up = (self.part(f"{name}.{leaf}") for name in PROJECTIONS[:2])
        return slab[..., gate.start : up.stop].view(gate.dtype).unflatten(-1, (2, *gate.shape))

    def down(self, slab: Tensor, leaf: str) -> Tensor:
        """The matrix down, [..., hidden, …] of slabs [..., nbytes]."""
        part = self.part(f"down_proj.{leaf}")
        return slab[..., part.start : part.stop].view(part.dtype).unflatten(-1, part.shape)

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)


class _Piece(NamedTuple):
    file: Path
    offset: int  # of the first byte in the file
    targets: tuple[tuple[int, int], ...]  # slices of the slab; (−n, 0) skips n bytes


class Slabs:
    """The experts of a checkpoint folder, and its other tensors."""

    def __init__(self, shards: Shards, config: K2Config) -> None:
        """Opens every shard; the headers have been checked by `shards`."""
        self.config, self._shards = config, shards
        self.layout = layout(config)
        self._plans: dict[tuple[int, int], tuple[_Piece, ...]] = {}
        ends: dict[Path, int] = {}
        for key in shards.keys:
            file, end = shards.header(key).file, shards.span(key)[1]
            ends[file] = max(end, ends.get(file, 0))
        self._files = {file: _File(file, size) for file, size in ends.items()}

    def read_into(self, layer: int, expert: int, slab: Bytes) -> int:
        """Fill `slab` with one expert; the number of bytes read from files."""
        count = 0
        for piece in self._plan(layer, expert):
            buffers = [
                slab[start:stop] if start >= 0 else np.empty(-start, np.uint8)
                for start, stop in piece.targets
            ]
            count += sum(map(len, buffers))
            self._fill(piece.file, piece.offset, buffers)
        return count

    def read(self, key: str) -> Tensor:
        """A tensor of the checkpoint, on the CPU, in memory of its own."""
        header = self._shards.header(key)
        start, stop = self._shards.span(key)
        data = np.empty(stop - start, np.uint8)
        places = range(0, len(data), STRETCH)
        if len(places) > 1:
            # One read waits for its own pages; several keep the disk busy.
            with ThreadPoolExecutor(STRETCHES, thread_name_prefix="k2lab-read") as readers:
                stretches = (data[place : place + STRETCH] for place in places)
                read = partial(self._stretch, header.file)
                list(readers.map(read, (start + place for place in places), stretches))
        elif places:
            self._stretch(header.file, start, data)
        dtype = getattr(torch, TORCH_NAMES[header.dtype])
        return torch.from_numpy(data).view(dtype).view(header.shape)

    def _stretch(self, file: Path, offset: int, data: Bytes) -> None:
        self._fill(file, offset, [data])

    def _fill(self, file: Path, offset: int, buffers: list[Bytes]) -> None:
        self._files[file].fill(offset, buffers, lambda place: self._tensor_at(file, place))

    def _plan(self, layer: int, expert: int) -> tuple[_Piece, ...]:
        found = self._plans.get((layer, expert))
        if found is None:
            base = f"model.layers.{layer}.mlp.experts.{expert}"
            found = self._plans[layer, expert] = _plan(self._shards, base, self.layout)
        return found

    def _tensor_at(self, file: Path, place: int) -> str:
        """The tensor that holds this byte of the file."""
        for key in self._shards.keys:
            start, stop = self._shards.span(key)
            if start <= place < stop and self._shards.header(key).file == file:
                return key
        return "what lies between its tensors"


class _File:
    """One shard, open for reading; opened again when another file stands in its place."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._lock = threading.Lock()
        self._handle = _Handle(path)
        self._sum = self._handle.sum()

    def fill(self, offset: int, buffers: list[Bytes], tensor_at: Callable[[int], str]) -> None:
        """All buffers, one after the other, from `offset` on."""
        place = offset
        try:
            handle = self._current()
            while buffers:
                done = os.preadv(handle.fd, [each.data for each in buffers], place)
                if done == 0:
                    raise EOFError(f"it ends at byte {place}")
                place += done
                while buffers and done >= len(buffers[0]):
                    done -= len(buffers.pop(0))
                if buffers and done:
                    buffers[0] = buffers[0][done:]
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read at {tensor_at(place)}: {error}.",
                expected=f"the file of {self.size} bytes that was there when it was loaded.",
                mend=AGAIN,
            ) from error

    def _current(self) -> "_Handle":
        """The open file, if it is still the one in the folder, or the one that came back."""
        with self._lock:
            if _identity(self.path.stat()) != self._handle.identity:
                fresh = _Handle(self.path)
                if fresh.identity.size != self.size:
                    raise EOFError(f"it is {fresh.identity.size} bytes long")
                if fresh.sum() != self._sum:
                    raise EOFError("it holds other tensors")
                self._handle = fresh
            return self._handle


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    changed: int


class _Handle:
    """A file descriptor that is closed when its last reader lets go."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.identity = _identity(os.fstat(self.fd))
        if hasattr(os, "posix_fadvise"):
            # Reads are large and whole: what the system would read ahead is another expert (a
            # third more bytes from the disk, measured).
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def sum(self) -> bytes:
        """The SHA-256 of the header, lengths and names of all tensors, and of some of the data."""
        length = int.from_bytes(os.pread(self.fd, 8, 0), "little")
        begin = os.pread(self.fd, 8 + length + SAMPLE, 0)
        end = os.pread(self.fd, SAMPLE, max(0, self.identity.size - SAMPLE))
        return hashlib.sha256(begin + end).digest()


def _identity(found: os.stat_result) -> _Identity:
    return _Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def layout(config: K2Config) -> Layout:
    """Codes first, then scales, gate and up side by side; the same for every expert."""
    if not config.moe_layers:
        return Layout((), 0)
    found = {name: (shape, dtype) for name, shape, dtype in expert_leaves(config)}
    parts, place = [], 0
    for leaf in leaves(config):
        for name in PROJECTIONS:
            shape, stored = found[f"{name}.{leaf}"]
            # FP8 lies there as bytes until it is widened.
            dtype = torch.uint8 if stored == "F8_E4M3" else getattr(torch, TORCH_NAMES[stored])
            stop = place + math.prod(shape) * dtype.itemsize
            parts.append(Part(f"{name}.{leaf}", place, stop, dtype, shape))
            place = stop
    return Layout(tuple(parts), place)


def _plan(shards: Shards, base: str, layout: Layout) -> tuple[_Piece, ...]:
    """The fewest reads that bring all parts, in the order of the file."""
    spans = []
    for part in layout.parts:
        key = f"{base}.{part.name}"
        spans.append((shards.header(key).file, *shards.span(key), part))
    pieces: list[_Piece] = []
    end = -1
    for file, start, stop, part in sorted(spans, key=lambda span: span[:3]):
        target, first, gap = ((part.start, part.stop),), start, start - end
        if pieces and pieces[-1].file == file and 0 <= gap <= SCRAP:
            skipped = ((-gap, 0),) if gap else ()
            last = pieces.pop()
            target = (*last.targets, *skipped, *target)
            first = last.offset
        pieces.append(_Piece(file, first, target))
        end = stop
    return tuple(pieces)
