"""Trace: arrays folded from events, growing while others read."""

import threading

import numpy as np
import pytest

from k2lab.engine.events import (
    KINDS,
    Answered,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.errors import InputError, TraceError
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
