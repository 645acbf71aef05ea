"""Intervals of shares and of medians."""

import math
import random

import pytest

from k2lab.evals.stats import middle, share


# Brown, Cai and DasGupta (2001), and the closed form, computed apart.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (192, 200, 0.9231, 0.9796),
    ],
)
def test_intervals_are_wilsons(successes: int, n: int, low: float, high: float) -> None:
    found = share(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.accuracy == successes / n


def test_interval_holds_the_share_and_shrinks() -> None:
    widths = []
    for n in (1, 10, 100, 1000):
        found = share(n // 2, n)
        assert 0 <= found.low <= found.accuracy <= found.high <= 1
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


def test_no_tries_say_nothing() -> None:
    found = share(0, 0)
    assert math.isnan(found.accuracy)
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize("n", [9, 15, 40, 101])
def test_medians_lie_within_their_intervals_as_often_as_said(n: int) -> None:
    draw = random.Random(n)
    found = [middle([draw.expovariate(1.0) for _ in range(n)]) for _ in range(4000)]
    held = sum(each.low <= math.log(2) <= each.high for each in found) / len(found)
    assert 0.93 < held < 0.99
    assert all(each.low <= each.median <= each.high for each in found)


def test_few_values_are_their_own_interval() -> None:
    assert middle([3.0]).low == middle([3.0]).high == 3.0
    few = middle([5, 1, 4, 2])
    assert (few.low, few.median, few.high, few.n) == (1, 3.0, 5, 4)
