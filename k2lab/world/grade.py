"""Grading by code: an answer is right or wrong, never partly right.

Judged is what the answer states, not how it is put: the result must stand where a sentence puts
it ("… is 1045", "1045 is …", or alone), every other number must belong to the question, and no
foreign name, negation or opposite may occur. Not covered: sentences with more than one claim;
what cannot be read with certainty counts as wrong.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from k2lab.world.expectation import Expectation
from k2lab.world.tasks import ENTITIES, Task

LONGEST = 400
"""Characters of an answer at most."""

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
LINK = re.compile(
    r"=|:|\b(?:is|are|equals?|makes?|gives?|get|gets|costs?|totals?|to|has|have|for|with|was)\b",
    re.IGNORECASE,
)
OPERATION = re.compile(r"[-+*/]|\b(?:plus|minus|times|than|by|from)\b", re.IGNORECASE)
NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|unknown|wrong|false)\b|n't\b", re.IGNORECASE
)
DENIAL = re.compile(
    r"\b(?:do not|don't|cannot|can't|can not) (?:know|answer|help|say|tell)\b"
    r"|\b(?:outside|not in|not part of|beyond) (?:of )?my (?:small )?world\b",
    re.IGNORECASE,
)
STEP = re.compile(r"(?<!\S)\d+\.(?=\s)")
WORD = re.compile(r"[A-Za-z]+")
NAMES = {name.lower(): name for name in ENTITIES}


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether an answer is right, and why or why not."""

    right: bool
    why: str


def grade_state(task: Task, orders: tuple[tuple[str, int], ...]) -> Grade:
    """The grade of what was ordered while the task was done: exactly what had to be."""
    if orders == task.expects.orders:
        return Grade(True, "as expected")
    wanted = " and ".join(f"{count} x {item}" for item, count in task.expects.orders) or "nothing"
    found = " and ".join(f"{count} x {item}" for item, count in orders) or "nothing"
    return Grade(False, f"{found} was ordered instead of {wanted}")


def grade(task: Task, answer_text: str) -> Grade:
    """The grade of an answer to the task; only the final answer counts, not the thinking."""
    text = " ".join(answer_text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    if not text:
        return Grade(False, "there is no answer")
    if len(text) > LONGEST:
        return Grade(False, f"the answer is longer than {LONGEST} characters")
    if task.expects.steps:
        fault = _plan(task.expects.steps, text)
    elif task.expects.unknown:
        fault = _denial(task, text)
    else:
        fault = _statement(task.expects, text)
    return Grade(not fault, fault or "as expected")


def _denial(task: Task, text: str) -> str:
    """What is wrong with an answer that ought to say that it does not know, or nothing."""
    if not DENIAL.search(text):
        return "it does not say that it does not know"
    if re.search(r"\d", text):
        return "it states a number"
    asked = {word.lower() for word in WORD.findall(task.question)}
    inside = re.findall(r"(?<![.!?] )(?<!^)\b[A-Z][a-z]+", text)
    invented = [name for name in inside if name.lower() not in asked]
    if invented or re.search(r"\b(?:but|however|because|probably|maybe)\b", text, re.IGNORECASE):
        return "it says more than that it does not know"
    return ""


def _plan(steps: Sequence[str], text: str) -> str:
    """What is wrong with a numbered plan, or nothing."""
    numbers, found = STEP.findall(text), [part.strip(" .") for part in STEP.split(text)]
    if found[:1] != [""] or [int(each[:-1]) for each in numbers] != [*range(1, len(steps) + 1)]:
        return f"it is not a plan of {len(steps)} numbered steps"
    for step, wanted in zip(found[1:], steps, strict=True):
        if step.lower() != wanted.lower():
            return f"the step {step!r} is not {wanted!r}"
    return ""


def _statement(expects: Expectation, text: str) -> str:
    """What is wrong with an answer that ought to state a result, or nothing."""
    words = [word.lower() for word in WORD.findall(text)]
    if missing := [word for word in expects.words if word.lower() not in words]:
        return f"{missing[0]!r} is missing"
    if turned := [word for word in expects.banned if word in words]:
        return f"{turned[0]!r} says something else"
    if NEGATION.search(text):
        return "it denies something"
    used = [NAMES[word] for word in words if word in NAMES]
    if foreign := [name for name in used if name not in expects.topics]:
        return f"{foreign[0]} was not asked for"
    if expects.topics and not expects.results and used[:1] != [expects.topics[0]]:
        return f"{expects.topics[0]} is not named first"
    joined = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    faults = [_numbers(expects, reading) for reading in dict.fromkeys((text, joined))]
    return "" if "" in faults else faults[-1]


def _numbers(expects: Expectation, text: str) -> str:
    """What is wrong with the numbers of the text, or nothing."""
    found = list(NUMBER.finditer(text))
    numbers = [float(number[0]) for number in found]
    wanted = [float(number) for number in expects.results]
    mentions = [float(number) for number in expects.mentions]
    if not wanted:
        return "" if numbers == mentions[: len(numbers)] else "a number is not the expected one"
    size = len(wanted)
    if numbers[-size:] == wanted:
        before = text[found[-size - 1].end() : found[-size].start()] if len(found) > size else ":"
        others = numbers[:-size]
        if (
            LINK.search(before)
            and not OPERATION.search(before)
            and _belong(others, mentions, ordered=expects.ordered)
        ):
            return ""
    if numbers[:size] == wanted and len(numbers) > size:
        after = text[found[size - 1].end() : found[size].start()]
        if "than" in after:  # a number is not compared with itself
            mentions = [number for number in mentions if number not in wanted]
        if LINK.search(after) and _belong(numbers[size:], mentions, ordered=expects.ordered):
            return ""
    if not all(number in numbers for number in wanted):
        return f"the result {' '.join(map(str, expects.results))} is missing"
    return "the numbers do not stand where the statement would be true"


def _belong(others: Sequence[float], mentions: Sequence[float], *, ordered: bool) -> bool:
    """Whether the other numbers are among those that may be mentioned."""
    if not ordered:
        return not Counter(others) - Counter(mentions)
    remaining = iter(mentions)
    return all(number in remaining for number in others)
