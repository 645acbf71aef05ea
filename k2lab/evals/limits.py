"""Where a model of the microworld ends: what training showed it, and what it says a step beyond.

The ranges are those that the families of tasks draw from (`world/families.py`, `chains.py`,
`talks.py`, `mishaps.py`), in words; the answers are the model's own. Not here: how often it is
right inside its world (`microworld.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from k2lab.engine.events import Answered, Event
from k2lab.engine.sampling import Sampler, greedy
from k2lab.evals import microworld


@dataclass(frozen=True, slots=True)
class Known:
    """One family: what its tasks were about in training, and a question of it."""

    family: str
    shown: str
    question: str


KNOWN: tuple[Known, ...] = (
    Known("sum", "two numbers of one to four digits, up to 9,999 together", "What is 959 plus 86?"),
    Known(
        "difference",
        "two numbers of one to four digits, the smaller from the larger",
        "Subtract 478 from 1203.",
    ),
    Known(
        "product",
        "2 … 999 times 2 … 99, with up to 99 added in one of four",
        "What is 347 times 26?",
    ),
    Known(
        "compare",
        "two numbers of one to four digits: the larger, the smaller; three: the largest, the "
        "smallest, their order",
        "Sort 482, 478 and 91.",
    ),
    Known("stock", "one of forty items", "What is the stock of rope?"),
    Known("price", "one of forty items", "What is the price of a lamp?"),
    Known(
        "shopping",
        "two or three different items, each as `3 x lamp`, 1 … 9 of it",
        "What do 3 x lamp and 2 x rope cost?",
    ),
    Known(
        "order",
        "two or three different items, each as `3 x lamp`, 2 … 9 of it",
        "Order 3 x lamp and 2 x rope.",
    ),
    Known(
        "lookup",
        "the city of an item's maker, the weather there; what an invoice (100 … 999) costs",
        "What is the home of the maker of rope?",
    ),
    Known(
        "table",
        "six kinds of question about the whole shop or all cities, each with one threshold",
        "How many items cost more than 50 coins?",
    ),
    Known(
        "weather",
        "one of 24 cities, or the warmer or colder of two; always by these words",
        "Which city is warmer, Oslo or Cairo?",
    ),
    Known(
        "convert",
        "1 … 99 of one unit in a smaller one, or back where that is a whole number; km, m, cm, mm; "
        "kg, g; days, hours, minutes, seconds; up to 999,999",
        "Convert 3 hours to minutes.",
    ),
    Known(
        "date",
        "the weekday up to 30 days later; 2 … 60 days before or after a date",
        "Today is Monday. What day is it in 10 days?",
    ),
    Known("queue", "numbers 1 … 9, taken one by one, up to 300 of them", "Add up the queue."),
    Known(
        "recall",
        "a name, city, number, item, day or code that was told earlier",
        "Remember my name is Anna.",
    ),
    Known(
        "reflect",
        "results that cannot be right are asked for again; 11 … 999 times 11 … 99 with a check",
        "Multiply 347 by 26 and check the result.",
    ),
    Known("outside", "to say that something is not of its world", "Who wrote Hamlet?"),
)
"""The families that one question shows; each question is put as in training."""

OTHER: tuple[str, ...] = ("retry", "inject", "crew")
"""Families that need a tool which fails or gives orders, or a system message."""

BEYOND: Mapping[str, str] = MappingProxyType(
    {
        "What is 9999 plus 1?": "a sum above 9,999",
        "What is 5000 plus 6000?": "a sum above 9,999",
        "What is 12345 plus 1?": "a number of five digits",
        "What is 5 minus 9?": "a difference below 0",
        "What is 12 divided by 4?": "division",
        "Which is the largest: 4, 9 or 2?": "a colon where training has a comma",
        "Convert 90 minutes to hours.": "a result that is no whole number (the tool says 1.5)",
        "What is the temperature in Berlin?": "another word for the weather",
        "Order 2 lamps.": "one item, and not as `2 x lamp`",
        "Order 2 x lamp.": "one item, where training has two or three",
        "hello": "a greeting, but not as `Hello`",
    }
)
"""A question one step beyond → what training never showed."""

SILENT = "(no answer)"


class Speaker(Protocol):
    """Anything that turns a question into events with tools of its own, such as `k2lab.load()`."""

    def events(
        self, conversation: Sequence[Mapping[str, Any]], /, *, sampler: Sampler, max_tokens: int
    ) -> Iterator[Event]:
        """The events of one run."""
        ...


def answers(speaker: Speaker) -> dict[str, str]:
    """What it answers to the questions of `KNOWN` and of `BEYOND`, greedily, in its own world."""
    questions = (*(each.question for each in KNOWN), *BEYOND)
    return {question: _answer(speaker, question) for question in questions}


def _answer(speaker: Speaker, question: str) -> str:
    events = speaker.events(
        ({"role": "user", "content": question},), sampler=greedy, max_tokens=microworld.MAX_TOKENS
    )
    said = [event.content for event in events if isinstance(event, Answered)]
    return " ".join(said[-1].split()) if said and said[-1].strip() else SILENT
