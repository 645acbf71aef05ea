"""Arrays to buffers: the only serialiser between Python and the front end.

A frame is a small JSON header and one binary buffer per array. Numbers never travel as JSON lists
(300 updates of a growing list took 9.9 s where 1000 binary frames took 0.3 s); texts do, as lists
of strings. The other half is `unpack` in widgets/_kit.js.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.trace.trace import About, CallRecord, Trace

LONGEST_TEXT = 20_000
"""Characters of a tool's arguments or result that are shown; more would only slow the page."""


def pack(arrays: Mapping[str, NDArray[Any]]) -> tuple[str, list[bytes]]:
    """The layout "name:type:AxB …" and one little-endian buffer per array."""
    layout = " ".join(
        f"{name}:{array.dtype.name}:{'x'.join(map(str, array.shape))}"
        for name, array in arrays.items()
    )
    return layout, [np.ascontiguousarray(array).tobytes() for array in arrays.values()]


def unpack(layout: str, buffers: list[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` packed."""
    arrays: dict[str, NDArray[Any]] = {}
    for entry, buffer in zip(layout.split(), buffers, strict=True):
        name, dtype, shape = entry.split(":")
        arrays[name] = np.frombuffer(buffer, dtype).reshape([int(n) for n in shape.split("x")])
    return arrays


def frame(
    trace: Trace, tokens: slice, routed: slice, moved: slice = slice(0)
) -> tuple[dict[str, Any], list[bytes]]:
    """Header and buffers with the given tokens, their routing, and what was brought for them."""
    moves = trace.moved[moved]
    links = sorted({link for each in moves for link in each.bytes_moved})
    tops = trace.top[tokens]
    flat = [entry for top in tops for entry in top]
    layout, buffers = pack(
        {
            "ids": trace.ids[tokens].astype(np.uint32),
            "kinds": trace.kinds[tokens],
            "entropy": trace.entropy[tokens],
            "logprob": trace.logprob[tokens],
            "seconds": trace.seconds[tokens],
            "top_count": np.array([len(top) for top in tops], np.uint8),
            "top_ids": np.array([id_ for id_, _, _ in flat], np.uint32),
            "top_p": np.array([p for _, _, p in flat], np.float16),
            "experts": trace.experts[routed],
            "weights": trace.weights[routed],
            "margin": trace.margin[routed],
            "move_start": np.array([each.start for each in moves], np.uint32),
            "move_tokens": np.array([each.tokens for each in moves], np.uint32),
            "move_stall": np.array([each.stall.sum() for each in moves], np.float32),
            "move_hits": np.array([each.hits.sum() for each in moves], np.uint32),
            "move_misses": np.array([each.misses.sum() for each in moves], np.uint32),
            "move_bytes": np.array(  # [move, link]; float32, as K2 moves more than 4 GiB a token
                [[each.bytes_moved.get(link, 0) for link in links] for each in moves], np.float32
            ).reshape(len(moves), len(links)),
        }
    )
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


def call(place: int, record: CallRecord) -> dict[str, Any]:
    """A tool call as the front end gets it; very long texts are cut, and say so."""
    message = asdict(record) | {"place": place}
    for name in ("arguments", "content", "shown"):
        text = message[name]
        if text is not None and len(text) > LONGEST_TEXT:
            cut = len(text) - LONGEST_TEXT
            message[name] = f"{text[:LONGEST_TEXT]}\n… {cut:,} more characters are not shown"
    return message


def about(facts: About) -> dict[str, Any]:
    """What the trace is a trace of, for the front end."""
    return asdict(facts)
