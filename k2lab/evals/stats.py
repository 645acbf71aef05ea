"""Shares and medians with their uncertainty.

Wilson's score interval: it stays inside 0 … 1 and is honest for few tries and for shares near the
ends, where the textbook p ± 1.96·√(p(1−p)/n) is not. A median's interval lies between two of the
values, so it asks nothing of how they are spread. Not here: differences between two models.

Sources: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209–212;
H. A. David, H. N. Nagaraja, Order Statistics (2003), section 7.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Z95 = 1.959963984540054  # standard normal quantile of 0.975: 95 % between −z and z


@dataclass(frozen=True, slots=True)
class Share:
    """So many of `n` tries succeeded; with 95 % confidence the true share is `low` … `high`."""

    accuracy: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} ({self.low:.3f}–{self.high:.3f}, n = {self.n})"


def share(successes: int, n: int) -> Share:
    """The share of successes with Wilson's 95 % interval; without tries, all of 0 … 1.

    >>> print(share(8, 10))
    0.800 (0.490–0.943, n = 10)
    """
    assert 0 <= successes <= n, f"{successes} successes in {n} tries"
    if n == 0:
        return Share(math.nan, 0, 0.0, 1.0)
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the bound is exact, but rounding may step past it.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Share(p, n, low, high)


@dataclass(frozen=True, slots=True)
class Middle:
    """The median of `n` values; with 95 % confidence the true one is `low` … `high`."""

    median: float
    n: int
    low: float
    high: float


def middle(values: Sequence[float]) -> Middle:
    """The median and its interval; of fewer than six values it is all of them.

    >>> middle([3, 1, 2, 5, 4, 7, 6, 9, 8])
    Middle(median=5, n=9, low=2, high=8)
    """
    ordered, n = sorted(values), len(values)
    # As many of n values lie below the true median as coins show heads: n/2 ± √n/2.
    out = max(0, math.floor(n / 2 - Z95 * math.sqrt(n) / 2))
    return Middle(median(ordered), n, ordered[out], ordered[n - 1 - out])
