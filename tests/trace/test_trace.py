"""Trace: arrays folded from events, growing while others read."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from k2lab.engine.events import (
    KINDS,
    Answered,
    Captured,
    Dropped,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.errors import InputError, TraceError
from k2lab.trace import attention, phases, routing
from k2lab.trace.captured import CapturedValues
from k2lab.trace.compare import compare
from k2lab.trace.figures import figures
from k2lab.trace.file import open_trace
from k2lab.trace.table import Table
from k2lab.trace.trace import About, Trace

ABOUT = About("nano", layers=3, dense_layers=1, experts=16, slots=4, scaling=2.5, vocab=100)


def prompt(start: int = 0) -> PromptRead:
    return PromptRead(start, (7, 8, 9), ("<|u|>", "a", "b"), ("marker", "user", "user"), 0.5)


def chosen(index: int, kind: str = "thinking", text: str = "x") -> TokenChosen:
    top = ((5, "x", 0.75), (6, "y", 0.25))
    return TokenChosen(index, 5, text, kind, -0.25, 0.5, top, 0.1 * index)  # type: ignore[arg-type]


def routed(start: int, count: int = 1) -> Routed:
    experts = np.arange(count * 8, dtype=np.uint16).reshape(count, 2, 4) % 16
    return Routed(start, experts, np.full((count, 2, 4), 60, np.uint8),
                  np.full((count, 2), 0.125, np.float16))  # fmt: skip


def test_columns_have_the_promised_types_and_given_tokens_are_nan() -> None:
    trace = Trace.collect([prompt(), routed(0, 3), chosen(3), chosen(4, "answer")], ABOUT)
    assert (len(trace), trace.routed) == (5, 3)
    assert [trace.ids.dtype, trace.kinds.dtype] == [np.int32, np.uint8]
    assert trace.entropy.dtype == trace.logprob.dtype == trace.seconds.dtype == np.float32
    assert trace.experts.shape == (3, 2, 4) and trace.experts.dtype == np.uint16
    assert trace.weights.dtype == np.uint8 and trace.margin.dtype == np.float16
    assert np.isnan(trace.entropy[:3]).all() and trace.entropy[3] == 0.5
    assert [KINDS[k] for k in trace.kinds] == ["marker", "user", "user", "thinking", "answer"]
    assert trace.top[0] == () and trace.top[3][0] == (5, "x", 0.75)


def test_a_token_before_the_first_is_refused() -> None:
    trace = Trace.collect([prompt()], ABOUT)
    assert trace.context_of(2) == 0
    with pytest.raises(InputError, match="from 0 to 2"):
        trace.context_of(-1)


def test_text_and_spans_split_by_kind() -> None:
    trace = Trace.collect([prompt(), chosen(3, text="hm"), chosen(4, "answer", "42")], ABOUT)
    assert trace.text() == "<|u|>abhm42"
    assert (trace.text("user"), trace.text("answer"), trace.text("call")) == ("ab", "42", "")
    assert [(s.kind, s.start, s.stop) for s in trace.spans()] == [
        ("marker", 0, 1), ("user", 1, 3), ("thinking", 3, 4), ("answer", 4, 5)]  # fmt: skip
    assert list(Trace(ABOUT).spans()) == []
    for of in (trace.text, trace.mask):
        with pytest.raises(InputError, match="one of marker"):
            of("nothing")  # type: ignore[operator]


def test_calls_are_matched_by_key_not_by_wire_id() -> None:
    trace = Trace(ABOUT)
    for key in ("a", "b"):
        trace.append(ToolAsked(key, "functions.add:0", "add", "{}", 0))
    trace.append(ToolAnswered("b", "add", "3", True, 0.01))
    assert trace.calls[0].ok is None and trace.calls[1].content == "3"
    with pytest.raises(TraceError, match="was not asked"):
        trace.append(ToolAnswered("c", "add", "3", True, 0.01))


def test_end_is_kept() -> None:
    trace = Trace.collect([Answered("42", "hm"), Stopped("answer", "", 2, 1.0)], ABOUT)
    assert trace.answer == "42" and trace.stopped is not None
    assert repr(trace) == "Trace(model='nano', tokens=0, routed=0, calls=0, end='answer')"


def test_gaps_and_wrong_shapes_are_refused() -> None:
    trace = Trace.collect([prompt()], ABOUT)
    with pytest.raises(TraceError, match="token 3"):
        trace.append(chosen(4))
    with pytest.raises(TraceError, match="routing 0"):
        trace.append(routed(1))
    other = Trace(About("k2", 4, 1, 16, 4, 2.5, 100))
    with pytest.raises(TraceError, match="MoE layers, slots"):
        other.append(routed(0))


def test_columns_cannot_be_written_through() -> None:
    trace = Trace.collect([prompt()], ABOUT)
    with pytest.raises(ValueError):
        trace.ids[0] = 1


def test_a_reader_sees_whole_rows_while_another_thread_appends() -> None:
    trace = Trace(ABOUT)

    def write() -> None:
        for index in range(3000):
            trace.append(chosen(index))
            trace.append(routed(index))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        length = len(trace)
        assert len(trace.ids) >= length and len(trace.texts) >= length
        assert (trace.ids[:length] == 5).all() and (trace.weights[: trace.routed] == 60).all()
    writer.join()
    assert (len(trace), trace.routed) == (3000, 3000)


class Growing(Trace):
    """A run that goes on after every look at it: a token, its routing and captured values."""

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.goes_on = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("routed", "experts", "entropy", "kinds", "contexts") and self.goes_on:
            self.goes_on = False
            self.append(chosen(len(self)))
            self.append(routed(Trace.routed.fget(self)))  # type: ignore[attr-defined]
            self.goes_on = True
        return found


@pytest.mark.parametrize(
    "reader",
    [
        lambda trace: routing.flow(trace, 0),
        lambda trace: routing.coactivation(trace, 0),
        routing.thinking_minus_answer,
        routing.margins,
        figures,
        lambda trace: phases.difference(trace, "thinking", "user"),
        lambda trace: compare(trace, trace),
        lambda trace: list(trace.spans()),
        lambda trace: trace.text("thinking"),
        lambda trace: trace.fork(len(trace)),
    ],
)
def test_a_run_may_go_on_while_it_is_read(reader: Callable[[Trace], object]) -> None:
    trace = Growing(ABOUT)
    for event in (prompt(), routed(0, 3), chosen(3), routed(3)):
        trace.append(event)
    trace.goes_on = True
    reader(trace)


def test_a_file_has_no_end_without_the_tokens_before_it(tmp_path: Path) -> None:
    class Ending(Trace):
        def fork(self, at: int) -> Trace:
            made = super().fork(at)
            for event in (chosen(len(self)), Answered("42", ""), Stopped("answer", "", 1, 0.1)):
                self.append(event)
            return made

    trace = Ending(ABOUT)
    trace.append(prompt())
    found = open_trace(trace.save(tmp_path / "x.k2trace"))
    assert (len(found), found.answer, found.stopped) == (3, "", None)


class Between(dict[str, Any]):
    """Something happens while this is looked through."""

    def __init__(self, values: dict[str, Any], then: Callable[[], None]) -> None:
        super().__init__(values)
        self.then = then

    def items(self) -> Any:
        found = [*super().items()]
        self.then()
        return found


def test_a_fork_has_as_many_rows_as_it_says_though_the_table_grows() -> None:
    table = Table.empty({"x": (np.int32, ())})
    table.append(256, x=1)
    table._columns = Between(table._columns, lambda: table.append(1, x=2))
    fork = table.fork(1000)
    assert fork.length == len(fork["x"]) == 256


def test_captured_values_are_there_when_their_names_are() -> None:
    captured = CapturedValues()
    values = {"latent": np.zeros((1, 1, 3), np.float32)}
    seen: list[NDArray[Any]] = []
    look = Between(values, lambda: seen.extend(map(captured.raw, captured.names)))
    captured.append(Captured(0, (), {"latent": (0,)}, look))
    assert not seen and captured.raw("latent").shape == (1, 1, 3)


def test_what_heads_read_is_not_of_a_mix_of_tokens() -> None:
    """Tokens are given up, or come, between the keys' and the queries' reading."""
    trace = Trace.collect([prompt()], ABOUT)
    shapes = {"latent": (3,), "key_rope": (2,), "query_latent": (1, 3), "query_rope": (1, 2)}

    def captured(start: int, count: int) -> Captured:
        arrays = {name: np.ones((count, 1, *shape), np.float32) for name, shape in shapes.items()}
        return Captured(start, (0,), dict.fromkeys(shapes, (0,)), arrays)

    trace.append(captured(0, 2))
    values, happens = trace.captured.values, [captured(2, 1), Dropped(1, 10)]

    def between(name: str, layer: int) -> NDArray[np.float32]:
        found = values(name, layer)
        if name == "key_rope":
            trace.append(happens.pop(0))
        return found

    trace.captured.values = between  # type: ignore[method-assign]
    with pytest.raises(TraceError, match="a token from 0 to 1"):
        attention.reading(trace, 0, 2)
    with pytest.raises(TraceError, match=r"tokens 0 … 0 were given up"):
        attention.reading(trace, 0, 1)
