"""Calls in a storm: nothing lost, nothing made twice."""

import pytest

from k2lab.evals.storm import FAULTS, storm


@pytest.mark.parametrize("seed", [0, 1])
def test_three_hundred_calls_arrive_once_each_through_every_fault(seed: int) -> None:
    found = storm(seed)
    assert (found.kept_once, found.lost, found.twice, found.wrong) == (found.calls, 0, 0, 0)
    assert found.calls >= 300 and found.steps >= 300
    assert found.thoughts_lost == 0
    assert sum(found.struck.values()) >= 0.2 * found.steps
    assert set(found.struck) == set(FAULTS) and all(found.struck.values())
    assert found.reason == "answer"
    assert found.whole
