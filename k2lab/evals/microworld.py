"""How often a model is right in the microworld, family by family.

Tasks of the evaluation split (numbers, pairs and phrasings that training never sees) run through
the real agent loop: the model asks, the world of the task answers with its faults, code grades the
final answer and what was ordered. Where the user speaks more than once, the model lives with its
own earlier answers. Decoding is greedy, so a report is a function of (model, n, seed). Not here:
other benchmarks, and partial credit.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jsonschema import Draft202012Validator

from k2lab.agent.tools import Tool
from k2lab.engine.events import Answered, Event, Stopped, TokenChosen, ToolAnswered, ToolAsked
from k2lab.engine.sampling import Sampler, greedy
from k2lab.evals.stats import Share, share
from k2lab.world.grade import grade, grade_state
from k2lab.world.tasks import Task, generate, open_world
from k2lab.world.teacher import turns
from k2lab.world.tools import Hostile, Wrong

MAX_TOKENS = 2048  # chosen tokens of one answer, as in a lab; the longest teacher needs about half
QUEUE_TOKENS = 64  # chosen tokens for each number of a queue whose length was asked for


class Speaker(Protocol):
    """Anything that turns a question and tools into events, such as `k2lab.load()`."""

    def events(
        self,
        conversation: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Tool],
        sampler: Sampler,
        max_tokens: int,
    ) -> Iterator[Event]:
        """The events of one run."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """One task done."""

    task: Task
    answer: str
    why: str  # the grader's reason, or how the run ended
    calls: int  # tool calls begun
    valid_calls: int  # those with a known name and arguments that fit the schema
    tokens: int  # chosen by the model
    right: bool = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Report:
    """Shares of right answers, all together and by family, and of valid tool calls.

    `recovered` is of tasks with a tool error or a wrong value, `injected` of tasks with an order
    in a tool's result: right means that it was not followed.
    """

    seed: int
    overall: Share
    families: dict[str, Share]
    tool_calls: Share
    tokens: int
    recovered: Share
    injected: Share


def microworld(speaker: Speaker, n: int, seed: int) -> Report:
    """The report on `n` tasks of the evaluation split."""
    return report(results(speaker, n, seed), seed)


def results(
    speaker: Speaker,
    n: int,
    seed: int,
    *,
    families: Sequence[str] | None = None,
    queue_length: int | None = None,
) -> Iterator[Result]:
    """The results one by one, in the order of the tasks."""
    for task in generate(seed, n, split="eval", families=families, queue_length=queue_length):
        yield attempt(speaker, task)


def attempt(speaker: Speaker, task: Task, *, max_tokens: int | None = None) -> Result:
    """What the speaker makes of one task, in the world as it was before the first call.

    An answer may have `max_tokens`, or as many as its queue needs.
    """
    calls = valid = tokens = 0
    history: list[Mapping[str, Any]] = []
    most = MAX_TOKENS if max_tokens is None else max_tokens
    limit = max(most, QUEUE_TOKENS * (task.queue_length or 0))
    with open_world(task) as world:
        tools = {tool.name: tool for tool in world.tools()}
        for turn in turns(task.messages):
            history += (message for message in turn if message["role"] in ("system", "user"))
            answer, reason, detail = "", "error", "the run has no end"
            steps: dict[str, _Step] = {}
            for event in speaker.events(
                tuple(history), tools=list(tools.values()), sampler=greedy, max_tokens=limit
            ):
                match event:
                    case TokenChosen():
                        tokens += 1
                    case ToolAsked():
                        calls += 1
                        valid += _fits(event, tools)
                        steps.setdefault(event.key.split(".")[0], _Step()).asked.append(event)
                    case ToolAnswered():
                        steps.setdefault(event.key.split(".")[0], _Step()).answered.append(event)
                    case Answered():
                        answer = event.content
                    case Stopped():
                        reason, detail = event.reason, event.detail
            if reason != "answer":
                # A call too damaged to be asked still is a call that was tried.
                damaged = int(reason == "error")
                why = detail or reason
                return Result(task, answer, why, calls + damaged, valid, tokens, right=False)
            for step in steps.values():
                history += step.messages()
            history.append({"role": "assistant", "content": answer})
        graded = grade(task, answer)
        if graded.right:
            graded = grade_state(task, world.orders)
    return Result(task, answer, graded.why, calls, valid, tokens, right=graded.right)


@dataclass(slots=True)
class _Step:
    """The calls of one turn of the model and their results."""

    asked: list[ToolAsked] = field(default_factory=list)
    answered: list[ToolAnswered] = field(default_factory=list)

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """The messages that a later turn reads; thinking is not among them."""
        calls = [
            {
                "id": each.id,
                "type": "function",
                "function": {"name": each.name, "arguments": each.arguments},
            }
            for each in self.asked
        ]
        yield {"role": "assistant", "content": "", "tool_calls": calls}
        for asked, answered in zip(self.asked, self.answered, strict=True):
            yield {
                "role": "tool",
                "tool_call_id": asked.id,
                "name": asked.name,
                "content": answered.content,
            }


def report(done: Iterable[Result], seed: int) -> Report:
    """The shares over results; families in the order of their names."""
    families: dict[str, list[bool]] = defaultdict(list)
    recovered, injected = list[bool](), list[bool]()
    calls = valid = tokens = 0
    for result in done:
        met = result.task.faults.values()
        if any(isinstance(fault, str | Wrong) for fault in met):
            recovered.append(result.right)
        if any(isinstance(fault, Hostile) for fault in met):
            injected.append(result.right)
        families[result.task.family].append(result.right)
        calls += result.calls
        valid += result.valid_calls
        tokens += result.tokens
    right = [each for family in families.values() for each in family]
    return Report(
        seed,
        share(sum(right), len(right)),
        {name: share(sum(each), len(each)) for name, each in sorted(families.items())},
        share(valid, calls),
        tokens,
        share(sum(recovered), len(recovered)),
        share(sum(injected), len(injected)),
    )


def _fits(asked: ToolAsked, tools: dict[str, Tool]) -> bool:
    """Whether the tool exists and the arguments are JSON of its schema."""
    if asked.name not in tools:
        return False
    try:
        arguments = json.loads(asked.arguments)
    except (ValueError, RecursionError):
        return False
    return Draft202012Validator(dict(tools[asked.name].parameters)).is_valid(arguments)
