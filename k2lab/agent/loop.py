"""Think, call, answer: the loop that carries a conversation through its tool calls.

    think → call → result → think → … → answer

One cache lives through the whole run: results are appended after what the model wrote, nothing is
read twice. A conversation begins at an `opening`, or goes on from any `Place`. A failed or unknown
call becomes a text that the model gets to read. Not here: retries, policies, journals, and calls at
the same time.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from k2lab.agent.tools import Outcome, Tool, call, declare
from k2lab.engine.events import (
    Answered,
    Event,
    Misread,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.engine.generate import Prompt, Settings, generate
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.text.messages import Message
from k2lab.text.parse import ParsedCall, Turn, TurnParser
from k2lab.text.shield import shielded, unshielded
from k2lab.text.template import DEFAULT_SYSTEM, Segment, render
from k2lab.text.tokenizer import Tokenizer, Utf8Stream

MAX_STEPS = 320  # turns of one run: K2 Thinking is known for 200–300 calls in a row


@dataclass(frozen=True, slots=True)
class Mind:
    """A network with its tokenizer and the habits of its checkpoint."""

    model: K2
    tokenizer: Tokenizer

    @property
    def system(self) -> str | None:
        """The system message where the person gives none; None: it was trained without one."""
        return self.tokenizer.lab.get("system", DEFAULT_SYSTEM)  # type: ignore[return-value]

    @property
    def declares_tools(self) -> bool:
        """Whether tools are described in the prompt; False for a model that knows its own."""
        return bool(self.tokenizer.lab.get("declare_tools", True))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a conversation stands: what is remembered, and what is to be read next."""

    prompt: Prompt
    cache: LatentCache  # holds all that comes before the prompt
    turn: tuple[int, ...] = ()  # of the model's turn that goes on: its ids, the prompt's too
    steps: int = 0  # turns before this one
    seconds: float = 0.0  # on the run's clock


def converse(
    mind: Mind,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    settings: Settings,
    *,
    max_steps: int = MAX_STEPS,
) -> Iterator[Event]:
    """Events of a run: from the messages to an answer, the token limit or the step budget."""
    place = opening(mind, messages, tools)
    yield from carry_on(mind, place, tools, settings, max_steps=max_steps)


def opening(mind: Mind, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> Place:
    """The beginning of a conversation: its messages as a prompt, nothing remembered yet."""
    segments = render(
        messages,
        tools=declare(tools) if tools and mind.declares_tools else None,
        system=mind.system,
    )
    return Place(Prompt.of(segments, mind.tokenizer), LatentCache(mind.model.config))


def carry_on(
    mind: Mind,
    place: Place,
    tools: Sequence[Tool],
    settings: Settings,
    *,
    max_steps: int = MAX_STEPS,
) -> Iterator[Event]:
    """Events from a place in a conversation on, to its end."""
    by_name = {tool.name: tool for tool in tools}
    schemas = {tool.name: tool.parameters for tool in tools}
    began = time.perf_counter()

    def clock() -> float:
        return place.seconds + time.perf_counter() - began

    stop_ids = frozenset(mind.model.config.stop_ids)
    settings = replace(settings, stop_ids=stop_ids, clock=clock)
    prompt, cache, written = place.prompt, place.cache, place.turn
    chosen = 0
    for step in range(place.steps, max_steps):
        parser, ends = TurnParser(tools=schemas), list[int]()
        _feed_again(parser, ends, cache.length + len(prompt.ids), written, mind.tokenizer)
        last = written[-1] if written else -1
        left = 0 if last in stop_ids else settings.max_tokens - chosen
        budget = replace(settings, max_tokens=left, turn=written)
        for event in generate(mind.model, mind.tokenizer, prompt, cache, budget):
            if isinstance(event, TokenChosen):
                last, chosen = event.id, chosen + 1
                special = mind.tokenizer.is_special(event.id)
                parser.feed(event.text if special else shielded(event.text))
                ends += [event.index] * (parser.call_count - len(ends))  # where each call ended
            yield event
        written = ()
        turn = unshielded(parser.finish())
        for error in turn.errors:
            yield Misread(error.kind, error.text)
        if last not in stop_ids:
            yield Answered(turn.content, turn.reasoning)
            yield Stopped("length", "The token limit was reached.", chosen, clock())
            return
        if not turn.calls:
            yield Answered(turn.content, turn.reasoning)
            yield _ended(turn, chosen, clock())
            return
        results: list[Message] = []
        ends += [cache.length - 1] * (len(turn.calls) - len(ends))
        asked = [(f"{step}.{place}", each) for place, each in enumerate(turn.calls)]
        for (key, each), end in zip(asked, ends, strict=True):
            yield ToolAsked(key, each.id, each.name, each.arguments, end)
        for key, each in asked:
            start = clock()
            outcome = _answer(each, by_name)
            yield ToolAnswered(key, each.name, outcome.content, outcome.ok, clock() - start)
            results.append(Message("tool", outcome.content, call_id=each.id, name=each.name))
        segments = render(results, system=None)
        if not _fits(segments, mind, cache):
            yield Stopped("length", "The tool results do not fit the context.", chosen, clock())
            return
        prompt = Prompt.of(segments, mind.tokenizer)
    yield Stopped("budget", f"{max_steps} turns without an answer.", chosen, clock())


def _feed_again(
    parser: TurnParser, ends: list[int], stop: int, ids: Sequence[int], tokenizer: Tokenizer
) -> None:
    """Bring the parser to where a turn goes on: its ids so far end at index `stop`."""
    stream = Utf8Stream()
    for index, each in enumerate(ids, start=stop - len(ids)):
        text = stream.feed(tokenizer.decode_bytes([each]))
        parser.feed(text if tokenizer.is_special(each) else shielded(text))
        ends += [index] * (parser.call_count - len(ends))


def _fits(segments: Sequence[Segment], mind: Mind, cache: LatentCache) -> bool:
    needed = len(mind.tokenizer.encode_segments(segments)) + 1
    return cache.length + needed <= mind.model.config.max_position_embeddings


def _ended(turn: Turn, tokens: int, seconds: float) -> Stopped:
    if turn.errors:
        found = ", ".join(error.kind for error in turn.errors)
        return Stopped("error", f"The model wrote a damaged tool call: {found}.", tokens, seconds)
    return Stopped("answer", "", tokens, seconds)


def _answer(asked: ParsedCall, tools: Mapping[str, Tool]) -> Outcome:
    if asked.name not in tools:
        known = ", ".join(tools) or "none"
        return Outcome(f"error: unknown tool {asked.name}; known tools: {known}", ok=False)
    return call(tools[asked.name], asked.arguments)
