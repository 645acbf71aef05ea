"""Recipe: all that makes a run what it is, and the cell of code that makes it again.

A run is a function of its recipe: the same checkpoint, conversation, sampler and edits give the
same tokens on the same machine. A branch's recipe says where it leaves its parent and what was
given there. Not here: running (`run.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from k2lab.agent.budget import Budget
from k2lab.agent.tools import Tool
from k2lab.engine.capture import LEVELS, ROUTE, Level
from k2lab.engine.edits import Edit, to_json
from k2lab.engine.sampling import Sampled, Sampler, greedy
from k2lab.engine.taps import untouched
from k2lab.errors import InputError, MissingError
from k2lab.model.load import Placement, Places
from k2lab.paths import asset
from k2lab.rules import Rules
from k2lab.spec.sites import Tap
from k2lab.weights.store import WeightStore

Conversation = str | Sequence[Mapping[str, Any]]
"""A question, or messages in the OpenAI form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a run is made of."""

    conversation: Conversation
    tools: tuple[Tool, ...] | None  # None: the lab's own, in a world that begins anew
    sampler: Sampler
    max_tokens: int  # chosen by this run; a branch counts from where it leaves its parent
    edits: tuple[Edit, ...] = ()
    tap: Tap = untouched
    capture: Level = ROUTE
    budget: Budget = field(default_factory=Budget)  # a branch counts its own
    rules: Rules = field(default_factory=Rules)
    at: int | None = None  # of a branch: the first token that is not its parent's
    given: tuple[int, ...] = ()  # of a branch: ids that stand there instead

    def __post_init__(self) -> None:
        told = self.conversation
        if not isinstance(told, Sequence) or isinstance(told, bytes):
            raise _unfit("The conversation", told, "a question, or a list of messages")
        if not (told.strip() if isinstance(told, str) else told):
            raise _unfit("The conversation", told, "a question with words, or messages")
        if not callable(self.sampler):
            raise _unfit("The sampler", self.sampler, "one of k2lab.engine.sampling, or a function")
        if not callable(self.tap):
            raise _unfit("The tap", self.tap, "a function of a site and a value")
        check_limit(self.max_tokens)
        check_tools(self.tools or ())


def check_limit(max_tokens: int) -> None:
    """Raise unless it is a number of tokens."""
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise _unfit("max_tokens", max_tokens, "a whole number, at least 1")


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise unless all of them are tools."""
    for each in tools:
        if not isinstance(each, Tool):
            raise _unfit("One of the tools", each, "a function with `@tool` above it")


def _unfit(what: str, value: object, expected: str) -> InputError:
    mend = "Correct what the run is given, or leave it out."
    return InputError(f"{what} is {value!r:.80}.", expected=f"{expected}.", mend=mend)


def messages_of(conversation: Conversation) -> Sequence[Mapping[str, Any]]:
    """The conversation as messages."""
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    return conversation


@dataclass(frozen=True, slots=True)
class Source:
    """Where a lab's checkpoint came from; None: made of objects in memory."""

    folder: Path | None
    placement: Placement | Places | WeightStore = "auto"

    def code(self) -> str:
        """The call that loads it."""
        if self.folder is None or not isinstance(self.placement, str | Places):
            raise _unwritable("a model made in memory", "a checkpoint folder")
        places = self.placement
        chosen = asdict(places) if isinstance(places, Places) else {"placement": places}
        usual = {each.name: each.default for each in fields(Places)}
        placed = [f"{name}={value!r}" for name, value in chosen.items() if value != usual[name]]
        try:
            shipped = self.folder == asset("k2-nano")
        except MissingError:
            shipped = False
        given = [] if shipped else [repr(str(self.folder))]
        return f"k2lab.load({', '.join([*given, *placed])})"


def cell(line: Sequence[Recipe], source: Source) -> str:
    """Python that makes the last of these runs: the first is a root, each later one branches off.

    The cell loads the checkpoint again, so that it depends on nothing but tools of one's own.
    """
    names = ["run", "branch", *(f"branch_{number}" for number in range(2, len(line)))]
    lines = ["import k2lab"]
    if str(line[0].capture) not in LEVELS:
        lines.append("from k2lab.engine.capture import Level")
    if line[0].budget != Budget():
        lines.append("from k2lab.agent.budget import Budget")
    lines += [f"from k2lab.engine.sampling import {_imported(line)}", "", f"lab = {source.code()}"]
    for place, recipe in enumerate(line):
        lines += _root(recipe) if not place else [_branch(recipe, names[place - 1], names[place])]
    return "\n".join([*lines, names[len(line) - 1]]) + "\n"


def _root(recipe: Recipe) -> list[str]:
    level = str(recipe.capture)
    capture = f", capture={level!r}" if level in LEVELS else f", capture={recipe.capture!r}"
    if recipe.capture == ROUTE:  # a branch has its parent's
        capture = ""
    limits = ", ".join(
        f"{each.name}={value}"
        for each in fields(Budget)
        if (value := getattr(recipe.budget, each.name)) != getattr(Budget(), each.name)
    )
    budget = f", budget=Budget({limits})" if limits else ""
    given = f"{_conversation(recipe.conversation)}{_options(recipe)}{capture}{budget}"
    made = f"run = lab.run({given}).wait()"
    if not recipe.edits:
        return [made]
    edits = ",\n    ".join(repr(to_json(each)) for each in recipe.edits)
    return ["with lab.edit(", f"    {edits},", "):", f"    {made}"]


def _branch(recipe: Recipe, parent: str, name: str) -> str:
    token = ""
    if recipe.given:
        token = f", token={recipe.given[0] if len(recipe.given) == 1 else list(recipe.given)}"
    edits = f", edits={[to_json(each) for each in recipe.edits]}"
    return f"{name} = {parent}.branch({recipe.at}{token}{_options(recipe)}{edits}).wait()"


def _options(recipe: Recipe) -> str:
    if recipe.tap is not untouched:
        raise _unwritable("a tap of one's own", "edits (`lab.edit`), which are data")
    if recipe.rules != Rules():
        raise _unwritable("policies, mandates or a journal", "a run without them")
    sampler = recipe.sampler
    if not isinstance(sampler, Sampled) and sampler is not greedy:
        raise _unwritable("a sampler of one's own", "`greedy` or `sampled(…)`")
    text = "greedy" if sampler is greedy else repr(sampler)
    tools = ""
    if recipe.tools is not None and recipe.at is None:  # a branch has its parent's
        tools = f", tools=[{', '.join(each.name for each in recipe.tools)}]"
    return f"{tools}, sampler={text}, max_tokens={recipe.max_tokens}"


def _imported(line: Sequence[Recipe]) -> str:
    names = {"greedy" if each.sampler is greedy else "sampled" for each in line}
    return ", ".join(sorted(names))


def _conversation(conversation: Conversation) -> str:
    if isinstance(conversation, str):
        return repr(conversation)
    try:
        return repr(json.loads(json.dumps([dict(each) for each in conversation])))
    except (TypeError, ValueError) as error:
        raise _unwritable("messages that are not JSON", "plain dictionaries") from error


def _unwritable(found: str, expected: str) -> InputError:
    return InputError(
        f"This run has {found}, which cannot be written as code.",
        expected=f"{expected}.",
        mend="Run it again with these, or copy the cell that made it.",
    )
