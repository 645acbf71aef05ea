"""Details on demand: numbers about one token that are too large to be sent for all.

The page asks for a key; a desk answers from a `Details` in a thread of its own, the newest question
first, and keeps the last answers. What cannot be told says why and how to enable it. Not here: how
the numbers come about (`engine/replay.py`, or arrays of the trace).
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeGuard

import numpy as np

from k2lab.engine.session import start_worker
from k2lab.errors import BusyError, InputError, K2LabError, TraceError
from k2lab.trace import attention
from k2lab.trace.captured import ATTENTION
from k2lab.trace.trace import Trace
from k2lab.widgets import wire

KEPT = 32  # answers
LONGEST_KEY = 80  # characters
WAITING = 4  # questions kept while a run has the engine; older ones are let go
RETRY_SECONDS = 0.2

Send = Callable[[dict[str, Any], list[bytes]], None]
Provenance = Literal["measured", "derived", "missing"]


@dataclass(frozen=True, slots=True)
class Detail:
    """Arrays by name, or none and a sentence on how to get them."""

    provenance: Provenance
    arrays: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Details(Protocol):
    """Who knows about a token."""

    def route(self, trace: Trace, token: int) -> Detail:
        """`scores` and `choice`, float32 [MoE layer, expert], at the token."""
        ...

    def attention(self, trace: Trace, token: int, layer: int) -> Detail:
        """`weights` [head, source], `rope` [head], `norm` [source] of the layer at the token."""
        ...


class CapturedDetails:
    """What a trace itself holds; without captured values there is nobody to ask."""

    def route(self, trace: Trace, token: int) -> Detail:
        """Captured scores; NaN in layers that were not among the captured."""
        held, about = trace.captured, trace.about
        if not held.layers("scores") or not held.first <= token < held.stop:
            return Detail("missing", note=f"Router scores were not captured. {LIVE}")
        arrays = {}
        for name in ("scores", "choice"):
            arrays[name] = np.full((about.moe_layers, about.experts), np.nan, np.float32)
            for layer in held.layers(name):
                values = held.values(name, layer)[token - held.first]
                arrays[name][layer - about.dense_layers] = values
        return Detail("measured", arrays)

    def attention(self, trace: Trace, token: int, layer: int) -> Detail:
        """Attention from the captured latents."""
        held = trace.captured
        known = all(layer in held.layers(name) for name in ATTENTION)
        if not known or not held.first <= token < held.stop:
            return Detail("missing", note=f"Attention was not captured. {LIVE}")
        try:
            found = attention.reading(trace, layer, token)
        except TraceError as error:  # such as tokens that were given up to stay in the budget
            return Detail("missing", note=f"{error.found} Expected: {error.expected}")
        arrays = {name: np.asarray(getattr(found, name), np.float32) for name in READING}
        return Detail("measured", arrays | {"heads": np.array(held.heads, np.uint16)})


READING = ("weights", "rope", "norm")
BUSY = "A run has the engine; this comes as soon as it ends."
LIVE = "A run of a live lab, `lab.show(lab.run(…))`, computes it when it is asked for."


@dataclass(frozen=True, slots=True)
class Question:
    """What the page asked."""

    key: str
    what: Literal["route", "attention"]
    token: int
    layer: int

    @classmethod
    def of(cls, content: Mapping[str, Any], trace: Trace) -> "Question":
        """The question of a message, checked against the trace; InputError if it makes no sense."""
        key, what = content.get("key"), content.get("what")
        token, layer = content.get("token"), content.get("layer", -1)
        if not (
            isinstance(key, str)
            and len(key) <= LONGEST_KEY
            and what in ("route", "attention")
            and _within(token, 0, len(trace))
            and _within(layer, -1 if what == "route" else 0, trace.about.layers)
        ):
            raise InputError(
                "A question about a token or layer that this run does not have.",
                expected=f"tokens 0 … {len(trace) - 1}, layers 0 … {trace.about.layers - 1}.",
                mend="reload the page, or run the cell.",
            )
        return cls(key, what, token, layer)


class Desk:
    """Answers questions one after the other, away from the kernel's threads."""

    def __init__(self, details: Details, send: Send) -> None:
        self.details = details
        self._send = send
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[Question, Trace, int]] = OrderedDict()
        self._kept: OrderedDict[tuple[int, str], Detail] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._left = False
        self._told = (-1, "")  # for which question it was said that the engine is busy

    def ask(self, question: Question, trace: Trace, epoch: int) -> None:
        """Answers soon; a question that is asked again is answered once."""
        with self._lock:
            if self._left:
                return
            self._open[question.key] = (question, trace, epoch)
            self._open.move_to_end(question.key)
            if self._thread is None:
                self._thread = start_worker("k2lab-desk", self._work, self.leave)

    def leave(self) -> None:
        """Answers no more than the question at hand."""
        with self._lock:
            self._left = True
            self._open.clear()

    def answer(self, question: Question, trace: Trace) -> Detail:
        """What is known, at once; BusyError while a run has the engine."""
        try:
            if question.what == "route":
                return self.details.route(trace, question.token)
            return self.details.attention(trace, question.token, question.layer)
        except BusyError:
            raise
        except K2LabError as error:
            return Detail("missing", note=f"{error.found} Expected: {error.expected}")
        except Exception as error:  # noqa: BLE001 - a thread must not die silently
            return Detail("missing", note=f"That failed: {error!r}.")

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._open:
                    self._thread = None
                    return
                key, (question, trace, epoch) = self._open.popitem()  # the newest
            kept = self._kept.get((epoch, key))
            try:
                detail = kept or self.answer(question, trace)
            except BusyError:
                self._later(question, trace, epoch)
                continue
            if kept is None and detail.provenance != "missing":
                self._kept[epoch, key] = detail
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._tell(key, detail, epoch)

    def _tell(self, key: str, detail: Detail, epoch: int) -> None:
        layout, buffers = wire.pack(detail.arrays)
        header = {"type": "detail", "key": key, "epoch": epoch, "arrays": layout}
        self._send(header | {"provenance": detail.provenance, "note": detail.note}, buffers)

    def _later(self, question: Question, trace: Trace, epoch: int) -> None:
        """Says that a run has the engine, once, and asks again after it."""
        if (epoch, question.key) != self._told:
            self._told = epoch, question.key
            self._tell(question.key, Detail("missing", note=BUSY), epoch)
        with self._lock:
            if not self._left:
                self._open.setdefault(question.key, (question, trace, epoch))
            while len(self._open) > WAITING:
                self._open.popitem(last=False)
        time.sleep(RETRY_SECONDS)


def _within(value: Any, low: int, stop: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < stop
