"""`.k2trace`: a trace in one file, memory-mapped when it is opened.

A safetensors file, so that every program that reads safetensors reads the arrays. What is not an
array is JSON in the header's `__metadata__` under `k2trace`. Schema, version 1; n tokens, m of them
routed, L MoE layers, k slots:

    ids               int32   [n]        token ids; 0 where redacted
    kinds             uint8   [n]        place in the metadata's `kinds`
    entropy           float32 [n]        nats; NaN for given tokens
    logprob           float32 [n]        natural logarithm; NaN for given tokens
    seconds           float32 [n]        since the run began; NaN for given tokens
    text              uint8   [bytes]    UTF-8 of all text pieces, joined
    text_end          int64   [n]        byte after each token's piece
    top_count         uint8   [n]        number of likeliest alternatives of each token
    top_word          int32   [tops]     place among the words
    top_p             float32 [tops]     probability
    word_ids          int32   [words]    token id of each word
    word_text         uint8   [bytes]    UTF-8 of all words, joined
    word_end          int64   [words]    byte after each word
    experts           uint16  [m, L, k]  the strongest first
    weights           uint8   [m, L, k]  share of the scaling factor × 255
    margin            float16 [m, L]     last chosen − first not chosen
    captured.{name}   …       [c, layer, …]  as in `captured`; uint16 is bfloat16
    moved.{part}      …       [forward, …]   as in `ExpertsMoved`; moved.load_end int64 [forward]

Metadata: version, about, kinds, calls, misread, stopped, answer, prefill_seconds, redacted,
dropped, captured (layers and heads, first token), moved (bytes by link); facts, capture_seconds and
contexts (first token and agent of each) where they are known. Empty arrays are there, except those
of `captured` and `moved`. At K2's size a token with its routes takes 1.63 kB.

`redact` takes out ids, texts, alternatives, arguments, results and answers, and what was captured
of the network's inside, from which the text can be computed. Numbers stay, and routing may still
tell something about a text. Not here: the web page.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import KINDS, Dropped, ExpertsMoved, Misread, Stopped
from k2lab.errors import TraceError
from k2lab.text.messages import without_surrogates
from k2lab.trace.captured import NAMES, CapturedValues
from k2lab.trace.mapped import Arrays, damaged, foreign, read
from k2lab.trace.records import kept, record
from k2lab.trace.table import Table
from k2lab.trace.trace import TOKEN, About, CallRecord, Context, Facts, Top, Trace

VERSION = 1
KEY = "k2trace"
PAIRS = 2**20  # of a layer and an expert, at most; K2 has 23,424
UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading meets where values are of other types or out of range."""
HIDDEN = "▪"  # stands for each token's text where redacted
MOVED = {"start": np.int32, "tokens": np.int32, "slots": np.int32, "hits": np.int64,
         "misses": np.int64, "stall": np.float64}  # fmt: skip
READS = {"query_latent": "latent", "query_rope": "key_rope"}  # vectors of equal length
BY_LAYER = ("hits", "misses", "stall")


def save(trace: Trace, path: Path, *, redact: bool = False) -> Path:
    """Writes the trace as it is now; a file of this name is replaced once the new one is whole."""
    from safetensors.numpy import save as packed

    redact = redact or trace.redacted
    stopped, answer = trace.stopped, trace.answer  # first: an end is of all tokens before it
    now = trace.fork(len(trace))  # a run may go on while it is saved
    arrays = _token_arrays(now, redact=redact)
    arrays |= {name: getattr(now, name) for name in ("experts", "weights", "margin")}
    captured = CapturedValues() if redact else now.captured
    arrays |= {f"captured.{name}": captured.raw(name) for name in captured.names}
    arrays |= _moved_arrays(now.moved)
    metadata = {
        "version": VERSION,
        "about": asdict(trace.about),
        "kinds": KINDS,
        "calls": [asdict(_hidden(call) if redact else call) for call in now.calls],
        "misread": _misread(trace, redact=redact),
        "contexts": [asdict(each) for each in now.contexts],
        "stopped": None if stopped is None else asdict(_ended(stopped, redact=redact)),
        "answer": "" if redact else answer,
        "prefill_seconds": trace.prefill_seconds,
        "capture_seconds": trace.capture_seconds,
        "facts": asdict(trace.facts),
        "redacted": redact,
        "dropped": None if redact or trace.dropped is None else asdict(trace.dropped),
        "captured": {
            "layers": {name: captured.layers(name) for name in captured.names},
            "heads": captured.heads,
            "first": captured.first,
        },
        "moved": [moved.bytes_moved for moved in now.moved],
    }
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return write_whole(path, packed(whole, metadata={KEY: json.dumps(metadata)}))


def write_whole(path: Path, data: bytes) -> Path:
    """`path` with all of `data`, or as it was before; TraceError where it cannot be written."""
    part = path.parent / f"{path.name}.{uuid4().hex}.part"  # another thread may write it too
    try:
        part.write_bytes(data)
        return part.replace(path)
    except (OSError, ValueError) as error:  # ValueError: no name at all, or one with a null byte
        with suppress(OSError, ValueError):
            part.unlink()
        raise TraceError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.",
            expected="the name of a file, in a folder that is there and has room.",
            mend="name another file, or make the folder.",
        ) from error


def open_trace(path: str | Path) -> Trace:
    """The trace in the file; its arrays are read when they are touched."""
    path = Path(path)
    arrays, header = read(path)
    if KEY not in header:
        raise foreign(path, "is a safetensors file without a trace's metadata")
    try:
        metadata = json.loads(header[KEY])
        version = metadata["version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"its version is {version!r}")
        if version > VERSION:
            raise TraceError(
                f"{path} has version {version} of the format.",
                expected=f"a version up to {VERSION}: it was written by a newer k2lab.",
                mend="install a newer k2lab: pip install --upgrade k2lab.",
            )
        return _trace(arrays, metadata)
    except TraceError:
        raise
    except UNREADABLE as error:
        raise damaged(path, _reason(error)) from error


def _trace(arrays: Arrays, metadata: dict[str, Any]) -> Trace:
    about = record(About, metadata["about"])
    rows = (about.moe_layers, about.slots)
    if not _possible(about):
        raise ValueError("its model has impossible sizes")
    n = len(arrays["ids"])
    tokens = {name: _shaped(arrays, name, dtype, n) for name, dtype in TOKEN.items()}
    tokens["kinds"] = _kinds(tokens["kinds"], metadata["kinds"])
    m = len(arrays["experts"])
    routing = {
        "experts": _shaped(arrays, "experts", np.uint16, m, *rows),
        "weights": _shaped(arrays, "weights", np.uint8, m, *rows),
        "margin": _shaped(arrays, "margin", np.float16, m, rows[0]),
    }
    if m > n:
        raise ValueError(f"it has routes of {m} tokens, of {n}")
    if routing["experts"].size and routing["experts"].max() >= about.experts:
        raise ValueError("it names experts that its model does not have")
    texts = _texts(arrays, "text", "text_end", n)
    trace = Trace.of(about, Table.of(tokens), Table.of(routing), texts=texts, top=_top(arrays, n))
    trace.calls = [_call(values, n) for values in metadata["calls"]]
    trace.misread = [record(Misread, each) for each in metadata["misread"]]
    if "contexts" in metadata:
        trace.contexts = _contexts(metadata["contexts"], n)
    stopped, dropped = metadata["stopped"], metadata["dropped"]
    trace.stopped = None if stopped is None else record(Stopped, stopped)
    trace.dropped = None if dropped is None else record(Dropped, dropped)
    trace.answer, trace.redacted = kept(metadata, "answer", str), kept(metadata, "redacted", bool)
    trace.prefill_seconds = kept(metadata, "prefill_seconds", float)
    if "capture_seconds" in metadata:  # not in the first files
        trace.capture_seconds = kept(metadata, "capture_seconds", float)
    trace.facts = record(Facts, metadata["facts"]) if "facts" in metadata else Facts()
    trace.captured = _captured(arrays, metadata["captured"], about)
    if trace.captured.stop > n:
        raise ValueError(f"it has captured values of token {trace.captured.stop - 1} of {n}")
    trace.moved = list(_moved(arrays, metadata["moved"]))
    if any(not 0 <= each.start <= each.start + each.tokens <= n for each in trace.moved):
        raise ValueError(f"it has moves for tokens that are none of its {n}")
    return trace


def _token_arrays(trace: Trace, *, redact: bool) -> Arrays:
    arrays: Arrays = {name: getattr(trace, name) for name in TOKEN}
    n = len(trace)
    texts = [HIDDEN] * n if redact else trace.texts
    tops: Sequence[Top] = [()] * n if redact else trace.top
    if redact:
        arrays["ids"] = np.zeros(n, np.int32)
    words: dict[tuple[int, str], int] = {}
    places = [
        words.setdefault((number, text), len(words)) for top in tops for number, text, _ in top
    ]
    arrays["text"], arrays["text_end"] = _joined(texts)
    arrays["top_count"] = np.array([len(top) for top in tops], np.uint8)
    arrays["top_word"] = np.array(places, np.int32)
    arrays["top_p"] = np.array([p for top in tops for _, _, p in top], np.float32)
    arrays["word_ids"] = np.array([number for number, _ in words], np.int32)
    arrays["word_text"], arrays["word_end"] = _joined(text for _, text in words)
    return arrays


def _joined(texts: Iterable[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return np.frombuffer(b"".join(pieces), np.uint8), ends


def _texts(arrays: Arrays, name: str, ends: str, count: int) -> list[str]:
    data = _shaped(arrays, name, np.uint8, len(arrays[name])).tobytes()
    stops = _shaped(arrays, ends, np.int64, count)
    starts = np.concatenate([np.zeros(1, np.int64), stops])
    if starts[-1] != len(data) or (starts[1:] < starts[:-1]).any():  # differences may overflow
        raise ValueError(f"its '{ends}' does not fit its '{name}'")
    edges = pairwise(starts.tolist())
    texts = (data[start:stop].decode("utf-8", "surrogatepass") for start, stop in edges)
    return [without_surrogates(text) for text in texts]


def _top(arrays: Arrays, n: int) -> list[Top]:
    counts = _shaped(arrays, "top_count", np.uint8, n)
    total = int(counts.sum(dtype=np.int64))
    places = _shaped(arrays, "top_word", np.int32, total)
    ids = _shaped(arrays, "word_ids", np.int32, len(arrays["word_ids"]))
    words = list(zip(ids.tolist(), _texts(arrays, "word_text", "word_end", len(ids)), strict=True))
    if total and not 0 <= places.min() <= places.max() < len(words):
        raise ValueError("its alternatives name words that it does not have")
    p = _shaped(arrays, "top_p", np.float32, total).tolist()
    flat = [(*words[place], each) for place, each in zip(places.tolist(), p, strict=True)]
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    return [tuple(flat[start:stop]) for start, stop in pairwise([0, *ends])]


def _kinds(codes: NDArray[Any], names: Any) -> NDArray[np.uint8]:
    """The codes as they are now; a file brings its own names."""
    if codes.size and codes.max() >= len(names):
        raise ValueError("it has tokens of a kind without a name")
    if list(names) == list(KINDS):
        return codes
    return np.array([KINDS.index(name) for name in names], np.uint8)[codes]


def _captured(arrays: Arrays, metadata: dict[str, Any], about: About) -> CapturedValues:
    layers = {str(name): _integers(each) for name, each in metadata["layers"].items()}
    heads, first = _integers(metadata["heads"]), metadata["first"]
    if not layers.keys() <= set(NAMES) or type(first) is not int or first < 0:
        raise ValueError("what it says of captured values is wrong")
    found = {name: arrays[f"captured.{name}"] for name in layers}
    sides = {name: values.shape[-1:] for name, values in found.items()}
    sides |= {"scores": (about.experts,), "choice": (about.experts,)}
    for name, values in found.items():
        shape = (len(layers[name]), *([len(heads)] if name.startswith("query") else []))
        side = sides.get(READS.get(name, name), sides[name])
        if values.shape[1:] != (*shape, *side):
            raise ValueError(f"the shape of 'captured.{name}' is wrong")
        first_layer = about.dense_layers if name in ("scores", "choice") else 0
        if not all(first_layer <= layer < about.layers for layer in layers[name]):
            raise ValueError(f"'captured.{name}' is of layers that its model does not have")
    if len({len(values) for values in found.values()}) > 1:
        raise ValueError("its captured values are of different lengths")
    return CapturedValues.of(found, layers=layers, heads=heads, first=first)


def _moved_arrays(moved: Sequence[ExpertsMoved]) -> Arrays:
    if not moved:
        return {}
    arrays: Arrays = {
        f"moved.{part}": np.array([getattr(each, part) for each in moved], dtype)
        for part, dtype in MOVED.items()
    }
    arrays["moved.loads"] = np.concatenate([each.loads for each in moved]).astype(np.int32)
    arrays["moved.load_end"] = np.cumsum([len(each.loads) for each in moved], dtype=np.int64)
    return arrays


def _moved(arrays: Arrays, links: Sequence[dict[str, int]]) -> Iterable[ExpertsMoved]:
    if not links:
        return
    n, layers = len(links), arrays["moved.hits"].shape[-1]
    whole = {
        part: _shaped(arrays, f"moved.{part}", dtype, n, *([layers] if part in BY_LAYER else []))
        for part, dtype in MOVED.items()
    }
    all_loads = _shaped(arrays, "moved.loads", np.int32, len(arrays["moved.loads"]), 4)
    ends = [0, *_shaped(arrays, "moved.load_end", np.int64, n).tolist()]
    if ends != sorted(ends) or ends[-1] != len(all_loads):
        raise ValueError("its 'moved.load_end' does not fit its 'moved.loads'")
    for place, (start, stop) in enumerate(pairwise(ends)):
        parts = {part: each[place] for part, each in whole.items()}
        parts |= {part: int(each) for part, each in parts.items() if part not in BY_LAYER}
        moved = {str(link): kept(links[place], link, int) for link in links[place]}
        yield ExpertsMoved(**parts, loads=all_loads[start:stop], bytes_moved=moved)


def _shaped(arrays: Arrays, name: str, dtype: Any, *shape: int) -> NDArray[Any]:
    array = arrays[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"'{name}' is {array.dtype} {list(array.shape)}")
    return array


def _integers(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise ValueError("a list of numbers holds something else")
    return tuple(values)


def _possible(about: About) -> bool:
    """Whether a model can have these sizes, and their arrays room in a memory."""
    some = not about.moe_layers or 0 < about.slots <= about.experts <= 2**16
    return (
        some
        and 0 <= about.dense_layers <= about.layers
        and min(about.slots, about.experts, about.vocab) >= 0
        and about.layers * max(1, about.experts) <= PAIRS
    )


def _contexts(values: Any, n: int) -> list[Context]:
    found = [record(Context, each) for each in values]
    starts = [each.start for each in found]
    if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] > n:
        raise ValueError(f"its contexts begin at {starts}")
    return found


def _call(values: Any, n: int) -> CallRecord:
    """A call as it was written; the first files knew of no approvals."""
    unasked = dict.fromkeys(("approval", "digest", "shown", "why"), "")
    found = record(CallRecord, unasked | values if isinstance(values, dict) else values)
    if not 0 <= found.index < n:
        raise ValueError(f"it has a call at token {found.index} of {n}")
    return found


def _hidden(call: CallRecord) -> CallRecord:
    content = None if call.content is None else ""
    return replace(call, arguments="", content=content, digest="", shown="", why="")


def _ended(stopped: Stopped, *, redact: bool) -> Stopped:
    return replace(stopped, detail="") if redact else stopped


def _misread(trace: Trace, *, redact: bool) -> list[dict[str, Any]]:
    return [asdict(replace(each, text="") if redact else each) for each in trace.misread]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or type(error).__name__
