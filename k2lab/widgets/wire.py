"""Arrays to buffers: the only serialiser between Python and the front end.

A frame is a small JSON header and one binary buffer. Numbers never travel as JSON lists (300
updates of a growing list took 9.9 s where 1000 binary frames took 0.3 s); texts do, as lists of
strings. The other half is `unpack` in widgets/_numbers.js.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import ExpertsMoved
from k2lab.text.messages import without_surrogates
from k2lab.trace.trace import About, CallRecord, Trace

CALL = tuple(each.name for each in fields(CallRecord))
"""What is told of a call; `asdict` would copy what needs no copy."""

LONGEST_TEXT = 20_000
"""Characters of a tool's arguments or result that are shown; more would only slow the page."""


TYPES = {np.dtype(name): name for name in ("uint8", "uint16", "uint32", "float16", "float32")}
"""Names of the types; numpy makes up a `dtype.name` each time, which was most of a frame's cost."""


def pack(arrays: Mapping[str, NDArray[Any]]) -> tuple[str, list[bytes]]:
    """The layout "name:type:AxB …", and all arrays behind each other, little-endian, as one buffer.

    Each buffer is a part of a message of its own, which every hop on the way handles by itself: 17
    of them cost more than what is in them.
    """
    layout = " ".join(
        f"{name}:{TYPES[array.dtype]}:{'x'.join(map(str, array.shape))}"
        for name, array in arrays.items()
    )
    return layout, [b"".join([array.tobytes() for array in arrays.values()])] if arrays else []


def unpack(layout: str, buffers: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` packed."""
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for entry in layout.split():
        name, dtype, sides = entry.split(":")
        shape = [int(side) for side in sides.split("x")]
        array = np.frombuffer(buffers[0], dtype, count=math.prod(shape), offset=at)
        arrays[name], at = array.reshape(shape), at + array.nbytes
    assert at == sum(map(len, buffers)), "the layout does not say what the buffer has"
    return arrays


def frame(
    trace: Trace, tokens: slice, routed: slice, moved: slice = slice(0)
) -> tuple[dict[str, Any], list[bytes]]:
    """Header and buffer with the given tokens, their routing, and what was brought for them."""
    tops = trace.top[tokens]
    flat = [entry for top in tops for entry in top]
    arrays: dict[str, NDArray[Any]] = {
        "ids": trace.ids[tokens].view(np.uint32),
        "kinds": trace.kinds[tokens],
        "entropy": trace.entropy[tokens],
        "logprob": trace.logprob[tokens],
        "seconds": trace.seconds[tokens],
        "top_count": np.array([len(top) for top in tops], np.uint8),
        "top_ids": np.array([id_ for id_, _, _ in flat], np.uint32),
        "top_p": np.array([p for _, _, p in flat], np.float16),
    }
    if routed.start != routed.stop:
        arrays["experts"] = trace.experts[routed]
        arrays["weights"] = trace.weights[routed]
        arrays["margin"] = trace.margin[routed]
    moves = trace.moved[moved]
    links = sorted({link for each in moves for link in each.bytes_moved})
    layout, buffers = pack(arrays | _moves(moves, links) if moves else arrays)
    header = {
        "type": "frame",
        "start": tokens.start,
        "routed": routed.start,
        "moved": moved.start or 0,
        "links": links,
        "arrays": layout,
        "texts": trace.texts[tokens],
        "tops": [text for _, text, _ in flat],
    }
    return header, buffers


def _moves(moves: Sequence[ExpertsMoved], links: Sequence[str]) -> dict[str, NDArray[Any]]:
    """What was brought, by forward; bytes [move, link] as float32: K2 moves over 4 GiB a token."""
    brought = [[each.bytes_moved.get(link, 0) for link in links] for each in moves]
    return {
        "move_start": np.array([each.start for each in moves], np.uint32),
        "move_tokens": np.array([each.tokens for each in moves], np.uint32),
        "move_stall": np.array([each.stall.sum() for each in moves], np.float32),
        "move_hits": np.array([each.hits.sum() for each in moves], np.uint32),
        "move_misses": np.array([each.misses.sum() for each in moves], np.uint32),
        "move_bytes": np.array(brought, np.float32).reshape(len(moves), len(links)),
    }


def call(place: int, record: CallRecord) -> dict[str, Any]:
    """A tool call as the front end gets it; very long texts are cut, and say so."""
    message: dict[str, Any] = {name: getattr(record, name) for name in CALL}
    message["place"] = place
    for name in ("arguments", "content", "shown"):
        if message[name] is None:
            continue
        text = message[name] = without_surrogates(message[name])  # no message can carry them
        if len(text) > LONGEST_TEXT:
            cut = len(text) - LONGEST_TEXT
            message[name] = f"{text[:LONGEST_TEXT]}\n… {cut:,} more characters are not shown"
    return message


def about(facts: About) -> dict[str, Any]:
    """What the trace is a trace of, for the front end."""
    return asdict(facts)
