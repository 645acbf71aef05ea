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


PHRASINGS: Mapping[str, Phrasings] = MappingProxyType(
    {
        "sum": Phrasings(
            (
                "What is {a} plus {b}?",
                "Add {a} and {b}.",
                "What is the sum of {a} and {b}?",
                "Compute {a} + {b}.",
                "How much is {a} plus {b}?",
            ),
            ("Find the sum of {a} and {b}.", "What do {a} and {b} add up to?"),
        ),
        "difference": Phrasings(
            (
                "What is {a} minus {b}?",
                "Subtract {b} from {a}.",
                "What is the difference of {a} and {b}?",
                "Compute {a} - {b}.",
                "Take {b} from {a}.",
            ),
            ("How much is {a} minus {b}?", "Find the difference of {a} and {b}."),
        ),
        "product": Phrasings(
            (
                "What is {a} times {b}?",
                "Multiply {a} by {b}.",
                "What is the product of {a} and {b}?",
                "Compute {a} * {b}.",
                "How much is {a} times {b}?",
            ),
            ("Find the product of {a} and {b}.",),
        ),
        "product.plus": Phrasings(
            (
                "What is {a} times {b} plus {c}?",
                "Multiply {a} by {b} and add {c}.",
                "Compute {a} * {b} + {c}.",
            ),
            ("How much is {a} times {b} plus {c}?",),
        ),
        "compare.larger": Phrasings(
            (
                "Which is larger, {a} or {b}?",
                "Which number is larger, {a} or {b}?",
                "Find the larger of {a} and {b}.",
                "Is {a} or {b} larger?",
            ),
            ("What is the larger of {a} and {b}?",),
        ),
        "compare.smaller": Phrasings(
            (
                "Which is smaller, {a} or {b}?",
                "Which number is smaller, {a} or {b}?",
                "Find the smaller of {a} and {b}.",
                "Is {a} or {b} smaller?",
            ),
            ("What is the smaller of {a} and {b}?",),
        ),
        "compare.largest": Phrasings(
            (
                "Which is the largest, {a}, {b} or {c}?",
                "Find the largest of {a}, {b} and {c}.",
                "Which number is the largest of {a}, {b} and {c}?",
            ),
            ("What is the largest of {a}, {b} and {c}?",),
        ),
        "compare.smallest": Phrasings(
            (
                "Which is the smallest, {a}, {b} or {c}?",
                "Find the smallest of {a}, {b} and {c}.",
                "Which number is the smallest of {a}, {b} and {c}?",
            ),
            ("What is the smallest of {a}, {b} and {c}?",),
        ),
        "compare.sort": Phrasings(
            (
                "Sort {a}, {b} and {c}.",
                "Sort {a}, {b} and {c} from small to large.",
                "Put {a}, {b} and {c} in order.",
            ),
            ("Put {a}, {b} and {c} in order from small to large.",),
        ),
        "stock": Phrasings(
            (
                "What is the stock of {item}?",
                "Check the stock of {item}.",
                "Tell me the stock of {item}.",
                "Is the {item} in stock?",
                "How many {item} are in stock?",
            ),
            ("Find the stock of {item}.", "How much {item} is in stock?"),
        ),
        "price": Phrasings(
            (
                "What is the price of the {item}?",
                "How much does the {item} cost?",
                "Check the price of the {item}.",
                "Tell me the price of {item}.",
                "What does the {item} cost?",
            ),
            ("Find the price of the {item}.", "How much is the {item}?"),
        ),
        "shopping": Phrasings(
            (
                "What do {list} cost?",
                "How much do {list} cost?",
                "What is the total price of {list}?",
                "I buy {list}. What is the total?",
                "Find the total of {list}.",
            ),
            ("How much is the total of {list}?", "What is the total cost of {list}?"),
        ),
        "weather": Phrasings(
            (
                "What is the weather in {city}?",
                "How is the weather in {city}?",
                "Check the weather in {city}.",
                "Tell me the weather in {city}.",
            ),
            ("Find the weather in {city}.",),
        ),
        "weather.warmer": Phrasings(
            (
                "Which city is warmer, {first} or {second}?",
                "Is {first} or {second} warmer?",
                "Where is it warmer, in {first} or in {second}?",
                "Which is warmer, {first} or {second}?",
            ),
            ("Find the warmer city of {first} and {second}.",),
        ),
        "weather.colder": Phrasings(
            (
                "Which city is colder, {first} or {second}?",
                "Is {first} or {second} colder?",
                "Where is it colder, in {first} or in {second}?",
                "Which is colder, {first} or {second}?",
            ),
            ("Find the colder city of {first} and {second}.",),
        ),
        "convert": Phrasings(
            (
                "Convert {value} {unit} to {to}.",
                "How many {to} are {value} {unit}?",
                "What is {value} {unit} in {to}?",
                "Tell me {value} {unit} in {to}.",
            ),
            ("How much is {value} {unit} in {to}?", "Find {value} {unit} in {to}."),
        ),
        "queue": Phrasings(
            (
                "Add up the queue.",
                "What is the sum of the queue?",
                "Take all numbers from the queue and add them.",
                "Sum the numbers in the queue.",
                "What do the numbers in the queue add up to?",
            ),
            ("Find the sum of all numbers in the queue.", "Add all numbers in the queue."),
        ),
        "outside": Phrasings(
            (
                "Who wrote {title}?",
                "What is the capital of {country}?",
                "When was {person} born?",
                "Tell me a joke about a {animal}.",
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
                "What is the weather in {country}?",
                "How much does the {strange} cost?",
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
            ("What are you?", "What do you do?"),
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
