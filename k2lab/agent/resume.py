"""Where an interrupted run stood: from a journal to a place in the conversation.

The tokens are read again exactly as they were. Calls whose results are known are not made again;
of those that were begun, the ones that are safe to repeat are made once more, and for the others
the model gets to read that their outcome is unknown. Only what the model was writing when it was
interrupted is lost: it is written anew.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k2lab.agent.journal import Journal, Record
from k2lab.agent.loop import Place
from k2lab.agent.terms import Decision, Guard, Request
from k2lab.agent.tools import Outcome, Tool, canonical_arguments
from k2lab.agent.turns import Mind, read_again
from k2lab.engine.events import ToolAnswered, ToolAsked
from k2lab.engine.generate import NOTHING, Prompt
from k2lab.errors import JournalError
from k2lab.model.cache import LatentCache

UNKNOWN = "error: interrupted; the outcome is unknown: it may or may not have been done"

CLOSED = frozenset({"answer", "loop"})
"""Ends after which there is nothing to go on with."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A run that can go on."""

    place: Place
    recalled: Mapping[str, Outcome]  # of the calls of its last turn
    unknown: tuple[str, ...]  # keys of calls whose outcome nobody knows
    asked: tuple[tuple[str, str, str], ...]  # (key, name, arguments) of calls that were answered
    turns: tuple[int, ...]  # the index at which each turn begins
    events: tuple[ToolAsked | ToolAnswered, ...]  # of the turns before the last
    draws: str  # state of its sampler after its last turn; empty: from its seed on


def stand(records: Sequence[Record], journal: Journal, mind: Mind) -> Interrupted:
    """Where the run of these records stood; outcomes that are now unknown are written down."""
    last = next((each for each in reversed(records) if each.kind in ("ended", "resumed")), None)
    if last is not None and last.kind == "ended" and last.facts["reason"] in CLOSED:
        raise _no_way_on(f"The run ended: {last.facts['reason']}", "a run that was interrupted")
    opened = next((each for each in records if each.kind == "opened"), None)
    if opened is None:
        raise _no_way_on("The run was interrupted before it began", "a run with a prompt")
    prompt, earlier = journal.tokens(opened.facts["given"]), list[Prompt]()
    turns = _turns(records)
    lasts = {number: facts for (number, _), facts in turns.items()}  # a turn may have parts
    turn, before = tuple[int, ...](), -1
    first, tokens, step = 0, 0, max(lasts, default=0)
    begins, events = list[int](), list[ToolAsked | ToolAnswered]()
    for (number, context), facts in turns.items():
        if context > len(earlier):  # compacted before this turn, or in the middle of it
            earlier.append(prompt)
            first += len(prompt.ids)
            prompt = NOTHING
        if facts["given"] is not None:
            prompt += journal.tokens(facts["given"])
        chosen = journal.tokens(facts["chosen"])
        begins.append(first + len(prompt.ids))
        tokens += len(chosen.ids) - (len(turn) if number == before else 0)
        prompt, turn, before = prompt + chosen, chosen.ids, number
        if number < step and facts is lasts[number]:
            events += _events(number, chosen.ids, first + len(prompt.ids), records, mind)
    recalled, unknown = _outcomes(records, step)
    for key in unknown:
        recalled[key] = Outcome(UNKNOWN, ok=False)
        journal.note("answered", key=key, content=UNKNOWN, ok=False)
    known = {each.facts["step"]: each.facts["mark"] for each in records if each.kind == "step"}
    asked = {each.facts["key"]: each.facts for each in records if each.kind == "asked"}
    place = Place(
        prompt,
        LatentCache(mind.model.config),
        turn=turn,
        steps=step,
        seconds=lasts[step]["seconds"] if lasts else 0.0,
        tokens=tokens,
        cost=sum(each["cost"] for each in asked.values()),
        signatures=tuple(text for number, text in sorted(known.items()) if number < step),
        earlier=tuple(earlier),
    )
    answered = {each.facts["key"] for each in records if each.kind == "answered"}
    made = tuple(
        (key, each["name"], canonical_arguments(json.dumps(each["arguments"])))
        for key, each in asked.items()
        if key in answered
    )
    return Interrupted(
        place,
        recalled,
        tuple(unknown),
        made,
        turns=tuple(begins),
        events=tuple(events),
        draws=lasts[step].get("draws", "") if lasts else "",
    )


def tell_again(records: Sequence[Record], guard: Guard, tools: Mapping[str, Tool]) -> None:
    """Bring a guard to where that of the run was: what was decided, and what was read."""
    decided: dict[str, Decision] = {}
    ended = {each.facts["key"] for each in records if each.kind == "answered"}
    asked: dict[str, Mapping[str, Any]] = {}
    for each in records:
        facts = each.facts
        match each.kind:
            case "decided":
                decided[facts["key"]] = Decision(facts["verdict"], facts["why"], facts["by"])
            case "asked" if facts["name"] in tools and facts["key"] not in asked:
                asked[facts["key"]] = facts
                again = facts["key"] not in ended and facts["effect"] != "writes"
                if facts["key"] in decided and not again:  # else it is decided about anew
                    tool = tools[facts["name"]]
                    request = Request(facts["key"], tool, facts["arguments"], "", "")
                    guard.made(request, decided[facts["key"]])
            case "answered" if facts["key"] in asked:
                name = asked[facts["key"]]["name"]
                outcome = Outcome(facts["content"], ok=facts["ok"])
                guard.answered(facts["key"], tools[name], outcome)


def _turns(records: Sequence[Record]) -> dict[tuple[int, int], dict[str, Any]]:
    """The turns by step and context; one that was gone on with is as long as it became."""
    turns = dict[tuple[int, int], dict[str, Any]]()
    for facts in (each.facts for each in records if each.kind == "turn"):
        place = facts["step"], facts.get("context", 0)
        turns[place] = {**facts, "given": turns.get(place, facts)["given"]}
    return turns


def _events(
    step: int, ids: Sequence[int], stop: int, records: Sequence[Record], mind: Mind
) -> Iterator[ToolAsked | ToolAnswered]:
    """What was asked and answered in a turn that ended before index `stop`."""
    turn, ends = read_again(ids, stop, mind.tokenizer)
    answers = {each.facts["key"]: each.facts for each in records if each.kind == "answered"}
    for place, (call, end) in enumerate(zip(turn.calls, ends, strict=True)):
        key = f"{step}.{place}"
        yield ToolAsked(key, call.id, call.name, call.arguments, end)
        if key in answers:
            answer = answers[key]
            yield ToolAnswered(key, call.name, answer["content"], ok=answer["ok"], seconds=0.0)


def _outcomes(records: Sequence[Record], step: int) -> tuple[dict[str, Outcome], list[str]]:
    """Of the last turn's calls: known outcomes, and keys of those that nobody knows."""
    recalled: dict[str, Outcome] = {}
    begun: dict[str, str] = {}
    for each in records:
        facts = each.facts
        if each.kind not in ("asked", "answered") or not facts["key"].startswith(f"{step}."):
            continue
        if each.kind == "asked":
            begun[facts["key"]] = facts["effect"]
        else:
            recalled[facts["key"]] = Outcome(facts["content"], ok=facts["ok"])
    dangling = begun.keys() - recalled.keys()
    return recalled, sorted(key for key in dangling if begun[key] == "writes")


def _no_way_on(found: str, expected: str) -> JournalError:
    return JournalError(
        f"{found}.",
        expected=f"{expected}.",
        mend="Give what is missing, or begin a new run with `lab.run`.",
    )
