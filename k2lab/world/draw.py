"""What a family of tasks draws from, and what it hands back.

All randomness of a task passes through one `Draw`, which keeps the border between training and
evaluation: numbers, pairs, queues and phrasings on the other side are never drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import TypeVar

from k2lab.world.expectation import Expectation
from k2lab.world.facts import Facts, facts
from k2lab.world.phrases import PHRASINGS as BASIC
from k2lab.world.phrases import Phrasings
from k2lab.world.split import Split, reserved
from k2lab.world.teacher import Conversation, Message
from k2lab.world.tools import NO_FAULTS, Fault, World
from k2lab.world.wordings import WORDINGS

T = TypeVar("T")

PHRASINGS: Mapping[str, Phrasings] = MappingProxyType({**BASIC, **WORDINGS})
"""Kind of question → its phrasings, of all families."""

DIGITS = (1, 2, 2, 3, 3, 3, 4, 4)
"""Lengths of the numbers to add, subtract and compare, as often as they come."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A solved task before it gets its family's name."""

    messages: tuple[Message, ...]
    expects: Expectation
    world_seed: int
    faults: Mapping[int, Fault]
    keys: tuple[str, ...]  # what the split rule looked at


class Draw:
    """Random choices of one task, within its split."""

    def __init__(
        self,
        rng: Random,
        split: Split,
        faults: Mapping[int, Fault] = NO_FAULTS,
        *,
        queue_length: int | None = None,
    ) -> None:
        self.rng, self.split, self.faults, self.queue_length = rng, split, faults, queue_length
        self.keys: tuple[str, ...] = ()

    def struck(self, faults: Mapping[int, Fault]) -> "Draw":
        """The same draw, with faults that strike its calls."""
        made = Draw(self.rng, self.split, faults, queue_length=self.queue_length)
        made.keys = self.keys
        return made

    def fresh(self, candidate: Callable[[], T], keys: Callable[[T], Sequence[str]]) -> T:
        """A candidate on this split's side: no reserved key in training, one in evaluation."""
        while True:
            found = candidate()
            self.keys = tuple(keys(found))
            if any(map(reserved, self.keys)) == (self.split == "eval"):
                return found

    def phrasing(self, kind: str) -> str:
        """A training phrasing, or in evaluation a held-out one half of the time."""
        held_out = self.split == "eval" and self.rng.random() < 0.5
        choices = PHRASINGS[kind].held_out if held_out else PHRASINGS[kind].train
        return self.rng.choice(choices)

    def seed(self) -> int:
        """A world's seed: even in training, odd in evaluation."""
        return 2 * self.rng.randrange(2**30) + (self.split == "eval")

    def named(self, kind: str, names: Sequence[str]) -> tuple[str, str]:
        """A name and a phrasing about it; what is reserved is the two together."""
        if self.split == "eval" and self.rng.random() < 0.5:
            phrasing, name = self.rng.choice(PHRASINGS[kind].held_out), self.rng.choice(names)
            self.keys = (f"held-out phrasing {phrasing}",)
            return name, phrasing
        train = PHRASINGS[kind].train
        return self.fresh(
            lambda: (self.rng.choice(names), self.rng.choice(train)),
            lambda found: [f"{found[0]} in {found[1]}"],
        )

    def number(self) -> int:
        """A number of one to four digits."""
        digits = self.rng.choice(DIGITS)
        return self.rng.randrange(10 ** (digits - 1), 10**digits)

    def solve(
        self,
        question: str,
        solve: Callable[[Conversation, Facts], Expectation],
        seed: int,
        *,
        system: str = "",
    ) -> Draft:
        """The draft after the teacher has solved the question in the world of this seed."""
        known = facts(seed, queue_length=self.queue_length)
        with World(seed, faults=self.faults, queue=known.queue) as world:
            conversation = Conversation(world, question, system=system)
            expects = solve(conversation, known)
            met = {k: fault for k, fault in self.faults.items() if k < world.calls}
        return Draft(tuple(conversation.messages), expects, seed, met, self.keys)
