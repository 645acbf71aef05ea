"""Tasks of the microworld: a question, its exact answer and the teacher's whole conversation.

The same generator serves training, evaluation and notebooks. A task is a function of (split,
seed, number), so a longer run begins with the tasks of a shorter one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from types import MappingProxyType

from k2lab.errors import InputError
from k2lab.world.chains import lookup, order, table
from k2lab.world.draw import Draft, Draw
from k2lab.world.expectation import Expectation
from k2lab.world.facts import CITIES, ITEMS, MAKERS, MONTHS, WEEKDAYS, facts
from k2lab.world.families import SOLVERS as BASIC
from k2lab.world.mishaps import inject, reflect
from k2lab.world.split import Split
from k2lab.world.talks import crew, date, recall
from k2lab.world.teacher import Message
from k2lab.world.tools import Fault, World

SOLVERS: Mapping[str, Callable[[Draw], Draft]] = MappingProxyType(
    {
        **BASIC,
        "reflect": reflect,
        "inject": inject,
        "lookup": lookup,
        "table": table,
        "order": order,
        "date": date,
        "recall": recall,
        "crew": crew,
    }
)
"""Family → what draws and solves a task of it."""

FAMILIES: tuple[str, ...] = tuple(SOLVERS)
"""The kinds of task."""

TRAINING_MIX: Mapping[str, float] = MappingProxyType(
    {
        "sum": 5.0,
        "difference": 6.0,
        "compare": 3.0,
        "stock": 2.0,
        "price": 3.0,
        "weather": 2.0,
        "retry": 3.0,
        "reflect": 5.0,
        "inject": 2.0,
        "lookup": 1.5,
        "table": 1.5,
        "outside": 3.0,
        "order": 6.0,
        "date": 1.5,
        "recall": 4.0,  # each makes several documents
        "crew": 1.5,
    }
)
"""How often a family comes in training, where 1 is the rest: the harder, the more often."""

ENTITIES: frozenset[str] = frozenset(ITEMS + CITIES + MAKERS + WEEKDAYS + MONTHS)
"""All names, each a single word."""

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
    """One task. `messages` holds the tool results of the world with this seed and these faults.

    The user may speak more than once; question and answer are the last ones, and only that answer
    is graded.
    """

    family: str
    question: str
    answer: str
    messages: tuple[Message, ...]
    world_seed: int
    split: Split
    expects: Expectation
    faults: Mapping[int, Fault]  # number of a call → what befalls it
    keys: tuple[str, ...]  # what the split rule looked at
    queue_length: int | None = None  # where another than the world's own was asked for


def generate(
    seed: int,
    n: int,
    *,
    split: Split,
    families: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    queue_length: int | None = None,
) -> Iterator[Task]:
    """`n` tasks; families come equally often, or in proportion to their weights (1 if absent).

    A queue holds as many numbers as its world says, 25 at most, unless a length is given.
    """
    chosen = tuple(FAMILIES if families is None else families)
    _check(chosen, weights or {}, split)
    if queue_length is not None and (queue_length < 1 or "queue" not in chosen):
        raise InputError(
            f"A queue of length {queue_length} in tasks of {', '.join(chosen)}.",
            expected="A length of at least 1, for tasks of the family queue.",
            mend="Give another length, or leave it out.",
        )
    cumulative = list(accumulate((weights or {}).get(family, 1.0) for family in chosen))
    for number in range(n):
        rng = Random(f"{split} {seed} {number}")
        family = rng.choices(chosen, cum_weights=cumulative)[0]
        draft = SOLVERS[family](Draw(rng, split, queue_length=queue_length))
        yield Task(
            family=family,
            question=[each for each in draft.messages if each["role"] == "user"][-1]["content"],
            answer=draft.messages[-1]["content"],
            messages=draft.messages,
            world_seed=draft.world_seed,
            split=split,
            expects=draft.expects,
            faults=draft.faults,
            keys=draft.keys,
            queue_length=queue_length,
        )


def open_world(task: Task) -> World:
    """The world in which the task was solved, as it was before the first call."""
    known = facts(task.world_seed, queue_length=task.queue_length)
    return World(task.world_seed, faults=task.faults, queue=known.queue)


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
