"""Reading of a checkpoint folder: sharded safetensors files, validated before any byte is used.

`Shards` reads every header at once and the data of a tensor when it is asked for. A header that is
cut off, altered or at odds with the index or with the file's length is a CheckpointError.
What it is not: no check of the data itself. Files carry no checksum, so a bit that flips inside
tensor data cannot be seen here; compare the files' published SHA-256 sums for that. Nor can a
changed metadata text, or (without an index) a changed tensor name, before `check` compares the
names with those that the config implies.
Source: the safetensors format (8-byte little-endian length, JSON header, data without gaps).
"""

import json
import math
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from k2lab.errors import CheckpointError
from k2lab.spec.config import K2Config
from k2lab.spec.keys import ITEM_BYTES, ignorable, tensors

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header that the format allows."""

TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}
"""torch's name of each safetensors dtype."""

FETCH = "Fetch the file again from where the checkpoint was published and compare its SHA-256 sum."
SAME = "Fetch config.json, the index and all shards from one revision of one checkpoint."


class Header(NamedTuple):
    """What a shard's header says of one tensor."""

    dtype: str  # safetensors name, such as BF16
    shape: tuple[int, ...]
    file: Path


class _Place(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int  # first byte in the file
    end: int  # byte after the last


class Shards:
    """The tensors of a checkpoint folder by key."""

    def __init__(self, folder: Path) -> None:
        """Read all headers; CheckpointError names the first file that cannot be trusted."""
        self.folder = folder
        listed = _read_index(folder)
        self._places: dict[str, _Place] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        if listed is None:
            self._places = dict(_read_header(folder / SINGLE))
        else:
            for file, keys in listed.items():
                self._add(file, keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in the order of the files."""
        return tuple(self._places)

    @property
    def bytes_total(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(place.end - place.start for place in self._places.values())

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def header(self, key: str) -> Header:
        """Dtype, shape and file of one tensor."""
        place = self._place(key)
        return Header(place.dtype, place.shape, place.file)

    def span(self, key: str) -> tuple[int, int]:
        """First byte of the tensor's data in its file, and the byte after the last."""
        place = self._place(key)
        return place.start, place.end

    def read(self, key: str) -> "Tensor":
        """The tensor, on the CPU; its bytes are the file's pages, read when they are touched.

        Writing to it changes a private copy of the page, never the file.
        """
        import torch

        place = self._place(key)
        dtype = getattr(torch, TORCH_NAMES[place.dtype])
        count = math.prod(place.shape)
        if count == 0:
            return torch.empty(place.shape, dtype=dtype)
        pages = self._map(place.file)
        if place.start % ITEM_BYTES[place.dtype]:
            # A header that is not a multiple of 8 bytes long is legal and leaves data unaligned.
            copy = bytearray(pages[place.start : place.end])
            return torch.frombuffer(copy, dtype=dtype).reshape(place.shape)
        flat = torch.frombuffer(pages, dtype=dtype, count=count, offset=place.start)
        return flat.reshape(place.shape)

    def _place(self, key: str) -> _Place:
        try:
            return self._places[key]
        except KeyError:
            raise CheckpointError(
                f"{self.folder} has no tensor {key!r}.",
                expected=f"One of its {len(self._places)} tensors.",
                mend=SAME,
            ) from None

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            try:
                self._maps[file] = _map_private(file)
            except (OSError, ValueError) as error:
                raise _unreadable(file, error) from error
        return self._maps[file]

    def _add(self, file: Path, keys: set[str]) -> None:
        """Take the tensors of one shard, which have to be those that the index names."""
        found = dict(_read_header(file))
        if missing := keys - found.keys():
            raise CheckpointError(
                f"{file} lacks {_some(missing)}, which {INDEX} places there.",
                expected=f"{len(keys)} tensors in this shard.",
                mend=SAME,
            )
        if extra := found.keys() - keys:
            raise CheckpointError(
                f"{file} holds {_some(extra)}, which {INDEX} does not place there.",
                expected=f"{len(keys)} tensors in this shard.",
                mend=SAME,
            )
        self._places.update(found)


def check(shards: Shards, config: K2Config) -> None:
    """Nothing; CheckpointError where keys, shapes or dtypes differ from what the config implies."""
    expected = {spec.key: spec for spec in tensors(config)}
    found = set(shards.keys)
    if missing := expected.keys() - found:
        extra = found - expected.keys()
        unused = f" It holds {_some(extra)} instead." if extra else ""
        raise CheckpointError(
            f"{shards.folder} lacks {_some(missing)}.{unused}",
            expected=f"The {len(expected)} tensors that config.json implies.",
            mend=SAME,
        )
    if extra := {key for key in found - expected.keys() if not ignorable(key, config)}:
        first = shards.header(min(extra)).file
        raise CheckpointError(
            f"{shards.folder} holds {_some(extra)} (the first in {first.name}).",
            expected=f"No more than the {len(expected)} tensors that config.json implies.",
            mend=SAME,
        )
    for key, spec in expected.items():
        header = shards.header(key)
        if header.shape != spec.shape:
            raise CheckpointError(
                f"{header.file} holds {key} with the shape {list(header.shape)}.",
                expected=f"The shape {list(spec.shape)}, as config.json implies.",
                mend=SAME,
            )
        if header.dtype not in spec.dtypes:
            raise CheckpointError(
                f"{header.file} holds {key} as {header.dtype}.",
                expected=f"{' or '.join(spec.dtypes)}, as config.json implies.",
                mend=SAME,
            )


def _read_index(folder: Path) -> dict[Path, set[str]] | None:
    """The keys that the index places in each file; None for a checkpoint of a single file."""
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file() and single.is_file():
        raise CheckpointError(
            f"{folder} holds both {INDEX} and {SINGLE}.",
            expected="One of the two.",
            mend="Remove the one that does not belong to the checkpoint.",
        )
    if single.is_file():
        return None
    if not index.is_file():
        state = "is not a folder" if not folder.is_dir() else f"holds neither {INDEX} nor {SINGLE}"
        raise CheckpointError(
            f"{folder} {state}.",
            expected="A folder with safetensors files.",
            mend="Check the path, or fetch the checkpoint again.",
        )
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise _unreadable(index, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not JSON: {error}.", expected="A JSON object.", mend=FETCH
        ) from error
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(
            f"{index} has no weight_map.", expected="A file name for each tensor.", mend=FETCH
        )
    by_name: dict[str, set[str]] = {}
    for key, name in weights.items():
        if not isinstance(name, str):
            _misplaced(index, key, name)
        by_name.setdefault(name, set()).add(key)
    for name, keys in by_name.items():
        # A bare name only: an index must not reach outside its folder.
        if name in ("", ".", "..") or set(name) & set("/\\:\0"):
            _misplaced(index, min(keys), name)
    listed = {folder / name: keys for name, keys in by_name.items()}
    if absent := sorted(path.name for path in listed if not path.is_file()):
        raise CheckpointError(
            f"{folder} lacks {_some(absent)}, which {INDEX} names.",
            expected=f"All {len(listed)} shards.",
            mend="Fetch the missing shards; a broken download often ends this way.",
        )
    return listed


def _read_header(file: Path) -> Iterator[tuple[str, _Place]]:
    """Key and place of each tensor of one file, in the order of their data."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                _damaged(file, f"is {size} bytes long and claims a header of {length} bytes")
            text = stream.read(length)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(text) != length:
        _damaged(file, "ended while its header was read")
    try:
        # Strict UTF-8: json.loads would guess another encoding from the first bytes.
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        _damaged(file, f"has a header that is not JSON ({error})")
    if not isinstance(content, dict):
        _damaged(file, "has a header that is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _damaged(file, "has metadata other than texts")
    first = 8 + length
    places = sorted(
        ((key, _read_entry(file, key, entry, first)) for key, entry in content.items()),
        key=lambda item: (item[1].start, item[1].end),
    )
    end = first
    for key, place in places:
        if place.start != end:
            _damaged(file, f"has a gap or an overlap before the data of {key!r}")
        end = place.end
    if end != size:
        _damaged(file, f"is {size} bytes long, but its tensors end at byte {end}")
    yield from places


def _read_entry(file: Path, key: str, entry: Any, first: int) -> _Place:
    """One tensor's place, its length checked against its shape and dtype."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(file, f"describes {key!r} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _damaged(file, f"gives {key!r} the unknown dtype {dtype!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        _damaged(file, f"gives {key!r} a shape or offsets that are not lists of whole numbers")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        _damaged(file, f"gives {key!r} {end - start} bytes for {dtype} of shape {shape}")
    return _Place(dtype, tuple(shape), file, first + start, first + end)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _map_private(file: Path) -> mmap.mmap:
    """The file's pages, copied on write, so that torch takes them as an ordinary buffer."""
    with file.open("rb") as stream:
        if sys.platform != "linux":
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        # MAP_NORESERVE, unnamed before Python 3.13: a file larger than memory may be mapped too.
        no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
        flags = mmap.MAP_PRIVATE | no_reserve
        return mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; a key that stands twice is an error."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} stands twice")
            seen.add(key)
    return values


def _some(names: Iterable[str]) -> str:
    """The first three names in order, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def _damaged(file: Path, state: str) -> NoReturn:
    raise CheckpointError(f"{file} {state}.", expected="A whole safetensors file.", mend=FETCH)


def _misplaced(index: Path, key: str, name: object) -> NoReturn:
    raise CheckpointError(
        f"{index} places {key!r} in {name!r}.",
        expected="The name of a file in the same folder.",
        mend=FETCH,
    )


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be read: {error}.",
        expected="A readable file.",
        mend="Check its permissions and the disk.",
    )
