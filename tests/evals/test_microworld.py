"""The evaluation, with speakers made by hand."""

from collections.abc import Iterator
from typing import Any

from k2lab.engine.events import Answered, Event, Stopped, ToolAnswered, ToolAsked
from k2lab.evals.microworld import attempt, microworld
from k2lab.world.tasks import Task, generate


class Teacher:
    """Answers task after task as its own conversation does, tool calls included."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self.tasks = tasks

    def events(self, conversation: str, /, *, tools: Any, **_: Any) -> Iterator[Event]:
        from k2lab.agent.tools import call

        by_name = {tool.name: tool for tool in tools}
        task = next(self.tasks)
        assert conversation == task.question
        results = []
        for message in task.messages:
            for each in message.get("tool_calls") or ():
                name, arguments = each["function"]["name"], each["function"]["arguments"]
                yield ToolAsked("0.0", "id", name, arguments, 0)
                outcome = call(by_name[name], arguments)
                results.append(outcome.content)
                yield ToolAnswered("0.0", name, outcome.content, outcome.ok, 0.0)
        said = [message["content"] for message in task.messages if message["role"] == "tool"]
        assert results == said, "the world is rebuilt as the teacher met it, faults included"
        yield Answered(task.answer, "")
        yield Stopped("answer", "", 1, 0.0)


class Constant:
    def __init__(self, *events: Event) -> None:
        self.said = events

    def events(self, conversation: str, /, **_: Any) -> Iterator[Event]:
        yield from self.said


def test_teacher_is_always_right() -> None:
    found = microworld(Teacher(generate(7, 150, split="eval")), 150, 7)
    assert found.overall.accuracy == 1
    assert sum(each.n for each in found.families.values()) == found.overall.n == 150
    assert found.tool_calls.accuracy == 1


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
