"""The evaluation, with speakers made by hand."""

from collections.abc import Iterator
from typing import Any

from k2lab.agent.tools import call
from k2lab.engine.events import Answered, Event, Stopped, ToolAnswered, ToolAsked
from k2lab.evals.microworld import attempt, microworld, report, results
from k2lab.text.template import joined, render
from k2lab.world.tasks import Task, generate
from k2lab.world.teacher import turns


class Teacher:
    """Answers task after task as its own conversation does, turn by turn, tool calls included."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self.turns = (
            (sum(map(len, before)), task, turn)
            for task in tasks
            for parts in [turns(task.messages)]
            for before, turn in ((parts[:k], part) for k, part in enumerate(parts))
        )

    def events(self, conversation: Any, /, *, tools: Any, **_: Any) -> Iterator[Event]:
        by_name = {tool.name: tool for tool in tools}
        begun, task, turn = next(self.turns)
        heard = begun + sum(message["role"] in ("system", "user") for message in turn)
        assert joined(render(conversation)) == joined(render(task.messages[:heard]))
        results = []
        for step, message in enumerate(turn):
            asked = message.get("tool_calls") or ()
            for place, each in enumerate(asked):
                name, arguments = each["function"]["name"], each["function"]["arguments"]
                yield ToolAsked(f"{step}.{place}", each["id"], name, arguments, 0)
            for place, each in enumerate(asked):
                name, arguments = each["function"]["name"], each["function"]["arguments"]
                outcome = call(by_name[name], arguments)
                results.append(outcome.content)
                key = f"{step}.{place}"
                yield ToolAnswered(key, name, outcome.content, outcome.ok, 0.0)
        said = [message["content"] for message in turn if message["role"] == "tool"]
        assert results == said, "the world is rebuilt as the teacher met it, faults included"
        yield Answered(turn[-1]["content"], "")
        yield Stopped("answer", "", 1, 0.0)


class Constant:
    def __init__(self, *events: Event) -> None:
        self.said = events

    def events(self, conversation: Any, /, **_: Any) -> Iterator[Event]:
        yield from self.said


def test_teacher_is_always_right() -> None:
    found = microworld(Teacher(generate(7, 150, split="eval")), 150, 7)
    assert found.overall.accuracy == 1
    assert sum(each.n for each in found.families.values()) == found.overall.n == 150
    assert found.tool_calls.accuracy == 1
    assert found.recovered.accuracy == found.injected.accuracy == 1
    assert found.recovered.n > 5
    assert found.injected.n > 2


def test_queue_of_300_is_one_task() -> None:
    tasks = list(generate(2, 2, split="eval", families=["queue"], queue_length=300))
    done = list(
        results(Teacher(iter(tasks)), 2, 2, families=["queue"], queue_length=300),
    )
    assert all(each.right for each in done)
    assert {each.calls for each in done} == {301}


def test_an_order_nobody_asked_for_is_wrong() -> None:
    task = next(generate(1, 1, split="eval", families=["inject"]))
    teacher = Teacher(iter([task]))

    class Obeying:
        def events(self, conversation: Any, /, *, tools: Any, **options: Any) -> Iterator[Event]:
            (order,) = [each for each in tools if each.name == "order"]
            *before, answered, stopped = teacher.events(conversation, tools=tools, **options)
            yield from before
            assert call(order, '{"item": "tent", "count": 1}').ok
            yield answered
            yield stopped

    result = attempt(Obeying(), task)
    assert not result.right
    assert "1 x tent was ordered instead of nothing" in result.why
    assert report([result], 1).injected.accuracy == 0


def test_report_is_a_function_of_the_seed() -> None:
    silent = Constant(Answered("I do not know.", ""), Stopped("answer", "", 1, 0.0))
    assert microworld(silent, 40, 3) == microworld(silent, 40, 3)
    assert microworld(silent, 40, 3).overall.accuracy < 0.5


def test_run_without_an_answer_is_wrong_even_if_its_text_is_right() -> None:
    task = next(generate(1, 1, split="eval"))
    cut = Constant(Answered(task.answer, ""), Stopped("length", "The limit.", 9, 0.0))
    result = attempt(cut, task)
    assert not result.right
    assert result.why == "The limit."


def test_unknown_tools_wrong_arguments_and_damaged_calls_are_not_valid() -> None:
    task = next(generate(1, 1, split="eval"))
    speaker = Constant(
        ToolAsked("0.0", "a", "calc", '{"expression": "1 + 1"}', 3),
        ToolAsked("0.1", "b", "calc", '{"expression": 2}', 3),
        ToolAsked("0.2", "c", "calc", "{", 3),
        ToolAsked("0.3", "d", "fly", "{}", 3),
        Stopped("error", "The model wrote a damaged tool call.", 9, 0.0),
    )
    result = attempt(speaker, task)
    assert (result.valid_calls, result.calls) == (1, 5)
