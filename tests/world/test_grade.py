"""Grading: right is what is true however it is put, wrong is everything else."""

import pytest

from k2lab.world.expectation import Expectation
from k2lab.world.grade import grade
from k2lab.world.tasks import Task


def task(question: str, expects: Expectation) -> Task:
    return Task(
        family="sum",
        question=question,
        answer="",
        messages=(),
        world_seed=0,
        split="train",
        expects=expects,
        faults={},
        keys=(),
    )


SUM = task("Add 959 and 86.", Expectation(results=(1045,), mentions=(959, 86)))
DIFFERENCE = task(
    "Subtract 86 from 959.", Expectation(results=(873,), mentions=(959, 86), ordered=True)
)
LARGER = task(
    "Which is larger, 478 or 482?",
    Expectation(results=(482,), mentions=(478, 482), banned=("smaller", "smallest", "less")),
)
SORT = task("Sort 482, 95 and 478.", Expectation(results=(95, 478, 482), mentions=(482, 95, 478)))
STOCK = task(
    "Check the stock of tent.", Expectation(results=(14,), topics=("tent",), banned=("price",))
)
SHOPPING = task(
    "What do 3 x lamp and 2 x rope cost?",
    Expectation(results=(86,), mentions=(3, 2), topics=("lamp", "rope")),
)
WARMER = task(
    "Which is warmer, Oslo or Cairo?",
    Expectation(mentions=(31, 14), topics=("Cairo", "Oslo"), banned=("colder",)),
)
CONVERT = task("Convert 12 km to m.", Expectation(results=(12000,), mentions=(12,), words=("m",)))
OUTSIDE = task("Who wrote Hamlet?", Expectation(unknown=True))

RIGHT = [
    (SUM, "959 plus 86 is 1045."),
    (SUM, "86 plus 959 is 1045."),
    (SUM, "959 + 86 = 1045"),
    (SUM, "1045"),
    (SUM, "The sum is 1,045."),
    (SUM, "It is 1045.0"),
    (SUM, "1045 is the sum of 959 and 86."),
    (SUM, "Adding 959 and 86 gives 1045"),
    (DIFFERENCE, "959 minus 86 is 873."),
    (DIFFERENCE, "The difference is 873."),
    (LARGER, "482 is larger than 478."),
    (LARGER, "The larger of 478 and 482 is 482."),
    (LARGER, "482"),
    (SORT, "The order is 95 478 482."),
    (SORT, "95, 478, 482"),
    (SORT, "In order: 95, 478 and 482."),
    (STOCK, "The stock of tent is 14."),
    (STOCK, "There are 14 tent in stock."),
    (STOCK, "We have 14 of it."),
    (SHOPPING, "3 x lamp and 2 x rope cost 86 coins."),
    (SHOPPING, "The total for 2 x rope and 3 x lamp is 86."),
    (WARMER, "Cairo is warmer with 31 degrees."),
    (WARMER, "Cairo."),
    (WARMER, "Cairo is warmer than Oslo, 31 against 14 degrees."),
    (CONVERT, "12 km is 12000 m."),
    (CONVERT, "12000 m"),
    (OUTSIDE, "I do not know that, it is outside my small world."),
    (OUTSIDE, "I don\N{RIGHT SINGLE QUOTATION MARK}t know who wrote Hamlet."),
    (OUTSIDE, "Sorry. I cannot answer that."),
]
WRONG = [
    (SUM, ""),
    (SUM, "   "),
    (SUM, "1044"),
    (SUM, "1045 1045"),
    (SUM, "959 plus 86 is 11045."),
    (SUM, "959 plus 87 is 1045."),
    (SUM, "959 plus 1045 is 86."),
    (SUM, "86 is 959 plus 1045."),
    (SUM, "959 plus 86 is not 1045."),
    (SUM, "959 plus 86 is -1045."),
    (SUM, "959 plus 86 is 1045 or 1046."),
    (SUM, "I do not know, perhaps 1045."),
    (SUM, "1045" + " very" * 200),
    (SUM, "one thousand and forty-five"),
    (DIFFERENCE, "86 minus 959 is 873."),
    (DIFFERENCE, "-873"),
    (LARGER, "478 is larger than 482."),
    (LARGER, "482 is smaller than 478."),
    (LARGER, "478"),
    (LARGER, "482 is larger than 482."),
    (LARGER, "482 < 478"),
    (SORT, "The order is 482 478 95."),
    (SORT, "The order is 95 478."),
    (SORT, "The order is 95 478 478 482."),
    (STOCK, "The stock of lamp is 14."),
    (STOCK, "The stock of tent is 15."),
    (STOCK, "tent"),
    (STOCK, "The price of tent is 14."),
    (SHOPPING, "3 x lamp and 2 x rope cost 68 coins."),
    (SHOPPING, "4 x lamp and 2 x rope cost 86 coins."),
    (SHOPPING, "3 x lamp and 2 x tent cost 86 coins."),
    (WARMER, "Oslo is warmer with 31 degrees."),
    (WARMER, "Oslo is warmer than Cairo."),
    (WARMER, "Cairo is warmer with 14 degrees."),
    (WARMER, "Cairo is colder than Oslo."),
    (WARMER, "Cairo is not warmer."),
    (WARMER, "Lima"),
    (WARMER, "warmer"),
    (CONVERT, "12 km is 12000 cm."),
    (CONVERT, "12 km is 1200 m."),
    (OUTSIDE, "Hamlet was written by Shakespeare."),
    (OUTSIDE, "I do not know, but it was Shakespeare."),
    (OUTSIDE, "I do not know that it was written in 1601."),
    (OUTSIDE, "The price of Hamlet is high."),
    (OUTSIDE, ""),
]


@pytest.mark.parametrize(("asked", "answer"), RIGHT)
def test_true_answers_are_right_however_they_are_put(asked: Task, answer: str) -> None:
    found = grade(asked, answer)
    assert found.right, found.why


@pytest.mark.parametrize(("asked", "answer"), WRONG)
def test_anything_else_is_wrong_with_a_reason(asked: Task, answer: str) -> None:
    found = grade(asked, answer)
    assert not found.right
    assert found.why
