"""A safetensors file as NumPy arrays that are read when they are touched.

The header is checked before any byte is used: a file that is no safetensors file, is cut off or was
altered is a TraceError. Not here: what the arrays mean (`file.py`).
Source: the safetensors format (8-byte little-endian length, JSON header, data without gaps).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.errors import MissingError, TraceError

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header that the format allows."""

SIDES = 8
"""Sides of the largest array; a trace's have at most 4."""

TYPES = {
    "U8": "<u1",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
"""NumPy's name of each safetensors dtype that a trace uses."""

Arrays = dict[str, NDArray[Any]]


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Read-only arrays by name and the header's metadata."""
    try:
        pages = np.memmap(path, np.uint8, "r")
    except FileNotFoundError as error:
        raise MissingError(
            f"There is no file {path}.",
            expected="a trace that `trace.save` wrote.",
            mend="check the path; relative ones begin in the notebook's folder.",
        ) from error
    except (OSError, ValueError) as error:
        raise foreign(path, f"cannot be read: {error}") from error
    header, start = _header(pages, path)
    metadata = header.pop("__metadata__", {})
    data = pages[start:]
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=_first_byte):
        try:
            arrays[name] = _array(data[end:], entry, end)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            why = f"its header is wrong about '{name:.40}': {error!s:.80}"
            raise damaged(path, why) from error
        end += arrays[name].nbytes
    if end != len(data):
        raise damaged(path, f"{len(data) - end:,} bytes belong to no array")
    if not isinstance(metadata, dict):
        raise damaged(path, "its metadata is no object")
    return arrays, metadata


def foreign(path: Path, why: str) -> TraceError:
    """The error of a file that is something else."""
    return TraceError(
        f"{path} is not a trace: it {why}.",
        expected="a `.k2trace` file, as `trace.save` writes it.",
        mend="name another file.",
    )


def damaged(path: Path, why: str) -> TraceError:
    """The error of a trace that was cut off or altered."""
    return TraceError(
        f"{path} is damaged: {why}.",
        expected="the file as it was written, all of it.",
        mend="copy or fetch the file again, or record the run again.",
    )


def _header(pages: NDArray[Any], path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON object, and where the data begins."""
    if len(pages) < 8:
        raise foreign(path, f"has only {len(pages)} bytes")
    length = int.from_bytes(pages[:8].tobytes(), "little")
    if length > HEADER_LIMIT or pages[8:9].tobytes() not in (b"{", b""):
        raise foreign(path, "does not begin like one")
    if 8 + length > len(pages):
        raise damaged(path, f"its header ends at byte {8 + length:,} of {len(pages):,}")
    try:
        header = json.loads(pages[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no object")
    return header, 8 + length


def _array(rest: NDArray[Any], entry: Any, begin: int) -> NDArray[Any]:
    """The array of a header's entry; its bytes are the first of `rest`, which begins at `begin`."""
    dtype = np.dtype(TYPES[entry["dtype"]])
    shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
    if len(shape) > SIDES or not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise ValueError("its shape or its place is none")
    length = math.prod(shape) * dtype.itemsize
    if (first, last) != (begin, begin + length) or length > len(rest):
        raise ValueError("it does not lie where it should")
    return rest[:length].view(dtype).reshape(shape)


def _first_byte(item: tuple[str, Any]) -> tuple[int, int]:
    """Where an array begins, for sorting; empty ones first."""
    try:
        first, last = item[1]["data_offsets"]
        return (first, last) if type(first) is type(last) is int else (-1, -1)
    except (KeyError, TypeError, ValueError):
        return -1, -1
