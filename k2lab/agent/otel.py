"""A run as OpenTelemetry spans, by the conventions for generative AI: one tree per run.

    for event in traced(lab.events(question), tracer, model=lab.name): ...

    invoke_agent k2lab
    ├─ chat K2-nano          each turn of the model; compaction is an event of the turn it is for
    └─ execute_tool price    each call

A fold over the events like any other; it needs only the API of OpenTelemetry, the person brings the
SDK and an exporter. Contents are not exported unless they are asked for.
Source: open-telemetry/semantic-conventions-genai (status: development), so all names stand in one
table, `NAMES`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from k2lab.engine.events import (
    Answered,
    Event,
    Nudged,
    PromptRead,
    Reason,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.errors import MissingError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

NAMES = {
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.provider.name",
    "agent": "gen_ai.agent.name",
    "conversation": "gen_ai.conversation.id",
    "model": "gen_ai.request.model",
    "finish": "gen_ai.response.finish_reasons",
    "input tokens": "gen_ai.usage.input_tokens",
    "output tokens": "gen_ai.usage.output_tokens",
    "reasoning tokens": "gen_ai.usage.reasoning.output_tokens",
    "tool": "gen_ai.tool.name",
    "tool type": "gen_ai.tool.type",
    "call": "gen_ai.tool.call.id",
    "arguments": "gen_ai.tool.call.arguments",
    "result": "gen_ai.tool.call.result",
    "error": "error.type",
    "compacted": "k2lab.context.compacted",
    "tokens before": "k2lab.context.tokens.before",
    "tokens kept": "k2lab.context.tokens.kept",
}
"""Every attribute and event that is set, by what it says; compaction has no convention yet."""

PROVIDER = "k2lab"  # in-process; a remote Kimi would be `moonshot_ai`
AGENT = "k2lab"


def traced(
    events: Iterator[Event],
    tracer: "Tracer",
    *,
    model: str,
    conversation: str = "",
    what: Literal["names", "contents"] = "names",
) -> Iterator[Event]:
    """The same events, while spans are made of them; `what` may ask for arguments and results."""
    fold = _Spans(tracer, model, conversation, contents=what == "contents")
    try:
        for event in events:
            fold.feed(event)
            yield event
    except BaseException as error:
        fold.finish(type(error).__name__)
        raise
    fold.finish("")


@dataclass(slots=True)
class _Compaction:
    """A context that is being read anew, shorter."""

    at: int  # nanoseconds
    before: int  # tokens that were remembered until then
    kept: int = 0  # of them, read anew; what was to be read next is among them


class _Spans:
    """The spans that are open: the run's, a turn's, and those of calls."""

    def __init__(self, tracer: "Tracer", model: str, conversation: str, *, contents: bool) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise MissingError(
                "OpenTelemetry is not installed.",
                expected="the optional part for spans.",
                mend="Install it with `pip install 'k2lab[otel]'`.",
            ) from error
        self._trace, self._tracer = trace, tracer
        self._model, self._contents = model, contents
        self._root = self._open("invoke_agent", AGENT, agent=AGENT)
        if conversation:
            self._root.set_attribute(NAMES["conversation"], conversation)
        self._turn: Span | None = None
        self._read = self._written = self._thought = 0  # tokens of the turn
        self._calls: dict[str, Span] = {}
        self._context, self._agent = 0, ""  # where the present one begins, and whose it is
        self._answered = False  # nothing was read since
        self._shorter: _Compaction | None = None  # as long as it is being read

    def feed(self, event: Event) -> None:
        match event:
            case PromptRead():
                if self._answered:  # another run begins
                    self._end_turn("stop")
                if self._turn is None:
                    start = time.time_ns() - int(event.seconds * 1e9)
                    self._turn = self._open("chat", self._model, start=start)
                    self._read = self._written = self._thought = 0
                self._read += len(event.ids)
                self._look_for_compaction(event)
            case TokenChosen():
                self._tell_compaction()
                self._written += 1
                self._thought += event.kind == "thinking"
            case ToolAsked():
                self._end_turn("tool_calls")
                span = self._open("execute_tool", event.name, tool=event.name, call=event.id)
                self._set(span, **{"tool type": "function"})
                if self._contents:
                    self._set(span, arguments=event.arguments)
                self._calls[event.key] = span
            case ToolAnswered():
                self._end_call(event)
            case Nudged():
                self._end_turn("stop")
            case Answered():  # why its turn ended is told next
                self._answered = True
            case Stopped(reason):
                self._end_turn(_finish(reason, answered=self._answered))
                if event.reason in ("error", "loop"):
                    self._fail(self._root, event.reason)

    def finish(self, error: str) -> None:
        """End what is still open; with an error, as failed."""
        self._end_turn("error" if error else "stop")
        for span in [*self._calls.values(), self._root]:
            if error:
                self._fail(span, error)
            span.end()
        self._calls = {}

    def _open(self, operation: str, what: str, *, start: int | None = None, **more: Any) -> "Span":
        kind = self._trace.SpanKind.INTERNAL
        parent = None
        if operation != "invoke_agent":
            parent = self._trace.set_span_in_context(self._root)
        span = self._tracer.start_span(f"{operation} {what}", parent, kind, start_time=start)
        self._set(span, operation=operation, provider=PROVIDER, **more)
        if operation != "execute_tool":
            self._set(span, model=self._model)
        return span

    def _look_for_compaction(self, event: PromptRead) -> None:
        """What is read anew in a later context is compaction, unless another run begins there."""
        if event.context > self._context and event.agent == self._agent and not self._answered:
            self._tell_compaction()
            self._shorter = _Compaction(time.time_ns(), before=event.context - self._context)
        if self._shorter is not None:
            self._shorter.kept += len(event.ids)
        self._context, self._agent, self._answered = event.context, event.agent, False

    def _tell_compaction(self) -> None:
        found, self._shorter = self._shorter, None
        if found is not None and self._turn is not None:
            sizes = {NAMES["tokens before"]: found.before, NAMES["tokens kept"]: found.kept}
            self._turn.add_event(NAMES["compacted"], sizes, found.at)

    def _end_turn(self, reason: str) -> None:
        self._tell_compaction()
        if self._turn is None:
            return
        self._set(
            self._turn,
            finish=[reason],
            **{
                "input tokens": self._read,
                "output tokens": self._written,
                "reasoning tokens": self._thought,
            },
        )
        self._turn.end()
        self._turn = None

    def _end_call(self, event: ToolAnswered) -> None:
        span = self._calls.pop(event.key)
        if self._contents:
            self._set(span, result=event.content)
        if not event.ok:
            self._fail(span, "tool_error")
        span.end()

    def _fail(self, span: "Span", error: str) -> None:
        self._set(span, error=error)
        span.set_status(self._trace.StatusCode.ERROR)

    @staticmethod
    def _set(span: "Span", **values: Any) -> None:
        for name, value in values.items():
            span.set_attribute(NAMES[name], value)


def _finish(reason: Reason, *, answered: bool) -> str:
    """Why the last turn ended, for why the run did."""
    if reason in ("length", "context", "budget"):
        return "length"
    return "stop" if answered else reason
