"""Load per expert and how even it is."""

import numpy as np
import pytest

from k2lab.engine.events import PromptRead, Routed, TokenChosen
from k2lab.errors import TraceError
from k2lab.trace import routing
from k2lab.trace.trace import About, Trace

ABOUT = About("nano", layers=2, dense_layers=1, experts=4, slots=2, scaling=1.0, vocab=10)


@pytest.fixture
def trace() -> Trace:
    made = Trace(ABOUT)
    made.append(PromptRead(0, (1,), ("u",), ("user",), 0.0))
    for index, kind in ((1, "thinking"), (2, "thinking"), (3, "answer"), (4, "answer")):
        made.append(TokenChosen(index, 2, "x", kind, 0.0, 0.0, (), 0.0))  # type: ignore[arg-type]
    experts = np.array([[[0, 1]], [[0, 1]], [[0, 1]], [[0, 2]]], np.uint16)
    made.append(Routed(0, experts, np.ones((4, 1, 2), np.uint8), np.ones((4, 1), np.float16)))
    return made


def test_load_counts_each_choice(trace: Trace) -> None:
    assert routing.load(trace).tolist() == [[4, 3, 1, 0]]
    assert routing.load(trace, slice(3, 4)).tolist() == [[1, 0, 1, 0]]
    assert routing.load_of(trace, "thinking").tolist() == [[2, 2, 0, 0]]


def test_evenness_at_both_ends() -> None:
    even, one = np.array([[5, 5, 5, 5]]), np.array([[8, 0, 0, 0]])
    assert routing.entropy(even) == pytest.approx(1) and routing.entropy(one) == pytest.approx(0)
    assert routing.gini(even) == pytest.approx(0) and routing.gini(one) == pytest.approx(0.75)
    assert routing.dormant(even)[0] == 0 and routing.dormant(one)[0] == 0.75


def test_thinking_minus_answer_ignores_how_long_each_is(trace: Trace) -> None:
    assert routing.thinking_minus_answer(trace).tolist() == [[0.0, 0.5, -0.5, 0.0]]


def test_nothing_routed_is_zero_not_an_error() -> None:
    empty = routing.load(Trace(ABOUT))
    assert empty.tolist() == [[0, 0, 0, 0]]
    assert routing.gini(empty)[0] == routing.entropy(empty)[0] == 0


def test_coactivation_and_flow_count_pairs_of_experts() -> None:
    about = About("m", layers=3, dense_layers=1, experts=4, slots=2, scaling=1.0, vocab=9)
    trace = Trace(about)
    experts = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 1]], [[3, 0], [0, 1]]], np.uint16)
    margin = np.array([[0.5, 0.25], [0.125, 1], [1, 1]], np.float16)
    trace.append(Routed(0, experts, np.full(experts.shape, 100, np.uint8), margin))
    together = routing.coactivation(trace, 0)
    assert np.array_equal(together, together.T)
    assert np.array_equal(np.diag(together), routing.load(trace)[0])
    assert (together[0, 1], together[0, 3], together[1, 3], together[2, 2]) == (2, 1, 0, 0)
    flow = routing.flow(trace, 0)
    assert flow.sum() == 3 * 2 * 2
    assert (flow[0, 2], flow[1, 3], flow[3, 0], flow[3, 2]) == (2, 1, 1, 0)
    assert routing.margins(trace).tolist() == [0.25, 0.125, 1]
    with pytest.raises(TraceError, match="row 2"):
        routing.flow(trace, 1)


def test_surprise_is_zero_where_choices_are_independent() -> None:
    independent = np.outer([2, 4], [3, 5]).astype(np.int64)
    assert np.allclose(routing.surprise(independent), 0)
    assert np.allclose(routing.surprise(np.array([[4, 0], [0, 4]])), [[1, 0], [0, 1]])


def test_loads_are_counted_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = np.random.default_rng(0).integers(0, 16, (50, 3, 2)).astype(np.uint16)
    whole = routing.counted(chosen, 3, 16)
    monkeypatch.setattr(routing, "BLOCK", 7)
    assert np.array_equal(routing.counted(chosen, 3, 16), whole)
    assert whole.sum() == 50 * 3 * 2
