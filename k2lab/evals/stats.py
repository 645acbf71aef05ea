"""Shares with their uncertainty.

Wilson's score interval: it stays inside 0 … 1 and is honest for few tries and for shares near the
ends, where the textbook p ± 1.96·√(p(1−p)/n) is not. Not here: differences between two models.

Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209–212.
"""

import math
from dataclasses import dataclass

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
