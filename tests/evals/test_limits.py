"""The ranges in words are those of the tasks, and each question stands on its side of the border."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from k2lab.engine.events import Answered, Event, Stopped
from k2lab.engine.sampling import Sampler
from k2lab.evals.limits import BEYOND, KNOWN, OTHER, SILENT, answers
from k2lab.world.draw import PHRASINGS
from k2lab.world.tasks import FAMILIES, generate

TASKS = tuple(generate(11, 2500, split="train"))
SHOWN = {each.family: each.shown for each in KNOWN}


def asked(family: str) -> list[list[int]]:
    """The numbers in each question of a family."""
    return [
        list(map(int, re.findall(r"\d+", task.question))) for task in TASKS if task.family == family
    ]


def trained(question: str, family: str) -> bool:
    """Whether a question is put as in training, whatever stands in its slots."""
    kinds = [found for kind, found in PHRASINGS.items() if kind.split(".")[0] == family]
    shapes = (
        re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for each in kinds for text in each.train
    )
    return any(re.fullmatch(shape, question) for shape in shapes)


def test_every_family_is_told_once() -> None:
    assert sorted([*SHOWN, *OTHER]) == sorted(FAMILIES)
    assert len(KNOWN) == len(SHOWN)


def test_a_known_question_is_put_as_in_training() -> None:
    for each in KNOWN:
        assert trained(each.question, each.family), each.question


def test_the_ranges_are_those_of_the_tasks() -> None:
    assert 9_000 < max(map(sum, asked("sum"))) <= 9_999
    assert all(task.expects.results[0] >= 0 for task in TASKS if task.family == "difference")
    for family in ("sum", "difference", "compare"):
        assert max(max(numbers) for numbers in asked(family)) <= 9_999, family
    products = [sorted(numbers[:2]) for numbers in asked("product")]
    assert all(2 <= low <= 99 and high <= 999 for low, high in products)
    assert {len(numbers) for numbers in asked("shopping")} == {2, 3}
    assert {len(numbers) for numbers in asked("order")} == {2, 3}
    counts = {number for numbers in asked("order") for number in numbers}
    assert (min(counts), max(counts)) == (2, 9)
    assert max(max(numbers) for numbers in asked("convert")) <= 999_999


def test_a_question_beyond_is_in_no_task() -> None:
    assert not {task.question for task in TASKS} & set(BEYOND)
    for question, never in BEYOND.items():
        numbers = list(map(int, re.findall(r"\d+", question)))
        if "9,999" in never:
            assert sum(numbers) > 9_999
        if "below 0" in never:
            assert numbers[0] < numbers[1]


class Parrot:
    """Answers with the question; says nothing to a greeting."""

    def events(
        self, conversation: Sequence[Mapping[str, Any]], /, *, sampler: Sampler, max_tokens: int
    ) -> Iterator[Event]:
        (message,) = conversation
        if message["content"] != "hello":
            yield Answered(f"  {message['content']}\n", "")
        yield Stopped("answer", "", 1, 0.0)


def test_all_questions_are_asked() -> None:
    found = answers(Parrot())
    assert set(found) == {*(each.question for each in KNOWN), *BEYOND}
    assert found.pop("hello") == SILENT
    assert all(question == answer for question, answer in found.items())
