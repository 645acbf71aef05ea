"""Look-ups, SQL and orders: right over many worlds, and the state is part of the answer."""

import json

import pytest

from k2lab.agent.tools import call
from k2lab.world.chains import QUERIES
from k2lab.world.facts import facts
from k2lab.world.grade import grade, grade_state
from k2lab.world.split import Split
from k2lab.world.tasks import Task, generate, open_world


def tasks(family: str, split: Split = "train") -> list[Task]:
    return list(generate(17, 200, split=split, families=[family]))


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("family", ["lookup", "table", "order"])
def test_teacher_is_right_over_200_tasks_answer_and_state(family: str, split: Split) -> None:
    for task in tasks(family, split):
        found = grade(task, task.answer)
        assert found.right, (task.answer, found.why)
        with open_world(task) as world:
            tools = {each.name: each for each in world.tools()}
            for message in task.messages:
                for each in message.get("tool_calls", ()):
                    made = each["function"]
                    assert call(tools[made["name"]], made["arguments"]).ok
            assert grade_state(task, world.orders).right


def test_each_call_of_a_look_up_needs_the_result_before() -> None:
    for task in tasks("lookup"):
        said = [m["content"] for m in task.messages if m["role"] == "tool"]
        asked = [
            json.loads(each["function"]["arguments"])
            for message in task.messages
            for each in message.get("tool_calls", ())
        ]
        assert len(asked) >= 2
        for before, after in zip(said, asked[1:], strict=False):
            assert any(word in str(after) for word in before.split())


def test_wrong_city_wrong_name_and_wrong_count_are_wrong() -> None:
    for task in (*tasks("lookup", "eval"), *tasks("table", "eval")):
        assert not grade(task, "It is tent and Oslo and Anna with 7.").right
        assert not grade(task, "I do not know that.").right
        for number in task.expects.results:
            assert not grade(task, task.answer.replace(str(number), str(number + 1))).right


def test_query_finds_what_the_facts_say() -> None:
    kinds = set()
    for task in tasks("table", "eval"):
        (sql,) = [each for m in task.messages for each in m.get("tool_calls", ())]
        (found,) = [m["content"] for m in task.messages if m["role"] == "tool"]
        kind = task.keys[0].split()[1]
        sky = next((s for s in ("sunny", "cloudy", "rainy", "windy", "foggy", "stormy")
                    if s in task.question), "")  # fmt: skip
        right = QUERIES[kind].truth(facts(task.world_seed), int(task.keys[0].split()[2]), sky)
        assert (found,) == tuple(map(str, right)), sql
        kinds.add(kind)
    assert kinds == set(QUERIES)


def test_orders_are_made_where_there_is_enough_and_only_there() -> None:
    short = 0
    for task in tasks("order"):
        known = facts(task.world_seed)
        for item, count in task.expects.orders:
            assert known.stocks[item] >= count
        short += "Too few" in task.answer
    assert 40 < short < 160


def test_missing_doubled_and_foreign_orders_are_wrong() -> None:
    for task in tasks("order", "eval")[:50]:
        right = task.expects.orders
        assert grade_state(task, right).right
        assert not grade_state(task, (*right, ("tent", 1))).right
        assert not grade_state(task, (*right, *right[:1])).right or not right
        if right:
            assert not grade_state(task, right[1:]).right
            assert not grade(task, f"Too few {right[0][0]}.").right
