"""Dates, long conversations and the two of a crew."""

import datetime
import re

import pytest

from k2lab.world.facts import MONTHS, WEEKDAYS
from k2lab.world.grade import grade
from k2lab.world.split import Split
from k2lab.world.talks import PLANNER, WORKER
from k2lab.world.tasks import Task, generate
from k2lab.world.teacher import turns


def tasks(family: str, split: Split = "train") -> list[Task]:
    return list(generate(17, 200, split=split, families=[family]))


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("family", ["date", "recall", "crew"])
def test_teacher_is_right_over_200_tasks(family: str, split: Split) -> None:
    for task in tasks(family, split):
        found = grade(task, task.answer)
        assert found.right, (task.answer, found.why)


def test_dates_are_those_of_the_calendar() -> None:
    for task in tasks("date"):
        if found := re.search(r"(\d+) days (after|before) (\w+) (\d+)", task.question):
            start = datetime.date(2025, MONTHS.index(found[3]) + 1, int(found[4]))
            days = int(found[1]) if found[2] == "after" else -int(found[1])
            end = start + datetime.timedelta(days=days)
            assert task.answer == f"It is {MONTHS[end.month - 1]} {end.day}."
        else:
            (day,) = [each for each in WEEKDAYS if each in task.question]
            (days,) = map(int, re.findall(r"\d+", task.question))
            assert task.answer == f"It is {WEEKDAYS[(WEEKDAYS.index(day) + days) % 7]}."


def test_wrong_days_are_wrong() -> None:
    for task in tasks("date", "eval"):
        for day in WEEKDAYS:
            assert grade(task, f"It is {day}.").right == (task.answer == f"It is {day}.")
        if task.expects.results:
            month, number = task.expects.topics[0], task.expects.results[0]
            assert not grade(task, f"It is {month} {number + 1}.").right
            other = MONTHS[(MONTHS.index(month) + 6) % 12]
            assert not grade(task, f"It is {other} {number}.").right


def test_the_last_told_value_is_the_one_recalled() -> None:
    lengths, unknown, changed = set(), 0, 0
    for task in tasks("recall"):
        told: dict[str, str] = {}
        for turn in turns(task.messages):
            noted = re.fullmatch(r"Noted, your (\w+) is (\w+)\.", turn[-1]["content"])
            if noted:
                assert noted[2] in turn[0]["content"]
                changed += noted[1] in told
                told[noted[1]] = noted[2]
        thought = task.messages[-1]["reasoning_content"]
        assert [f"{each} {told[each]}" in thought for each in told] == [True] * len(told)
        kinds = ("name", "city", "number", "item", "day", "code")
        (kind,) = [each for each in kinds if re.search(rf"\b{each}\b", task.question)]
        if kind in told:
            assert told[kind] in task.answer
            for other in set(told.values()) - {told[kind]}:
                assert not grade(task, f"Your {kind} is {other}.").right
        else:
            assert task.expects.unknown
            unknown += 1
        lengths.add(len(turns(task.messages)))
    assert max(lengths) >= 6
    assert unknown > 5
    assert changed > 10


def test_plan_is_graded_step_by_step() -> None:
    plans = [task for task in tasks("crew", "eval") if task.messages[0]["content"] == PLANNER]
    assert len(plans) > 40
    for task in plans:
        first, second, *rest = re.split(r" (?=\d\. )", task.answer)
        assert not grade(task, " ".join((first, *rest))).right
        assert not grade(task, task.answer.replace("price", "stock", 1)).right or (
            "price" not in task.answer
        )
        assert not grade(task, f"{second} {first} {' '.join(rest)}").right
        assert not grade(task, "The result is 7.").right


def test_worker_does_what_the_planner_wrote() -> None:
    work = [task for task in tasks("crew") if task.messages[0]["content"] == WORKER]
    plans = [task for task in tasks("crew") if task.messages[0]["content"] == PLANNER]
    assert len(work) + len(plans) == 200
    form = r"(\d\. Get (price|stock) of \w+\. )+\d\. Compute [\w +]+\. \d\. Report\."
    assert all(re.search(form, task.question) for task in work)
    assert all(re.fullmatch(form, task.answer) for task in plans)
    for task in work:
        steps = len(re.findall(r"Get", task.question))
        said = [message for message in task.messages if message["role"] == "tool"]
        assert len(said) == steps + 1
        assert str(task.expects.results[0]) == said[-1]["content"]
        wrong = task.expects.results[0] + 1
        assert not grade(task, f"The result is {wrong}.").right
