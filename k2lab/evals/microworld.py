"""How often a model is right in the microworld, family by family.

Tasks of the evaluation split (numbers, pairs and phrasings that training never sees) run through
the real agent loop: the model asks, the world of the task answers with its faults, code grades the
final answer. Decoding is greedy, so a report is a function of (model, n, seed). Not here: other
benchmarks, and partial credit.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jsonschema import Draft202012Validator

from k2lab.agent.tools import Tool
from k2lab.engine.events import Answered, Event, Stopped, TokenChosen, ToolAsked
from k2lab.engine.sampling import Sampler, greedy
from k2lab.evals.stats import Share, share
from k2lab.world.grade import grade
from k2lab.world.tasks import Task, generate, open_world

MAX_TOKENS = 1024  # chosen tokens in one task; the longest teacher conversation needs fewer


class Speaker(Protocol):
    """Anything that turns a question and tools into events, such as `k2lab.load()`."""

    def events(
        self, conversation: str, /, *, tools: Sequence[Tool], sampler: Sampler, max_tokens: int
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
    """Shares of right answers, all together and by family, and of valid tool calls."""

    seed: int
    overall: Share
    families: dict[str, Share]
    tool_calls: Share
    tokens: int


def microworld(speaker: Speaker, n: int, seed: int) -> Report:
    """The report on `n` tasks of the evaluation split."""
    return report(results(speaker, n, seed), seed)


def results(speaker: Speaker, n: int, seed: int) -> Iterator[Result]:
    """The results one by one, in the order of the tasks."""
    for task in generate(seed, n, split="eval"):
        yield attempt(speaker, task)


def attempt(speaker: Speaker, task: Task) -> Result:
    """What the speaker makes of one task, in the world as it was before the first call."""
    answer, reason, detail = "", "error", "the run has no end"
    calls = valid = tokens = 0
    with open_world(task) as world:
        tools = {tool.name: tool for tool in world.tools()}
        for event in speaker.events(
            task.question, tools=list(tools.values()), sampler=greedy, max_tokens=MAX_TOKENS
        ):
            match event:
                case TokenChosen():
                    tokens += 1
                case ToolAsked():
                    calls += 1
                    valid += _fits(event, tools)
                case Answered():
                    answer = event.content
                case Stopped():
                    reason, detail = event.reason, event.detail
    if reason != "answer":
        # A call too damaged to be asked still is a call that was tried.
        damaged = int(reason == "error")
        why = detail or reason
        return Result(task, answer, why, calls + damaged, valid, tokens, right=False)
    graded = grade(task, answer)
    return Result(task, answer, graded.why, calls, valid, tokens, right=graded.right)


def report(done: Iterable[Result], seed: int) -> Report:
    """The shares over results; families in the order of their names."""
    families: dict[str, list[bool]] = defaultdict(list)
    calls = valid = tokens = 0
    for result in done:
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
