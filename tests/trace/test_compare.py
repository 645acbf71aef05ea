"""Two traces: where they part, and how routing and entropy differ after."""

from pathlib import Path

import numpy as np
import pytest

from k2lab.engine.events import PromptRead, Routed, TokenChosen
from k2lab.errors import TraceError
from k2lab.trace.compare import compare, overlap
from k2lab.trace.file import open_trace
from k2lab.trace.trace import About, Trace

ABOUT = About("m", layers=3, dense_layers=1, experts=8, slots=2, scaling=1.0, vocab=9)


def recorded(ids: list[int], experts: list[list[int]], entropy: float) -> Trace:
    trace = Trace(ABOUT)
    trace.append(PromptRead(0, (1,), ("u",), ("user",), 0.0))
    for index, number in enumerate(ids, 1):
        trace.append(TokenChosen(index, number, "a", "thinking", 0.0, entropy, (), 0.0))
    chosen = np.array([[row, [0, 1]] for row in experts], np.uint16)
    trace.append(
        Routed(0, chosen, np.full(chosen.shape, 9, np.uint8), np.ones(chosen.shape[:2], np.float16))
    )
    return trace


def test_runs_that_part_are_compared_from_there_on() -> None:
    one = recorded([3, 4, 5], [[0, 1]] * 4, 1.0)
    two = recorded([3, 6, 7, 8], [[0, 1], [0, 1], [1, 2], [6, 7], [6, 7]], 1.5)
    found = compare(one, two)
    assert (found.diverges, found.shared, found.start) == (2, 2, 2)
    assert found.jaccard_tokens[:, 0].tolist() == pytest.approx([1 / 3, 0])
    assert found.jaccard.tolist() == pytest.approx([1 / 6, 1])
    assert found.entropy.tolist() == [0.5, 0.5] and found.entropy_difference == 0.5


def test_equal_tokens_are_compared_from_the_beginning() -> None:
    one = recorded([3, 4], [[0, 1]] * 3, 1.0)
    two = recorded([3, 4, 5], [[1, 0], [2, 3], [0, 2], [0, 1]], 1.0)
    found = compare(one, two)
    assert (found.diverges, found.shared, found.start) == (None, 3, 0)
    assert found.jaccard_tokens[:, 0].tolist() == pytest.approx([1, 0, 1 / 3])
    assert np.isnan(found.entropy[0]) and found.entropy_difference == 0


def test_nothing_to_compare_gives_no_numbers() -> None:
    one = Trace(ABOUT)
    found = compare(one, one)
    assert (found.diverges, found.shared) == (None, 0)
    assert np.isnan(found.jaccard).all() and np.isnan(found.entropy_difference)


def test_traces_of_other_models_are_refused() -> None:
    other = Trace(About("n", layers=3, dense_layers=1, experts=9, slots=2, scaling=1.0, vocab=9))
    with pytest.raises(TraceError, match="not the same"):
        compare(Trace(ABOUT), other)


def test_traces_without_their_ids_are_refused(tmp_path: Path) -> None:
    """Redacted ones of two questions would seem to share every token."""
    one = recorded([3, 4, 5], [[0, 1]] * 4, 1.0)
    other = recorded([3, 6, 7], [[0, 1]] * 4, 1.0)
    hidden = open_trace(other.save(tmp_path / "x.k2trace", redact=True))
    for pair in ((one, hidden), (hidden, one), (hidden, hidden)):
        with pytest.raises(TraceError, match="redact=True"):
            compare(*pair)


def test_overlap_is_that_of_sets() -> None:
    draw = np.random.default_rng(0)
    a, b = (np.argsort(draw.random((40, 3, 12)), -1)[..., :4].astype(np.uint16) for _ in range(2))
    found = overlap(a, b, block=7)
    for token in range(40):
        for layer in range(3):
            ours, theirs = set(a[token, layer].tolist()), set(b[token, layer].tolist())
            assert found[token, layer] == pytest.approx(len(ours & theirs) / len(ours | theirs))
