"""The terms of a run: what it may spend, who decides about its calls, and where it is written down.

Plain data and small protocols, so that the loop depends on no journal, policy or user interface.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from k2lab.agent.budget import Budget
from k2lab.agent.memory import Memory
from k2lab.agent.tools import Outcome, Tool

Verdict = Literal["allow", "deny", "ask"]


@dataclass(frozen=True, slots=True)
class Request:
    """A call before it is made, with everything that a decision may rest on."""

    key: str  # step.position, unique in the run
    tool: Tool
    arguments: Mapping[str, Any]
    canonical: str  # the arguments as canonical JSON: what is shown, hashed and run
    digest: str  # of the run, the step, the tool and the canonical arguments


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a call, and why."""

    verdict: Verdict
    why: str
    by: str = ""  # the policy, mandate or person that decided


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's word about one call; it holds for this digest and for nothing else."""

    digest: str
    allowed: bool
    by: str


Approver = Callable[[Request, str], Approval | None]
"""Asked about a request and the reason to ask, again and again until it gives an approval."""


class Guard(Protocol):
    """Decides about calls, and sees what comes back."""

    def decide(self, request: Request) -> Decision:
        """What is to become of this call; never raises."""
        ...

    def made(self, request: Request, decision: Decision) -> None:
        """The call is about to be made under this decision."""
        ...

    def answered(self, key: str, tool: Tool, outcome: Outcome) -> None:
        """The model gets to read this."""
        ...

    def found(self, key: str, text: str) -> None:
        """Text from outside stands in the context, as the result of this call."""
        ...


class Witness(Protocol):
    """Writes down what happens, before it has consequences."""

    run: str  # the id of the run, which digests and mandates are bound to

    def note(self, kind: str, **facts: Any) -> None:
        """Write one record; when this returns, a crash cannot take it back."""
        ...


class NoGuard:
    """Allows every call."""

    def decide(self, request: Request) -> Decision:
        """Allowed."""
        return Decision("allow", "no policy was given")

    def made(self, request: Request, decision: Decision) -> None:
        """Not counted."""

    def answered(self, key: str, tool: Tool, outcome: Outcome) -> None:
        """Not looked at."""

    def found(self, key: str, text: str) -> None:
        """Not looked at."""


class NoWitness:
    """Writes nothing down; the run has an id all the same, which approvals are bound to."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(16)

    def note(self, kind: str, **facts: Any) -> None:
        """Not written."""


def nobody(request: Request, why: str) -> Approval:
    """The approver where there is none: no."""
    return Approval(request.digest, allowed=False, by="nobody is there to be asked")


def never() -> bool:
    """The stop that nobody presses."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """All that a run is bound to."""

    budget: Budget = field(default_factory=Budget)
    guard: Guard = field(default_factory=NoGuard)
    approver: Approver = nobody
    witness: Witness = field(default_factory=NoWitness)
    halted: Callable[[], bool] = never  # whether the person wants it to end
    recalled: Mapping[str, Outcome] = field(default_factory=dict)  # calls not to be made again
    made: set[str] = field(default_factory=set)  # keys of the calls that were begun, as they are
    memory: Memory | None = None  # takes the results that have to make room
