"""What a run may spend, and what a person's Stop and the limits have in common: they end waiting.

A budget is checked before a turn, at each token, before a call and while one is waited for. Tokens
of the prompt do not count; the time of pauses does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from k2lab.engine.session import Halted
from k2lab.errors import InputError

STEPS = 320  # turns of one run: K2 Thinking is known for 200–300 calls in a row
LEAST = {"steps": 1, "tokens": 1, "seconds": 0, "cost": 0, "context": 1}
SLICE = 0.02  # seconds of sleep between looks at the clock and at the person's Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one run; None: without this limit."""

    steps: int = STEPS  # turns of the model
    tokens: int | None = None  # chosen by the model
    seconds: float | None = None  # wall time
    cost: float | None = None  # of all calls together, as their tools state it
    context: int | None = None  # tokens remembered at once; near it, old results make room

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is None and name != "steps":
                continue
            whole = name in ("steps", "tokens", "context")
            number = isinstance(value, int if whole else int | float)
            if not number or isinstance(value, bool) or not value >= least:
                raise InputError(
                    f"The budget has {name}={value!r}.",
                    expected=f"a number of at least {least}.",
                    mend=f"Give more {name}, or leave it out.",
                )


class Spent(Exception):  # noqa: N818 - not an error: a limit that was meant
    """A budget is used up; its text says which."""


class Meter:
    """What a run has spent of its budget so far."""

    def __init__(
        self,
        budget: Budget,
        clock: Callable[[], float],
        halted: Callable[[], bool],
        *,
        since: float = 0.0,
    ) -> None:
        """`clock` gives the seconds of the run, `halted` whether the person wants it to end.

        `since`: seconds on that clock, from which on the budget counts.
        """
        self.budget, self.clock, self.halted, self._since = budget, clock, halted, since
        self.tokens = 0
        self.cost = 0.0

    def check(self) -> None:
        """Raise Halted or Spent where the run must not go on."""
        if self.halted():
            raise Halted
        seconds = self.budget.seconds
        if seconds is not None and self.clock() - self._since >= seconds:
            raise Spent(f"{seconds:g} seconds are over.")

    def wait(self, seconds: float) -> None:
        """Sleep, unless the run must end before."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, SLICE))

    def token(self) -> None:
        """Count a chosen token."""
        self.tokens += 1

    def pay(self, name: str, cost: float) -> None:
        """Count the cost of a call, before it is made."""
        limit = self.budget.cost
        if limit is not None and self.cost + cost > limit:
            raise Spent(f"A call of {name} costs {cost:g}; {limit - self.cost:g} are left.")
        self.cost += cost

    def left(self, most: int) -> int:
        """Tokens that the model may still choose, at most `most` in the whole run."""
        limit = self.budget.tokens
        return (most if limit is None else min(most, limit)) - self.tokens
