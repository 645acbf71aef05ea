"""Trace: a finished or growing run as arrays, folded from its events.

One thread appends, any number of threads read (see `table`). Not here: the file (`file`), pictures,
statistics (`routing`, `phases`), what the heads read (`attention`), two traces (`compare`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import (
    CODE,
    KINDS,
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    Captured,
    Dropped,
    Event,
    ExpertsMoved,
    Kind,
    Misread,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
    code_of,
)
from k2lab.errors import InputError, TraceError
from k2lab.trace.captured import CapturedValues
from k2lab.trace.table import Table

if TYPE_CHECKING:
    from k2lab.widgets.dashboard import Dashboard

TOKEN = {
    "ids": np.int32,
    "kinds": np.uint8,
    "entropy": np.float32,
    "logprob": np.float32,
    "seconds": np.float32,
}
"""Columns of the tokens."""

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
class Facts:
    """Where the numbers of a trace come from, in words for a status line."""

    engine: str = ""
    dtype: str = ""
    capture: str = "route"
    provenance: Literal["measured", "derived", "missing"] = "measured"
    latent_bytes: int = 0  # cached per token, all layers; 0: unknown
    multi_head_bytes: int = 0  # the same if keys and values of every head were cached


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
    approval: str = ""  # waiting, allowed, refused, undecided; empty: nobody was asked
    digest: str = ""  # of the call that waits: what a decision is bound to
    shown: str = ""  # its arguments in canonical form, as they would be run
    why: str = ""  # the reason to ask


@dataclass(frozen=True, slots=True)
class Context:
    """Tokens from `start` on that remember each other and nothing before: see compaction."""

    start: int
    agent: str = ""  # whose run begins here, where several share a trace


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
        self.moved: list[ExpertsMoved] = []  # by forward, where the store offloads
        self.misread: list[Misread] = []  # what was written like a call and could not be run
        self.contexts = [Context(0)]  # more than one if it was compacted, or is of several runs
        self.stopped: Stopped | None = None
        self.answer = ""
        self.prefill_seconds = 0.0
        self.capture_seconds = 0.0  # of recording itself
        self.facts = Facts()
        self.captured = CapturedValues()  # beyond routes, where the capture level asked for it
        self.dropped: Dropped | None = None  # the latest: what the byte budget gave up
        self.redacted = False  # texts and ids were taken out when it was saved
        self._tokens = Table.empty({name: (dtype, ()) for name, dtype in TOKEN.items()})
        self._texts: list[str] = []
        self._top: list[Top] = []
        row = (about.moe_layers, about.slots)
        self._routing = Table.empty(
            {
                "experts": (np.uint16, row),
                "weights": (np.uint8, row),
                "margin": (np.float16, row[:1]),
            }
        )

    @classmethod
    def of(
        cls, about: About, tokens: Table, routing: Table, *, texts: list[str], top: list[Top]
    ) -> "Trace":
        """The trace with these columns, such as those of a file."""
        trace = cls(about)
        trace._tokens, trace._routing, trace._texts, trace._top = tokens, routing, texts, top
        return trace

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
                self.capture_seconds += event.seconds
            case ExpertsMoved():
                self.moved.append(event)
            case Captured():
                self.captured.append(event)
                self.capture_seconds += event.seconds
            case Dropped():
                self.captured.forget(event.first)
                self.dropped = event
            case ToolAsked() | ToolAnswered() | ApprovalAsked() | ApprovalGiven():
                self._append_call(event)
            case Misread():
                self.misread.append(event)
            case Answered(content):
                self.answer = content
            case Stopped():
                self.stopped = event
                for call in [each for each in self.calls if each.approval == "waiting"]:
                    self._change_call(call.key, approval="undecided")  # nobody can any more

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
        return np.asarray(self.kinds == code_of(kind))

    def text(self, kind: Kind | None = None) -> str:
        """The text of all tokens, or of those of one kind."""
        kinds = self.kinds
        if kind is None:
            return "".join(self._texts[: len(kinds)])
        return "".join(self._texts[i] for i in np.flatnonzero(kinds == code_of(kind)))

    def context_of(self, token: int) -> int:
        """Index of the first token that is remembered at this one, which counts from 0."""
        if token < 0:
            raise InputError(
                f"Token {token} of a trace.",
                expected=f"an index from 0 to {len(self) - 1}.",
                mend="Count from the first token of the run.",
            )
        return next(each.start for each in reversed(self.contexts) if each.start <= token)

    def spans(self) -> Iterator[Span]:
        """The runs of tokens of equal kind, in order."""
        kinds = self.kinds
        cuts = np.flatnonzero(np.diff(kinds)) + 1
        edges = [0, *cuts.tolist(), len(kinds)] if len(kinds) else []
        for start, stop in pairwise(edges):
            yield Span(KINDS[int(kinds[start])], start, stop)

    def fork(self, at: int, *, read: int | None = None) -> "Trace":
        """A growing trace of the first `at` tokens, which shares their arrays; no end, no answer.

        Calls that ended before `at` are in it, with their answers. What the network did is that of
        the first `read` tokens alone, if it is to read the others anew.
        """
        known = at if read is None else read
        made = Trace.of(
            self.about,
            self._tokens.fork(at),
            self._routing.fork(known),
            texts=self._texts[:at],
            top=self._top[:at],
        )
        made.calls = [call for call in self.calls if call.index < at]
        made.contexts = [each for each in self.contexts if each.start < max(1, at)]
        made.moved = [moved for moved in self.moved if moved.start + moved.tokens <= at]
        made.captured = self.captured.fork(known)
        made.dropped, made.redacted = self.dropped, self.redacted
        made.prefill_seconds, made.facts = self.prefill_seconds, self.facts
        made.capture_seconds = self.capture_seconds * at / max(1, len(self))
        return made

    def save(self, path: str | Path, *, redact: bool = False) -> Path:
        """Writes the trace so far as a `.k2trace` file; `redact` leaves every text and id out."""
        from k2lab.trace.file import save

        return save(self, Path(path), redact=redact)

    def show(self) -> "Dashboard":
        """All views of the trace on one page, linked; as a cell's last value it is shown."""
        from k2lab.widgets.dashboard import Dashboard

        return Dashboard(self)

    def to_html(self, path: str | Path, *, beside: "Sequence[Trace]" = ()) -> Path:
        """Writes one HTML file with the linked widgets, which needs no kernel and no network.

        CompareBranch in it has the traces `beside` this one too; what they share is written once.
        """
        from k2lab.widgets.page import write_tree
        from k2lab.widgets.tree import tree_of_traces

        return write_tree(tree_of_traces([self, *beside]), Path(path))

    def _append_prompt(self, event: PromptRead) -> None:
        self._follows("prompt", event.start, len(self))
        count, begun = len(event.ids), Context(event.context, event.agent)
        if event.start == 0:
            self.contexts = [begun]
        elif event.context > self.contexts[-1].start:
            self.contexts.append(begun)
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

    def _append_call(self, event: ToolAsked | ToolAnswered | ApprovalAsked | ApprovalGiven) -> None:
        match event:
            case ToolAsked(key, id_, name, arguments, index):
                self.calls.append(CallRecord(key, id_, name, arguments, index))
            case ToolAnswered(key, _, content, ok, seconds):
                self._change_call(key, content=content, ok=ok, seconds=seconds)
            case ApprovalAsked(key, _, shown, digest, why):
                self._change_call(key, approval="waiting", digest=digest, shown=shown, why=why)
            case ApprovalGiven(key, allowed=allowed):
                self._change_call(key, approval="allowed" if allowed else "refused")

    def _change_call(self, key: str, **fields: Any) -> None:
        for place in range(len(self.calls) - 1, -1, -1):
            if self.calls[place].key == key:
                self.calls[place] = replace(self.calls[place], **fields)
                return
        raise TraceError(
            f"An answer to the tool call '{key}', which was not asked.",
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
