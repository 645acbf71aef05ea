"""Trace: a finished or growing run as arrays, folded from its events.

One thread appends, any number of threads read. Every column is written before the length that
publishes it, and a full buffer is replaced by a longer copy, never moved: what a reader has got
stays valid. Not here: files, pictures, statistics (see `routing`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import (
    KINDS,
    Answered,
    Event,
    Kind,
    Misread,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.errors import TraceError

FIRST_CAPACITY = 256
CODE: dict[str, int] = {kind: code for code, kind in enumerate(KINDS)}

Top = tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, slots=True)
class About:
    """What a trace is a trace of: the model and the sizes of its routing."""

    model: str
    layers: int
    dense_layers: int  # leading layers without routed experts
    experts: int  # routed experts per MoE layer
    slots: int  # experts chosen per token
    scaling: float  # routed_scaling_factor
    vocab: int

    @property
    def moe_layers(self) -> int:
        """Number of layers with routed experts; routing arrays have this many rows."""
        return self.layers - self.dense_layers


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One tool call; `content`, `ok` and `seconds` are None until the tool has answered."""

    key: str
    id: str
    name: str
    arguments: str
    index: int  # the token with which the call ended
    content: str | None = None
    ok: bool | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens `start … stop − 1` of one kind."""

    kind: Kind
    start: int
    stop: int


class Trace:
    """All tokens of a run in order, prompt and tool results included, with their routing."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.calls: list[CallRecord] = []
        self.misread: list[Misread] = []  # what was written like a call and could not be run
        self.stopped: Stopped | None = None
        self.answer = ""
        self.prefill_seconds = 0.0
        self._tokens = _Table(ids=np.int32, kinds=np.uint8, entropy=np.float32,
                              logprob=np.float32, seconds=np.float32)  # fmt: skip
        self._texts: list[str] = []
        self._top: list[Top] = []
        row = (about.moe_layers, about.slots)
        self._routing = _Table(experts=(np.uint16, row), weights=(np.uint8, row),
                               margin=(np.float16, row[:1]))  # fmt: skip

    @classmethod
    def collect(cls, events: Iterable[Event], about: About) -> "Trace":
        """The trace of all `events`; runs the iterator to its end."""
        trace = cls(about)
        for event in events:
            trace.append(event)
        return trace

    def append(self, event: Event) -> None:
        """Folds one event in. Tokens and routing must come without gaps, else TraceError."""
        match event:
            case PromptRead():
                self._append_prompt(event)
            case TokenChosen():
                self._follows("token", event.index, len(self))
                self._texts.append(event.text)
                self._top.append(event.top)
                self._tokens.append(
                    1, ids=event.id, kinds=CODE[event.kind], entropy=event.entropy,
                    logprob=event.logprob, seconds=event.seconds,
                )  # fmt: skip
            case Routed():
                self._append_routing(event)
            case ToolAsked(key, id_, name, arguments, index):
                self.calls.append(CallRecord(key, id_, name, arguments, index))
            case ToolAnswered():
                self._answer_call(event)
            case Misread():
                self.misread.append(event)
            case Answered(content):
                self.answer = content
            case Stopped():
                self.stopped = event

    def __len__(self) -> int:
        return self._tokens.length

    def __repr__(self) -> str:
        end = self.stopped.reason if self.stopped else "growing"
        return (
            f"Trace(model={self.about.model!r}, tokens={len(self)}, routed={self.routed}, "
            f"calls={len(self.calls)}, end={end!r})"
        )

    @property
    def routed(self) -> int:
        """Number of tokens with known routing, at most `len(trace)` once their events are in."""
        return self._routing.length

    @property
    def ids(self) -> NDArray[np.int32]:
        """Token ids [token]."""
        return self._tokens["ids"]

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """Codes of the kinds [token]; `KINDS[code]` names them."""
        return self._tokens["kinds"]

    @property
    def entropy(self) -> NDArray[np.float32]:
        """Next-token entropy in nats when the token was chosen [token]; NaN for given tokens."""
        return self._tokens["entropy"]

    @property
    def logprob(self) -> NDArray[np.float32]:
        """Natural log-probability of the token [token]; NaN for given tokens."""
        return self._tokens["logprob"]

    @property
    def seconds(self) -> NDArray[np.float32]:
        """When the token was chosen, since the run began [token]; NaN for given tokens."""
        return self._tokens["seconds"]

    @property
    def experts(self) -> NDArray[np.uint16]:
        """Chosen experts [token, MoE layer, slot], the strongest first."""
        return self._routing["experts"]

    @property
    def weights(self) -> NDArray[np.uint8]:
        """Mixing weights [token, MoE layer, slot], as share of the scaling factor × 255."""
        return self._routing["weights"]

    @property
    def margin(self) -> NDArray[np.float16]:
        """Choice score of the last chosen − first not chosen expert [token, MoE layer]."""
        return self._routing["margin"]

    @property
    def texts(self) -> list[str]:
        """Text pieces, one per token; the live list, at least as long as the trace: read only."""
        return self._texts

    @property
    def top(self) -> list[Top]:
        """Per token the likeliest (id, text, probability), falling; () for given tokens."""
        return self._top

    def mask(self, kind: Kind) -> NDArray[np.bool_]:
        """Which tokens are of `kind` [token]."""
        return np.asarray(self.kinds == CODE[kind])

    def text(self, kind: Kind | None = None) -> str:
        """The text of all tokens, or of those of one kind."""
        kinds = self.kinds
        if kind is None:
            return "".join(self._texts[: len(kinds)])
        return "".join(self._texts[i] for i in np.flatnonzero(kinds == CODE[kind]))

    def spans(self) -> Iterator[Span]:
        """The runs of tokens of equal kind, in order."""
        kinds = self.kinds
        cuts = np.flatnonzero(np.diff(kinds)) + 1
        edges = [0, *cuts.tolist(), len(kinds)] if len(kinds) else []
        for start, stop in pairwise(edges):
            yield Span(KINDS[int(kinds[start])], start, stop)

    def _append_prompt(self, event: PromptRead) -> None:
        self._follows("prompt", event.start, len(self))
        count = len(event.ids)
        self._texts.extend(event.texts)
        self._top.extend([()] * count)
        self._tokens.append(
            count, ids=event.ids, kinds=[CODE[kind] for kind in event.kinds],
            entropy=np.nan, logprob=np.nan, seconds=np.nan,
        )  # fmt: skip
        self.prefill_seconds += event.seconds

    def _append_routing(self, event: Routed) -> None:
        self._follows("routing", event.start, self.routed)
        expected = (self.about.moe_layers, self.about.slots)
        if event.experts.shape[1:] != expected:
            raise TraceError(
                f"Routing of shape {event.experts.shape[1:]} per token.",
                expected=f"(MoE layers, slots) = {expected}, as in `trace.about`.",
                mend="make the trace with the About of the model that runs.",
            )
        self._routing.append(
            len(event.experts),
            experts=event.experts, weights=event.weights, margin=event.margin,
        )  # fmt: skip

    def _answer_call(self, event: ToolAnswered) -> None:
        for place in range(len(self.calls) - 1, -1, -1):
            if self.calls[place].key == event.key:
                self.calls[place] = replace(
                    self.calls[place], content=event.content, ok=event.ok, seconds=event.seconds
                )
                return
        raise TraceError(
            f"An answer to the tool call '{event.key}', which was not asked.",
            expected="a ToolAsked with the same key before.",
            mend="append the events in the order in which they happened.",
        )

    @staticmethod
    def _follows(what: str, found: int, expected: int) -> None:
        if found != expected:
            raise TraceError(
                f"An event with {what} {found}.",
                expected=f"{what} {expected}, the next one.",
                mend="append every event of one run, once and in order.",
            )


class _Table:
    """Columns of equal length that grow by doubling; `length` is set after the rows."""

    def __init__(self, **columns: Any) -> None:
        self.length = 0
        self._columns = {
            name: np.zeros((FIRST_CAPACITY, *shape), dtype)
            for name, spec in columns.items()
            for dtype, shape in [spec if isinstance(spec, tuple) else (spec, ())]
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        length = self.length  # before the buffer: it may be replaced in between, by a longer one
        view = self._columns[name][:length]
        view.flags.writeable = False
        return view

    def append(self, count: int, **values: Any) -> None:
        stop = self.length + count
        for name, value in values.items():
            column = self._columns[name]
            if stop > len(column):
                longer = np.zeros((max(stop, 2 * len(column)), *column.shape[1:]), column.dtype)
                longer[: self.length] = column[: self.length]
                self._columns[name] = column = longer
            column[self.length : stop] = value
        self.length = stop
