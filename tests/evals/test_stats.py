"""Intervals of shares."""

import math

import pytest

from k2lab.evals.stats import share


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
