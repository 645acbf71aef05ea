"""Phases against each other: real differences are found, made-up ones are not."""

import numpy as np
import pytest

from k2lab.engine.events import CODE, Kind, PromptRead, Routed, TokenChosen
from k2lab.errors import InputError, TraceError
from k2lab.trace import phases, routing
from k2lab.trace.table import Table
from k2lab.trace.trace import TOKEN, About, Trace

ABOUT = About("m", layers=3, dense_layers=1, experts=8, slots=2, scaling=1.0, vocab=9)


def recorded(kinds: list[Kind], experts: np.ndarray) -> Trace:
    trace = Trace(ABOUT)
    trace.append(PromptRead(0, (1,), ("u",), ("user",), 0.0))
    for index, kind in enumerate(kinds, 1):
        trace.append(TokenChosen(index, 1, "a", kind, 0.0, 0.0, (), 0.0))
    weights = np.full(experts.shape, 127, np.uint8)
    trace.append(
        Routed(0, experts.astype(np.uint16), weights, np.ones(experts.shape[:2], np.float16))
    )
    return trace


def alternating(spans: int, *, differs: bool) -> Trace:
    """Thoughts and answers by turns; in row 0 answers use experts 6 and 7 where they differ."""
    draw = np.random.default_rng(1)
    lengths = draw.integers(6, 20, spans)  # uneven, so that no turn gives the same labels again
    kinds: list[Kind] = []
    for place, length in enumerate(lengths):
        kinds += [("thinking", "answer")[place % 2]] * int(length)  # type: ignore[list-item]
    experts = np.argsort(draw.random((len(kinds) + 1, 2, 8)), axis=-1)[..., :2]
    if differs:
        thinking = np.argsort(draw.random((len(kinds) + 1, 6)), axis=-1)[:, :2]
        answer = np.array([False, *(kind == "answer" for kind in kinds)])
        experts[:, 0] = np.where(answer[:, None], [6, 7], thinking)
    return recorded(kinds, experts)


def test_log_ratio_is_of_shares_with_a_choice_added_as_the_totals_are() -> None:
    first, second = np.array([[7, 0]]), np.array([[1, 2]])  # a choice: 0.7 and 0.3
    found = phases.log_ratio(first, second)
    expected = np.log2([[(7.7 / 7) / (1.3 / 3), (0.7 / 7) / (2.3 / 3)]])
    assert np.allclose(found, expected)


def test_an_expert_that_no_phase_used_has_no_log_ratio() -> None:
    first, second = np.array([[90, 10, 0], [0, 0, 0]]), np.array([[9, 1, 0], [0, 0, 0]])
    assert np.array_equal(phases.log_ratio(first, second), np.zeros((2, 3)))


def test_an_expert_that_was_never_chosen_differs_nowhere() -> None:
    trace = alternating(12, differs=True)
    unused = recorded(["thinking"] * 60 + ["answer"] * 6, np.minimum(trace.experts[:67], 5))
    found = phases.difference(unused, "thinking", "answer", shuffles=19)
    for values in (found.log_ratio, found.low, found.high):
        assert not values[:, 6:].any()
    assert (found.p[:, 6:] == 1).all()


def test_a_difference_is_found_where_it_is() -> None:
    found = phases.difference(alternating(12, differs=True), "thinking", "answer", shuffles=199)
    assert found.differs[0, 6] and found.differs[0, 7]
    assert (found.log_ratio[0, 6:] < -3).all()
    assert (found.log_ratio[0, 6:] < found.low[0, 6:]).all()
    assert not found.differs[1].any()


def test_no_difference_is_found_where_there_is_none() -> None:
    found = phases.difference(alternating(12, differs=False), "thinking", "answer", shuffles=199)
    assert not found.differs.any()
    inside = (found.low <= found.log_ratio) & (found.log_ratio <= found.high)
    assert inside.mean() > 0.8


def test_one_thought_and_one_answer_prove_little() -> None:
    """The text drifts once: a test that takes tokens for independent would call it a difference."""
    kinds: list[Kind] = ["thinking"] * 40 + ["answer"] * 40
    experts = np.tile(np.array([0, 1]), (81, 2, 1))
    experts[61:] = [2, 3]  # in the midst of the answer
    found = phases.difference(recorded(kinds, experts), "thinking", "answer")
    assert not found.differs.any()


def test_one_trace_keeps_its_error_rate() -> None:
    """Few shuffles: what is found must be measured as they are, not by them alone."""
    wrong, about = (
        0,
        About("m", layers=2, dense_layers=0, experts=16, slots=2, scaling=1.0, vocab=9),
    )
    for seed in range(120):
        draw = np.random.default_rng(seed)
        kinds = draw.choice([CODE["thinking"], CODE["answer"]], 60).astype(np.uint8)
        experts = np.argsort(draw.random((60, 2, 16)), axis=-1)[..., :2].astype(np.uint16)
        tokens = {name: np.zeros(60, dtype) for name, dtype in TOKEN.items()} | {"kinds": kinds}
        routes = {"experts": experts, "weights": experts.astype(np.uint8),
                  "margin": np.ones((60, 2), np.float16)}  # fmt: skip
        trace = Trace.of(about, Table.of(tokens), Table.of(routes), texts=[""] * 60, top=[()] * 60)
        wrong += phases.difference(trace, "thinking", "answer", shuffles=39).differs.any()
    assert wrong <= 13  # 5 % of 120 is 6; more than 13 happens once in 360 times


def test_a_phase_that_does_not_occur_is_named() -> None:
    with pytest.raises(TraceError, match="kind 'call'"):
        phases.difference(alternating(2, differs=True), "thinking", "call")
    with pytest.raises(InputError, match="No part of a run is 'dreams'"):
        phases.difference(alternating(2, differs=True), "thinking", "dreams")  # type: ignore[arg-type]


def loads(tasks: int, *, differs: bool) -> tuple[list[routing.Load], list[routing.Load]]:
    draw = np.random.default_rng(2)
    firsts = [draw.multinomial(60, np.full(8, 1 / 8), size=5) for _ in range(tasks)]
    seconds = [draw.multinomial(30, np.full(8, 1 / 8), size=5) for _ in range(tasks)]
    if differs:
        for second in seconds:
            second[2, 3] += 20
    return firsts, seconds


def test_across_traces_finds_the_pair_that_differs() -> None:
    found = phases.across(*loads(30, differs=True))
    assert found.differs[2, 3] and found.log_ratio[2, 3] < found.low[2, 3]
    assert found.p.min() == pytest.approx(1 / 2000)
    assert found.p[[0, 1, 3, 4]].min() > 0.02  # where the draws alone differ


def test_across_traces_keeps_its_error_rate() -> None:
    wrong = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        firsts = [draw.multinomial(60, np.full(8, 1 / 8), size=5) for _ in range(20)]
        seconds = [draw.multinomial(30, np.full(8, 1 / 8), size=5) for _ in range(20)]
        wrong += phases.across(firsts, seconds, shuffles=299, seed=seed).differs.any()
    assert wrong <= 6  # 5 % of 40 is 2; more than 6 happens once in 300 times


def test_traces_without_a_phase_do_not_count() -> None:
    firsts, seconds = loads(3, differs=False)
    seconds[0] = np.zeros((5, 8), np.int64)
    assert phases.across(firsts, seconds).p.shape == (5, 8)
    with pytest.raises(TraceError, match="at least 2"):
        phases.across(firsts[:2], seconds[:2])
