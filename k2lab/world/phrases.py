"""How questions are put: phrasings for training and phrasings held out for evaluation.

A held-out phrasing uses only words that training phrasings use too; otherwise it would test an
embedding that no step has touched, not the understanding of a new order of words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Templates of one kind of question, with their slots in braces."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


HELD_OUT = 5  # one crossing of an opener and a body in so many

OPENERS = (
    "What is {}?",
    "Find {}.",
    "Tell me {}.",
    "Compute {}.",
    "Please give {}.",
    "I need {}.",
    "Give me {}.",
    "Please find {}.",
    "Can you find {}?",
    "Show me {}.",
)
"""Shared by all kinds, so that the opener says nothing about what is asked."""


def _crossed(
    bodies: tuple[str, ...], whole: tuple[str, ...], unseen: tuple[str, ...] = ()
) -> Phrasings:
    """Bodies in openers, a fifth held out along each row and column, and whole sentences.

    `whole` are for training; `unseen` are held out, known words in an order no crossing has.
    """
    train, held_out = list(whole), list(unseen)
    for row, opener in enumerate(OPENERS):
        for column, body in enumerate(bodies):
            text = opener.format(body)
            if opener.startswith("What is") and body.startswith(("how", "which")):
                text = f"{body[0].upper()}{body[1:]}?"
            if text in train:
                continue
            kept = (row + 2 * column) % HELD_OUT != HELD_OUT - 1
            (train if kept else held_out).append(text)
    return Phrasings(tuple(train), tuple(held_out))


PHRASINGS: Mapping[str, Phrasings] = MappingProxyType(
    {
        "sum": _crossed(
            ("{a} plus {b}", "the sum of {a} and {b}", "{a} + {b}"),
            (
                "What is {a} plus {b}?",
                "Add {a} and {b}.",
                "What is the sum of {a} and {b}?",
                "Compute {a} + {b}.",
                "How much is {a} plus {b}?",
                "How much is the sum of {a} and {b}?",
                "Add up {a} and {b}.",
                "Tell me what {a} and {b} add up to.",
                "Find what {a} and {b} add up to.",
            ),
            ("What do {a} and {b} add up to?",),
        ),
        "difference": _crossed(
            ("{a} minus {b}", "the difference of {a} and {b}", "{a} - {b}"),
            (
                "What is {a} minus {b}?",
                "Subtract {b} from {a}.",
                "What is the difference of {a} and {b}?",
                "Compute {a} - {b}.",
                "Take {b} from {a}.",
                "How much is the difference of {a} and {b}?",
            ),
            ("How much is {a} minus {b}?",),
        ),
        "product": _crossed(
            ("{a} times {b}", "the product of {a} and {b}", "{a} * {b}"),
            (
                "What is {a} times {b}?",
                "Multiply {a} by {b}.",
                "What is the product of {a} and {b}?",
                "Compute {a} * {b}.",
                "How much is {a} times {b}?",
            ),
        ),
        "product.plus": _crossed(
            ("{a} times {b} plus {c}", "{a} * {b} + {c}", "the product of {a} and {b} plus {c}"),
            (
                "What is {a} times {b} plus {c}?",
                "Multiply {a} by {b} and add {c}.",
                "Compute {a} * {b} + {c}.",
            ),
            ("How much is {a} times {b} plus {c}?",),
        ),
        "compare.larger": _crossed(
            (
                "the larger of {a} and {b}",
                "the larger number of {a} and {b}",
                "which is larger, {a} or {b}",
            ),
            (
                "Which is larger, {a} or {b}?",
                "Which number is larger, {a} or {b}?",
                "Find the larger of {a} and {b}.",
                "Is {a} or {b} larger?",
            ),
        ),
        "compare.smaller": _crossed(
            (
                "the smaller of {a} and {b}",
                "the smaller number of {a} and {b}",
                "which is smaller, {a} or {b}",
            ),
            (
                "Which is smaller, {a} or {b}?",
                "Which number is smaller, {a} or {b}?",
                "Find the smaller of {a} and {b}.",
                "Is {a} or {b} smaller?",
            ),
        ),
        "compare.largest": _crossed(
            (
                "the largest of {a}, {b} and {c}",
                "the largest number of {a}, {b} and {c}",
                "which is the largest, {a}, {b} or {c}",
            ),
            (
                "Which is the largest, {a}, {b} or {c}?",
                "Find the largest of {a}, {b} and {c}.",
                "Which number is the largest of {a}, {b} and {c}?",
            ),
        ),
        "compare.smallest": _crossed(
            (
                "the smallest of {a}, {b} and {c}",
                "the smallest number of {a}, {b} and {c}",
                "which is the smallest, {a}, {b} or {c}",
            ),
            (
                "Which is the smallest, {a}, {b} or {c}?",
                "Find the smallest of {a}, {b} and {c}.",
                "Which number is the smallest of {a}, {b} and {c}?",
            ),
        ),
        "compare.sort": _crossed(
            (
                "the order of {a}, {b} and {c}",
                "{a}, {b} and {c} in order",
                "{a}, {b} and {c} from small to large",
            ),
            (
                "Sort {a}, {b} and {c}.",
                "Sort {a}, {b} and {c} from small to large.",
                "Put {a}, {b} and {c} in order.",
            ),
            ("Put {a}, {b} and {c} in order from small to large.",),
        ),
        "stock": _crossed(
            ("the stock of {item}", "the stock of the {item}", "how many {item} are in stock"),
            (
                "What is the stock of {item}?",
                "Check the stock of {item}.",
                "Tell me the stock of {item}.",
                "Is the {item} in stock?",
                "How many {item} are in stock?",
                "How much is the stock of the {item}?",
                "How much of the {item} is in stock?",
            ),
            ("How much {item} is in stock?",),
        ),
        "price": _crossed(
            (
                "the price of {item}",
                "the price of the {item}",
                "the cost of the {item}",
                "the price of a {item}",
            ),
            (
                "What is the price of a {item}?",
                "How much does a {item} cost?",
                "What does a {item} cost?",
                "What is the price of the {item}?",
                "How much does the {item} cost?",
                "Check the price of the {item}.",
                "Tell me the price of {item}.",
                "What does the {item} cost?",
                "How much is a {item}?",
                "How much for the {item}?",
                "Tell me how much the {item} is.",
                "How much is the price of the {item}?",
                "How much is the cost of a {item}?",
            ),
            ("How much is the {item}?",),
        ),
        "shopping": _crossed(
            ("the total price of {list}", "the total of {list}", "the cost of {list}"),
            (
                "What do {list} cost?",
                "How much do {list} cost?",
                "What is the total price of {list}?",
                "I buy {list}. What is the total?",
                "Find the total of {list}.",
                "How much are {list}?",
            ),
            ("How much is the total of {list}?", "What is the total cost of {list}?"),
        ),
        "weather": _crossed(
            ("the weather in {city}", "the weather of {city}", "how the weather is in {city}"),
            (
                "What is the weather in {city}?",
                "How is the weather in {city}?",
                "Check the weather in {city}.",
                "Tell me the weather in {city}.",
            ),
        ),
        "weather.warmer": _crossed(
            (
                "the warmer city of {first} and {second}",
                "the warmer of {first} and {second}",
                "which city is warmer, {first} or {second}",
            ),
            (
                "Which city is warmer, {first} or {second}?",
                "Is {first} or {second} warmer?",
                "Where is it warmer, in {first} or in {second}?",
                "Which is warmer, {first} or {second}?",
            ),
        ),
        "weather.colder": _crossed(
            (
                "the colder city of {first} and {second}",
                "the colder of {first} and {second}",
                "which city is colder, {first} or {second}",
            ),
            (
                "Which city is colder, {first} or {second}?",
                "Is {first} or {second} colder?",
                "Where is it colder, in {first} or in {second}?",
                "Which is colder, {first} or {second}?",
            ),
        ),
        "convert": _crossed(
            (
                "{value} {unit} in {to}",
                "how many {to} are {value} {unit}",
                "the {to} in {value} {unit}",
            ),
            (
                "Convert {value} {unit} to {to}.",
                "How many {to} are {value} {unit}?",
                "What is {value} {unit} in {to}?",
                "Tell me {value} {unit} in {to}.",
            ),
            ("How much is {value} {unit} in {to}?",),
        ),
        "queue": _crossed(
            (
                "the sum of the queue",
                "the sum of all numbers in the queue",
                "the total of the queue",
            ),
            (
                "Add up the queue.",
                "What is the sum of the queue?",
                "Take all numbers from the queue and add them.",
                "Sum the numbers in the queue.",
                "What do the numbers in the queue add up to?",
            ),
            ("Add all numbers in the queue.",),
        ),
        "outside": _crossed(
            (
                "the capital of {country}",
                "a joke about a {animal}",
                "a poem about a {animal}",
                "the price of the {animal}",
                "the price of {strange}",
                "the stock of {strange}",
                "the weather in {country}",
            ),
            (
                "Who wrote {title}?",
                "What is the capital of {country}?",
                "When was {person} born?",
                "Write a poem about a {animal}.",
                "How old is {person}?",
                "Where is {country}?",
                "What does a {animal} eat?",
                "Who is {person}?",
                "What is {strange}?",
                "Who is {Strange}?",
                "Tell me about {strange}.",
                "Where is {Strange}?",
                "{Strange} {strange} {strange}",
                "What is the price of the {animal}?",
                "How much does the {strange} cost?",
                "How much is a {strange}?",
                "Tell me how much the {strange} is.",
                "What is the weather in {Strange}?",
                "What is the stock of {strange}?",
            ),
            (
                "Write a joke about a {animal}.",
                "Tell me about {country}.",
                "What does {person} cost?",
                "Write about {title}.",
            ),
        ),
        "outside.about": Phrasings(
            ("Who are you?", "What can you do?", "Hello", "Hello!", "Hi", "What do you know?"),
            (
                "What are you?",
                "What do you do?",
                "Hi! What can you do?",
                "Hello! What do you know?",
            ),
        ),
    }
)
"""Kind of question → its phrasings; the part before the dot is the family."""

TITLES: tuple[str, ...] = ("Hamlet", "Faust", "Emma", "Dracula", "Ulysses", "Macbeth")
COUNTRIES: tuple[str, ...] = ("Norway", "Peru", "Egypt", "Japan", "Chile", "Kenya", "India", "Cuba")
PERSONS: tuple[str, ...] = ("Newton", "Mozart", "Einstein", "Darwin", "Galileo", "Bach")
ANIMALS: tuple[str, ...] = ("cat", "dog", "horse", "fish", "bird", "wolf", "dragon", "cow")


def phrasings() -> dict[str, Phrasings]:
    """All phrasings of every kind of question, as a dictionary of one's own."""
    return dict(PHRASINGS)
