"""Tasks of the microworld: a question, its exact answer and the teacher's whole conversation.

The same generator serves training, evaluation and notebooks. A task is a function of (split,
seed, number), so a longer run begins with the tasks of a shorter one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from k2lab.errors import InputError
from k2lab.world.draw import Draw
from k2lab.world.expectation import Expectation
from k2lab.world.facts import CITIES, ITEMS
from k2lab.world.families import SOLVERS
from k2lab.world.split import Split
from k2lab.world.teacher import Message
from k2lab.world.tools import World

FAMILIES: tuple[str, ...] = tuple(SOLVERS)
"""The kinds of task."""

ENTITIES: frozenset[str] = frozenset(ITEMS + CITIES)
"""All names of items and cities, each a single word."""

EXAMPLES: tuple[str, ...] = (
    "What do 3 x lamp and 2 x rope cost?",
    "What is 959 plus 86?",
    "Which city is warmer, Oslo or Cairo?",
    "Add up the queue.",
    "Subtract 478 from 1203.",
    "Who wrote Hamlet?",
)
"""Questions to show to people first; each is of a kind that training has seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task. `messages` holds the tool results of the world with this seed and these faults."""

    family: str
    question: str
    answer: str
    messages: tuple[Message, ...]
    world_seed: int
    split: Split
    expects: Expectation
    faults: Mapping[int, str]  # number of a call → the error it meets
    keys: tuple[str, ...]  # what the split rule looked at


def generate(
    seed: int,
    n: int,
    *,
    split: Split,
    families: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Iterator[Task]:
    """`n` tasks; families come equally often, or in proportion to their weights (1 if absent)."""
    chosen = tuple(FAMILIES if families is None else families)
    _check(chosen, weights or {}, split)
    cumulative = list(accumulate((weights or {}).get(family, 1.0) for family in chosen))
    for number in range(n):
        rng = Random(f"{split} {seed} {number}")
        family = rng.choices(chosen, cum_weights=cumulative)[0]
        draft = SOLVERS[family](Draw(rng, split))
        yield Task(
            family=family,
            question=draft.messages[0]["content"],
            answer=draft.messages[-1]["content"],
            messages=draft.messages,
            world_seed=draft.world_seed,
            split=split,
            expects=draft.expects,
            faults=draft.faults,
            keys=draft.keys,
        )


def open_world(task: Task) -> World:
    """The world in which the task was solved, as it was before the first call."""
    return World(task.world_seed, faults=task.faults)


def _check(families: tuple[str, ...], weights: Mapping[str, float], split: str) -> None:
    unknown = sorted({*families, *weights} - set(FAMILIES))
    if unknown or not families:
        raise InputError(
            f"The families of tasks {unknown} do not exist."
            if unknown
            else "No family of tasks was chosen.",
            expected=f"Some of {', '.join(FAMILIES)}.",
            mend="Correct the names, or leave them out to take all families.",
        )
    usable = [weights.get(family, 1.0) for family in families]
    if min(usable) < 0 or not 0 < sum(usable) < float("inf"):
        raise InputError(
            f"The weights {dict(weights)} cannot be drawn from.",
            expected="Finite weights of at least 0 with one above 0.",
            mend="Correct the weights.",
        )
    if split not in ("train", "eval"):
        raise InputError(
            f"The split {split!r} does not exist.",
            expected='"train" or "eval".',
            mend="Name one of the two.",
        )
