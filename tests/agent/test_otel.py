"""Spans of a run: one tree, and no name that is not in the table."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from k2lab.agent.budget import Budget
from k2lab.agent.loop import Mind, converse
from k2lab.agent.otel import NAMES, traced
from k2lab.agent.terms import Terms
from k2lab.agent.tools import tool
from k2lab.engine.capture import LEVELS
from k2lab.engine.events import (
    Answered,
    Event,
    PromptRead,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.engine.generate import Settings
from k2lab.evals.puppet import Puppet, calls
from k2lab.paths import asset
from k2lab.spec.config import K2Config
from k2lab.text.tokenizer import Tokenizer


def token(index: int, kind: str) -> TokenChosen:
    return TokenChosen(index, 1, "x", kind, 0.0, 0.0, (), 0.0)  # type: ignore[arg-type]


EVENTS: tuple[Event, ...] = (
    PromptRead(0, (1, 2, 3), ("a", "b", "c"), ("user",) * 3, 0.01),
    token(3, "thinking"),
    token(4, "call"),
    ToolAsked("0.0", "functions.look:0", "look", '{"at": "home"}', 4),
    ToolAsked("0.1", "functions.look:0", "look", "{}", 4),  # wire ids need not be unique
    ToolAnswered("0.1", "look", "error: gone", False, 0.0),
    ToolAnswered("0.0", "look", "there", True, 0.0),
    PromptRead(5, (4,), ("d",), ("result",), 0.01),
    token(6, "answer"),
    Answered("x", ""),
    Stopped("answer", "", 3, 1.0),
)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def spans(
    exporter: InMemorySpanExporter, events: Iterator[Event], **options: str
) -> list[ReadableSpan]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    list(traced(events, tracer, model="K2-nano", conversation="c", **options))  # type: ignore[arg-type]
    return list(exporter.get_finished_spans())


def test_a_run_is_one_tree_of_turns_and_calls(exporter: InMemorySpanExporter) -> None:
    found = spans(exporter, iter(EVENTS))
    roots = [each for each in found if each.parent is None]
    assert [each.name for each in roots] == ["invoke_agent k2lab"]
    below = [each for each in found if each.parent is not None]
    assert {each.parent.span_id for each in below} == {roots[0].context.span_id}
    assert len({each.context.trace_id for each in found}) == 1
    names = sorted(each.name for each in below)
    assert names == ["chat K2-nano"] * 2 + ["execute_tool look"] * 2  # one span a call
    assert all(each.start_time >= roots[0].start_time - 10**9 for each in below)
    assert all(each.end_time is not None for each in found)


def test_attributes_are_those_of_the_table(exporter: InMemorySpanExporter) -> None:
    found = spans(exporter, iter(EVENTS))
    used = {name for each in found for name in each.attributes or {}}
    assert used <= set(NAMES.values())
    turn = next(each for each in found if each.name == "chat K2-nano").attributes or {}
    assert turn[NAMES["input tokens"]] == 3 and turn[NAMES["output tokens"]] == 2
    assert turn[NAMES["reasoning tokens"]] == 1
    assert turn[NAMES["finish"]] == ("tool_calls",)
    assert turn[NAMES["operation"]] == "chat"
    failed = [each for each in found if NAMES["error"] in (each.attributes or {})]
    assert [each.name for each in failed] == ["execute_tool look"]
    assert not failed[0].status.is_ok


def test_contents_are_exported_only_if_asked_for(exporter: InMemorySpanExporter) -> None:
    plain = spans(exporter, iter(EVENTS))
    assert not any("home" in str(each.attributes) for each in plain)
    exporter.clear()
    told = spans(exporter, iter(EVENTS), what="contents")
    assert any("home" in str(each.attributes) for each in told)
    assert any("there" in str(each.attributes) for each in told)


def test_a_run_that_breaks_off_leaves_no_open_span(exporter: InMemorySpanExporter) -> None:
    def broken() -> Iterator[Event]:
        yield from EVENTS[:5]
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError):
        spans(exporter, broken())
    found = exporter.get_finished_spans()
    assert sorted(each.name.split()[0] for each in found) == [
        "chat",
        "execute_tool",
        "execute_tool",
        "invoke_agent",
    ]
    assert sum(not each.status.is_ok for each in found) == 3


def test_the_events_pass_unchanged(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    passed = list(traced(iter(EVENTS), provider.get_tracer("test"), model="m"))
    assert passed == list(EVENTS)


def long_run(room: int | None) -> Iterator[Event]:
    """Nine pages and a long thought; with little room that takes compaction."""
    shape = asset("k2-nano")
    tokenizer = Tokenizer.from_folder(shape)

    @tool(effect="reads")
    def look(n: int) -> str:
        """A page."""
        return f"Page {n}. " * 60

    def reply(text: str) -> str:
        n = text.count("## Return of")
        thought = "<think>" + "and so on " * (240 if n == 7 else 1) + "</think>"
        return thought + ("Done." if n == 9 else calls(("look", str(n), f'{{"n": {n}}}')))

    config = replace(K2Config.from_json(shape), max_position_embeddings=32_768)
    mind = Mind(Puppet(config, tokenizer, reply), tokenizer)  # type: ignore[arg-type]
    settings = Settings(max_tokens=9000, capture=LEVELS["off"])
    terms = Terms(budget=Budget(context=room))
    return converse(mind, [{"role": "user", "content": "Go."}], [look], settings, terms)


def test_compaction_is_an_event_of_the_turn_it_is_for(exporter: InMemorySpanExporter) -> None:
    events = list(long_run(2600))
    found = spans(exporter, iter(events))
    told = [(each, event) for each in found for event in each.events]
    assert {event.name for _, event in told} == {NAMES["compacted"]}
    assert all(span.name == "chat K2-nano" for span, _ in told)
    reads = [each for each in events if isinstance(each, PromptRead)]
    starts = sorted({each.context for each in reads})
    assert len(told) == len(starts) - 1 >= 2
    came_after = set[type[Event]]()
    for (span, event), first, before in zip(told, starts[1:], starts, strict=False):
        sizes = event.attributes or {}
        assert set(sizes) == {NAMES["tokens before"], NAMES["tokens kept"]}
        assert sizes[NAMES["tokens before"]] == first - before
        anew = next(place for place, each in enumerate(events) if each in reads
                    and each.start == first)  # fmt: skip
        kept = 0
        for each in events[anew:]:
            if isinstance(each, TokenChosen):
                break
            kept += len(each.ids) if isinstance(each, PromptRead) else 0
        assert sizes[NAMES["tokens kept"]] == kept
        assert span.start_time <= event.timestamp <= (span.end_time or 0)
        came_after.add(type(events[anew - 1]))
    assert came_after == {ToolAnswered, TokenChosen}  # between turns, and in the middle of one
    exporter.clear()
    assert not any(each.events for each in spans(exporter, long_run(None)))


def test_another_run_of_the_same_agent_is_no_compaction(exporter: InMemorySpanExporter) -> None:
    again = PromptRead(7, (1,), ("a",), ("user",), 0.0, context=7)
    other = PromptRead(8, (1,), ("a",), ("user",), 0.0, context=8, agent="B")
    found = spans(exporter, iter((*EVENTS[:-1], again, token(8, "answer"), other, EVENTS[-1])))
    assert not any(each.events for each in found)


def test_a_turn_that_was_cut_short_did_not_stop_by_itself(exporter: InMemorySpanExporter) -> None:
    def finished(*ends: Event) -> tuple[str, ...]:
        exporter.clear()
        turns = [each.attributes or {} for each in spans(exporter, iter((*EVENTS[:2], *ends)))]
        (reasons,) = [each[NAMES["finish"]] for each in turns if NAMES["finish"] in each]
        return reasons  # type: ignore[return-value]

    said = Answered("x", "")
    assert finished(said, Stopped("answer", "", 1, 1.0)) == ("stop",)
    assert finished(said, Stopped("length", "", 1, 1.0)) == ("length",)
    assert finished(said, Stopped("budget", "5 tokens without an answer.", 1, 1.0)) == ("length",)
    assert finished(Stopped("budget", "2 seconds are over.", 1, 1.0)) == ("length",)
    assert finished(Stopped("error", "gone", 1, 1.0)) == ("error",)
