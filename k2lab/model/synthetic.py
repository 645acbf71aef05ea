"""Checkpoints of any width without the real weights: names, shapes, dtypes and files are real.

The numbers are random and scaled so that values inside the network neither vanish nor explode. They
come from a pool of a few million, a block at a time from another place of it: drawing each one
would take longer than the disk. So tensors differ, rows may repeat, and nothing can be learned from
what such a model says; its sizes, its files and its speed are those of a real one.
What it is not: a format of its own (`spec/keys.py` names the tensors), or a model that can speak.
"""

import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice, product
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from k2lab.errors import InputError
from k2lab.model.export import no_room, written_whole
from k2lab.paths import asset
from k2lab.spec.config import K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.spec.keys import TensorSpec, shard_of, tensors
from k2lab.tensors.int4 import LEVELS, OFFSET
from k2lab.tensors.shards import INDEX, TORCH_NAMES
from k2lab.text.tokenizer import RESERVED, Tokenizer

POOL = 2**22 + 9  # numbers; no multiple of any matrix's row
BLOCK = 2**23  # bytes written at once
CODE_SPREAD = 4.32  # standard deviation of codes drawn evenly from −7 … 7
FP8_SPREAD = 64.0  # standard deviation of FP8 codes; seven of them are representable
SMALL = 0.01  # standard deviation of the router's selection bias
SPARE = 2**30  # bytes of the disk that stay free

Report = Callable[[int], object]
"""Told how many bytes more have been written."""


def _silent(count: int) -> None:
    """Tells nobody."""


def write_synthetic(config: K2Config, folder: Path, report: Report = _silent) -> Path:
    """`folder`, new, with a checkpoint of this shape; the same bytes for the same config.

    InputError where the folder holds something or the disk is too small; whole or not there.
    """
    with written_whole(folder) as part:
        _check_room(config, folder, part)
        pool = _Pool(config)
        shards: dict[str, list[TensorSpec]] = {}
        for spec in tensors(config):
            shards.setdefault(shard_of(spec.key, config), []).append(spec)
        places = {spec.key: name for name, specs in shards.items() for spec in specs}
        for name, specs in shards.items():
            _write_shard(part / name, specs, pool, report)
        index = {"metadata": {"total_size": bytes_on_disk(config)}, "weight_map": places}
        (part / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        _tokenizer(config, folder.absolute().name).save(part)
        text = json.dumps(config.to_json(), indent=2, sort_keys=True)
        (part / "config.json").write_text(text + "\n")
    return folder


def _check_room(config: K2Config, folder: Path, part: Path) -> None:
    free, size = shutil.disk_usage(part).free - SPARE, bytes_on_disk(config)
    if size > free:
        layers = config.num_hidden_layers
        while layers and _size(config, layers) > free:
            layers -= 1
        mend = f"Ask for {layers} layers at most." if layers else "Choose another disk."
        raise no_room(size, free, folder, mend)


def _size(config: K2Config, layers: int) -> int:
    return bytes_on_disk(cut(config, layers))


def cut(
    config: K2Config, layers: int, *, experts: int | None = None, vocabulary: int | None = None
) -> K2Config:
    """The config with its first `layers` layers alone, and fewer experts or tokens if asked.

    Its special tokens are the last 256 ids, as in every K2 model, where the vocabulary is cut.
    """
    _at_most("layers", layers, 1, config.num_hidden_layers)
    dense = min(config.first_k_dense_replace, layers)
    found = replace(config, num_hidden_layers=layers, first_k_dense_replace=dense)
    if experts is not None:
        least = config.num_experts_per_tok
        _at_most("experts", experts, least, config.n_routed_experts)
        found = replace(found, n_routed_experts=experts, n_group=1, topk_group=1)
    if vocabulary is not None:
        _at_most("tokens", vocabulary, 2 * RESERVED, config.vocab_size)
        first = vocabulary - RESERVED
        found = replace(
            found,
            vocab_size=vocabulary,
            bos_token_id=first,
            eos_token_id=first + 2,
            pad_token_id=vocabulary - 1,
        )
    return found


def _at_most(name: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise InputError(
            f"{count} {name} of a model that has {most}.",
            expected=f"{least} to {most}.",
            mend=f"Ask for another number of {name}.",
        )


def _write_shard(file: Path, specs: list[TensorSpec], pool: "_Pool", report: Report) -> None:
    """One safetensors file, its tensors in the library's order: wide dtypes first, then by name."""
    ordered = sorted(specs, key=lambda spec: (-_item(spec.dtype).itemsize, spec.dtype, spec.key))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in ordered:
        header[spec.key] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of eight
    with _Writer(file) as writer:
        writer.write(np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8))
        for spec in ordered:
            for block in pool.bytes_of(spec):
                writer.write(block)
                report(len(block))


class _Writer:
    """A new file, written in whole blocks past the page cache where the system can do that.

    Through the cache the same disk took a quarter of the bytes a second (measured).
    """

    def __init__(self, file: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            self._fd = os.open(file, flags | getattr(os, "O_DIRECT", 0), 0o644)
        except OSError:  # a file system without it
            file.unlink(missing_ok=True)
            self._fd = os.open(file, flags, 0o644)
        self._pages = mmap.mmap(-1, BLOCK)  # begins at a page, as such writes have to
        self._held, self._size = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush(-(-self._held // mmap.PAGESIZE) * mmap.PAGESIZE)
                os.ftruncate(self._fd, self._size)
        finally:
            os.close(self._fd)

    def write(self, data: NDArray[np.uint8]) -> None:
        """Append these bytes."""
        view = data.data
        self._size += len(view)
        while view:
            fits = min(len(view), BLOCK - self._held)
            self._pages[self._held : self._held + fits] = view[:fits]
            self._held, view = self._held + fits, view[fits:]
            if self._held == BLOCK:
                self._flush(BLOCK)

    def _flush(self, count: int) -> None:
        done = 0
        with memoryview(self._pages) as pages:
            while done < count:
                done += os.write(self._fd, pages[done:count])
        self._held = 0


class _Pool:
    """Random numbers that are drawn once and scaled once for each width."""

    def __init__(self, config: K2Config) -> None:
        self._width, self._inner = config.hidden_size, config.moe_intermediate_size
        draw = np.random.Generator(np.random.SFC64(20251106))
        self._normal = torch.from_numpy(draw.standard_normal(POOL, np.float32))
        self._scaled: dict[tuple[str, float, float], NDArray[np.uint8]] = {}
        stored = (OFFSET - LEVELS, OFFSET + LEVELS + 1)  # codes −7 … 7
        low, high = draw.integers(*stored, (2, POOL), np.uint8)
        self._codes: NDArray[np.uint8] = low | high << 4

    def bytes_of(self, spec: TensorSpec) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a tensor, block by block."""
        if spec.key.endswith(".weight_shape"):
            shape = self._width, self._inner
            if ".down_proj." not in spec.key:
                shape = shape[::-1]
            yield np.array(shape, np.int32).view(np.uint8)
            return
        source, item = self._source(spec), _item(spec.dtype).itemsize
        where = np.random.Generator(np.random.SFC64(zlib.crc32(spec.key.encode())))
        left = spec.nbytes
        while left:
            start = int(where.integers(len(source) // item)) * item
            block = source[start : start + min(left, BLOCK)]
            left -= len(block)
            yield block

    def _source(self, spec: TensorSpec) -> NDArray[np.uint8]:
        if spec.key.endswith(".weight_packed"):
            return self._codes
        if spec.key.endswith(".weight_scale"):
            # Codes times scale have the spread of the matrix: 32 columns a group.
            mean = (spec.shape[1] * 32) ** -0.5 / CODE_SPREAD
            return self._numbers(spec.dtype, mean, mean / 8)
        if spec.key.endswith(".e_score_correction_bias"):
            return self._numbers(spec.dtype, 0.0, SMALL)
        if len(spec.shape) == 1:
            return self._numbers(spec.dtype, 1.0, 0.0)
        if spec.dtype == "F8_E4M3":
            return self._numbers(spec.dtype, 0.0, FP8_SPREAD)
        if spec.key.endswith(".weight_scale_inv"):
            mean = (spec.shape[1] * 128) ** -0.5 / FP8_SPREAD
            return self._numbers(spec.dtype, mean, mean / 8)
        embedding = spec.part == "embedding"
        return self._numbers(spec.dtype, 0.0, 1.0 if embedding else spec.shape[1] ** -0.5)

    def _numbers(self, dtype: str, mean: float, spread: float) -> NDArray[np.uint8]:
        found = self._scaled.get((dtype, mean, spread))
        if found is None:
            scaled = (self._normal * spread + mean).to(_item(dtype))
            found = self._scaled[dtype, mean, spread] = scaled.view(torch.uint8).numpy()
        return found


def _item(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, TORCH_NAMES[dtype])
    return found


def _tokenizer(config: K2Config, name: str) -> Tokenizer:
    """As many ids as the model has: bytes, then whatever fills the table; K2's special tokens."""
    nano = Tokenizer.from_folder(asset("k2-nano"))
    first = nano.n_vocab - RESERVED
    count = config.vocab_size - RESERVED
    every = chain.from_iterable(product(range(256), repeat=length) for length in (1, 2, 3))
    ranks = {bytes(piece): rank for rank, piece in enumerate(islice(every, count))}
    named = {
        name: count + number - first
        for name, number in nano.specials.items()
        if not name.startswith("<|reserved_token_")
    }
    lab = {"name": f"{name}, random weights"}
    return Tokenizer(ranks, named, lab=lab)
