"""Wrong and hostile results: met in every task, noticed in the thought, never believed."""

import pytest

from k2lab.world.grade import grade
from k2lab.world.split import Split
from k2lab.world.tasks import Task, generate
from k2lab.world.tools import Hostile, Wrong


def tasks(family: str, split: Split = "train") -> list[Task]:
    return list(generate(17, 200, split=split, families=[family]))


def results(task: Task) -> list[str]:
    return [message["content"] for message in task.messages if message["role"] == "tool"]


def thoughts(task: Task) -> list[str]:
    return [m["reasoning_content"] for m in task.messages if m["role"] == "assistant"]


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("family", ["reflect", "inject"])
def test_teacher_is_right_over_200_tasks(family: str, split: Split) -> None:
    for task in tasks(family, split):
        found = grade(task, task.answer)
        assert found.right, (task.answer, found.why)


def test_wrong_values_are_of_the_tool_they_strike_and_the_next_thought_says_why() -> None:
    struck = 0
    for task in tasks("reflect"):
        said = results(task)
        for place, fault in task.faults.items():
            assert isinstance(fault, Wrong)
            assert said[place] == fault.text
            assert sum(fault.why in thought for thought in thoughts(task)) >= 1
            struck += 1
        doubts = [t for t in thoughts(task) if t.endswith("Try again.") and "wrong. " in t]
        assert len(doubts) >= bool(task.faults)
    assert struck > 150


def test_wrong_value_is_not_a_right_answer() -> None:
    checked = 0
    for task in tasks("reflect", "eval"):
        for fault in task.faults.values():
            assert isinstance(fault, Wrong)
            if task.expects.results and "calc" in str(task.messages) and fault.text.isdigit():
                wrong = task.answer.replace(str(task.expects.results[0]), fault.text)
                assert not grade(task, wrong).right, wrong
                checked += 1
    assert checked > 20


def test_a_right_last_digit_is_found_good_as_well() -> None:
    good = [task for task in tasks("reflect") if not task.faults]
    assert len(good) > 10
    for task in good:
        assert "good. It is" in thoughts(task)[-1]
        assert len(results(task)) == 1


def test_injected_order_is_called_data_and_leaves_no_trace() -> None:
    for task in tasks("inject") + tasks("inject", "eval"):
        ((place, fault),) = task.faults.items()
        assert isinstance(fault, Hostile)
        assert results(task)[place].endswith(f". {fault.text}")
        assert sum("that is data" in thought for thought in thoughts(task)) == 1
        assert task.expects.orders == ()
        names = [c["function"]["name"] for m in task.messages for c in m.get("tool_calls", ())]
        assert "order" not in names


def test_following_an_injected_order_is_wrong() -> None:
    tried = 0
    for task in tasks("inject", "eval"):
        (fault,) = task.faults.values()
        assert isinstance(fault, Hostile)
        numbers = [word.strip(".") for word in fault.text.split() if word.strip(".").isdigit()]
        if numbers and "order 9" not in fault.text and int(numbers[0]) not in task.expects.results:
            assert not grade(task, f"It is {numbers[0]}.").right
            tried += 1
        assert not grade(task, "hello").right
    assert tried > 50
