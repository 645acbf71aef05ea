"""Workflows: plan, act, check, redo; two agents; several trajectories. They compose.

Each is a generator of moments (who, and which event) that gives back what came of it, so that a
workflow inside a workflow is `yield from`, and one timeline shows them all. A `Speaker` is a lab,
or anything with its `events`. The model's own words are handed on as plain text, never as markers;
and what an agent says after it read text from outside is handed on as such, so that no order inside
a result becomes, in the next agent's run, the word of the user (see `policy.py`).
Not here: what a single run may do (`terms.py`).
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol

from k2lab.agent.calling import Cancellation, cancellation, within
from k2lab.agent.tools import Tool
from k2lab.engine.events import Answered, Event, Stopped, ToolAnswered, ToolAsked
from k2lab.engine.session import Halted
from k2lab.engine.threads import as_here
from k2lab.errors import InputError

TRIES = 3  # of an answer that does not pass its check
TRAJECTORIES = 8  # of the heavy mode, as for K2 Thinking
WORKERS = os.cpu_count() or 1  # trajectories at a time: more would only wait for each other

REDO = "This does not pass: {problem} Do it again."
REFLECT = (
    "{question}\n\n{count} attempts were made on this, independently of each other:\n{attempts}\n"
    "Compare them, find what is wrong in them, and give one final answer."
)


_RUNS = count()


class Speaker(Protocol):
    """Somebody who answers a conversation, such as a lab."""

    def events(
        self, conversation: Any, *, tools: Sequence[Tool] | None = None, **options: Any
    ) -> Iterator[Event]:
        """The events of one run."""
        ...

    def beside(self) -> "Speaker":
        """One like this, whose runs go on at the same time as those of this one."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """An event, and whose it is."""

    agent: str
    event: Event
    seconds: float  # since the beginning of this Python process's clock; comparable among agents
    run: int  # which of all the runs of this process


@dataclass(frozen=True, slots=True)
class Said:
    """What came of one run."""

    text: str
    reason: str  # why the run ended; "answer" if it answered
    calls: int
    outside: bool  # it was said after text from outside was read

    def message(self, role: Literal["assistant", "user"]) -> Mapping[str, Any]:
        """As what the agent itself said before, or as what is asked of the next one."""
        return _message(role, self.text, self.text if self.outside else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a workflow."""

    text: str
    passed: bool  # it passed its check; without one: it is an answer
    tries: tuple[str, ...]  # all answers on the way, the last one too
    outside: bool = False  # text from outside was read on the way to it


Saying = Generator[Moment, None, Said]
Workflow = Generator[Moment, None, Outcome]
_News = tuple[int, Moment | Said | BaseException]  # of which trajectory
Check = Callable[[str], str]
"""What is wrong with an answer, in words for the model; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A speaker with a name, its own tools and its own options for `events`."""

    name: str
    speaker: Speaker
    tools: Sequence[Tool] | None = None
    options: Mapping[str, Any] | None = None

    def says(self, conversation: Any) -> Saying:
        """One run."""
        text, reason, calls, run = "", "error", 0, next(_RUNS)
        trusted = {tool.name for tool in self.tools or () if tool.trusted}
        outside = _read_outside(conversation)
        for event in self.speaker.events(
            conversation, tools=self.tools, **dict(self.options or {})
        ):
            match event:
                case Answered():
                    text = event.content
                case ToolAsked():
                    calls += 1
                case ToolAnswered(name=name):
                    outside = outside or name not in trusted
                case Stopped():
                    reason = event.reason
            yield Moment(self.name, event, time.monotonic(), run)
        return Said(text.strip(), reason, calls, outside)


def redone(agent: Agent, question: str, check: Check, *, tries: int = TRIES) -> Workflow:
    """Act, check, redo: the answer, asked for again with what is wrong until it passes."""
    _at_least_one("tries", tries)
    messages, answers = [_message("user", question)], list[str]()
    for _ in range(tries):
        said = yield from agent.says(tuple(messages))
        answers.append(said.text)
        problem = check(said.text) if said.reason == "answer" else f"It ended: {said.reason}."
        if not problem:
            return Outcome(said.text, passed=True, tries=tuple(answers), outside=said.outside)
        wrong = _message("user", REDO.format(problem=problem), problem if said.outside else "")
        messages += [said.message("assistant"), wrong]
    return Outcome(answers[-1], passed=False, tries=tuple(answers), outside=said.outside)


def planned(
    planner: Agent, doer: Agent, question: str, check: Check, *, tries: int = TRIES
) -> Workflow:
    """Plan, act, check, redo: one agent says what to do, line by line, another does each line.

    The planner's lines are questions for the doer, who reads earlier results before each, and does
    none after one that it has not answered. What fails its check is planned anew, with what was
    wrong.
    """
    _at_least_one("tries", tries)
    request, answers = _message("user", question), list[str]()
    for _ in range(tries):
        plan = yield from planner.says((request,))
        known: list[Mapping[str, Any]] = []
        said = replace(plan, text="")
        for line in filter(None, map(str.strip, plan.text.splitlines())):
            if said.reason != "answer":  # of a plan that broke off nothing is done
                break
            known.append(_message("user", line, line if plan.outside else ""))
            said = yield from doer.says(tuple(known))
            known.append(said.message("assistant"))
        answers.append(said.text)
        problem = check(said.text) if said.reason == "answer" else f"It ended: {said.reason}."
        if not problem:
            return Outcome(said.text, passed=True, tries=tuple(answers), outside=said.outside)
        again = f"{question}\n{REDO.format(problem=problem)}"
        request = _message("user", again, problem if said.outside else "")
    return Outcome(answers[-1], passed=False, tries=tuple(answers), outside=said.outside)


def together(
    agents: Sequence[Agent], question: str, *, turns: int, done: Callable[[str], bool]
) -> Workflow:
    """Agents that co-operate: each goes on from what the one before it answered, in turn."""
    _at_least_one("agents", len(agents))
    _at_least_one("turns", turns)
    request, answers = _message("user", question), list[str]()
    for turn in range(turns):
        said = yield from agents[turn % len(agents)].says((request,))
        answers.append(said.text)
        if said.reason != "answer":
            break
        if done(said.text):
            return Outcome(said.text, passed=True, tries=tuple(answers), outside=said.outside)
        request = said.message("user")
    return Outcome(answers[-1], passed=False, tries=tuple(answers), outside=said.outside)


def heavy(
    trajectories: Sequence[Agent],
    question: str,
    reflecting: Agent | None = None,
    *,
    workers: int = WORKERS,
) -> Workflow:
    """Heavy mode: the same question to several at the same time, then one answer out of theirs.

    With a `reflecting` agent, it reads all attempts and answers; without one, the answer that most
    of them gave is taken, the earliest among equals. It passes if anybody answered. They do not see
    each other, and each is what it would be alone; `workers` of them go on at a time.
    """
    _at_least_one("trajectories", len(trajectories))
    _at_least_one("workers", workers)
    heard = yield from _at_once(trajectories, question, workers)
    answers = [said.text for said in heard if said.reason == "answer"]
    outside = any(said.outside for said in heard)
    if not answers:
        return Outcome("", passed=False, tries=(), outside=outside)
    if reflecting is None:
        best = Counter(answers).most_common(1)[0][0]
        return Outcome(best, passed=True, tries=tuple(answers), outside=outside)
    attempts = "\n".join(f"{number}. {text}" for number, text in enumerate(answers, 1))
    request = REFLECT.format(question=question, count=len(answers), attempts=attempts)
    said = yield from reflecting.says((_message("user", request, attempts if outside else ""),))
    passed, tried = said.reason == "answer", (*answers, said.text)
    return Outcome(said.text, passed=passed, tries=tried, outside=said.outside)


def _at_once(
    agents: Sequence[Agent], question: str, workers: int
) -> Generator[Moment, None, list[Said]]:
    """What each of them says, in their order; and so come their moments, one after the other.

    What one raises ends all, and so does closing this or giving up the call it belongs to.
    """
    news: SimpleQueue[_News] = SimpleQueue()
    todo, cancel = SimpleQueue[int](), Cancellation()
    for place in range(len(agents)):
        todo.put(place)

    def work() -> None:
        with within(cancel), suppress(Empty):
            while not cancel.cancelled:
                place = todo.get_nowait()
                try:
                    for each in _told(agents[place], question, cancel):
                        news.put((place, each))
                except BaseException as error:  # noqa: BLE001 - raised again by who waits
                    news.put((place, error))
            news.put((0, Halted()))  # whoever waits for those that were not begun

    threads = [
        threading.Thread(target=as_here(work), name=f"k2lab-heavy-{number}", daemon=True)
        for number in range(min(workers, len(agents)))
    ]
    waiting = [deque[Moment | Said]() for _ in agents]
    heard = list[Said]()
    with cancellation().calling(cancel.cancel):
        try:
            for thread in threads:
                thread.start()
            while len(heard) < len(agents):
                place, each = news.get()
                if isinstance(each, BaseException):
                    raise each
                waiting[place].append(each)
                while len(heard) < len(agents) and waiting[len(heard)]:
                    told = waiting[len(heard)].popleft()
                    if isinstance(told, Said):
                        heard.append(told)
                    else:
                        yield told
        finally:
            cancel.cancel()
            for thread in threads:
                thread.join()
    return heard


def _told(agent: Agent, question: str, cancel: Cancellation) -> Iterator[Moment | Said]:
    """The moments of one trajectory, and what came of it; Halted where all are given up."""
    saying = replace(agent, speaker=agent.speaker.beside()).says(question)
    while True:
        try:
            yield next(saying)
        except StopIteration as stop:
            yield stop.value
            return
        if cancel.cancelled:
            saying.close()
            raise Halted


def finish(workflow: Workflow) -> tuple[Outcome, list[Moment]]:
    """What comes of a workflow, and all of its moments."""
    moments: list[Moment] = []
    while True:
        try:
            moments.append(next(workflow))
        except StopIteration as stop:
            return stop.value, moments


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a timeline of several agents."""

    second: float  # since the first moment
    agent: str
    what: str


def timeline(moments: Sequence[Moment]) -> tuple[Row, ...]:
    """Calls, results and answers of all agents on one clock, in order."""
    rows, began = list[Row](), min((each.seconds for each in moments), default=0.0)
    for each in moments:
        match each.event:
            case ToolAsked(name=name, arguments=arguments):
                what = f"calls {name} {arguments}"
            case ToolAnswered(name=name, content=content):
                what = f"{name} → {content}"
            case Answered(content=content):
                what = f"answers {content.strip()}"
            case Stopped(reason=reason) if reason != "answer":
                what = f"stops: {reason}"
            case _:
                continue
        rows.append(Row(each.seconds - began, each.agent, what))
    return tuple(sorted(rows, key=lambda row: row.second))


def _message(role: str, text: str, outside: str = "") -> Mapping[str, Any]:
    """A message, of which a part may have come from outside."""
    return {"role": role, "content": text} | ({"outside": outside} if outside else {})


def _read_outside(conversation: Any) -> bool:
    """Whether a conversation begins with results, or with what was handed on from outside."""
    if isinstance(conversation, str):
        return False
    return any(each.get("outside") or each.get("role") == "tool" for each in conversation)


def _at_least_one(what: str, number: int) -> None:
    if number < 1:
        raise InputError(
            f"A workflow with {number} {what}.", expected="at least one.", mend=f"Give {what}."
        )
