"""The rules of a lab's run, from what a person writes to the terms that the loop is bound to.

    lab.run(question, policy=[deny("order"), allow_reading], mandate=signed, journal="run.journal")

Without a policy and a mandate every call is made, as in a run without rules. Not here: what the
rules mean (`agent/policy.py`, `agent/mandate.py`, `agent/journal.py`).
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from k2lab.agent.budget import Budget
from k2lab.agent.journal import Journal, read
from k2lab.agent.keys import Key
from k2lab.agent.mandate import Mandate, Mandates, Nonces
from k2lab.agent.memory import Memory
from k2lab.agent.policy import Policies, Policy, user_text
from k2lab.agent.terms import Approval, Guard, NoGuard, Request
from k2lab.agent.tools import Tool, canonical_arguments
from k2lab.agent.veil import Veil
from k2lab.engine.edits import Edit, to_json, unique
from k2lab.engine.sampling import Sampler, named
from k2lab.engine.taps import untouched
from k2lab.errors import InputError, JournalError, MissingError
from k2lab.spec.sites import Tap

if TYPE_CHECKING:
    from k2lab.lab import Lab
    from k2lab.recipe import Recipe

SAID = frozenset({"description", "title", "examples", "$comment"})
"""Keywords of JSON Schema that are said to readers, and change nothing about what fits."""

NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
"""Keywords under which schemas stand by names of one's own."""

VALUES = frozenset({"enum", "const", "default"})
"""Keywords whose value is data, not a schema."""

OPTIONS = ("tools", "sampler", "max_tokens", "tap", "capture")
"""What a run is given beside its rules and its budget."""

SHOWN = ("messages", "tools", "edits", "capture")
"""What of a journal's first line may have secrets in it."""

Approve = Callable[[Request], bool]
"""A person's decision as a function; only True is a yes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run is bound to, beside its budget."""

    policy: tuple[Policy, ...] | None = None  # None: every call is made
    mandates: tuple[Mandate, ...] = ()
    approve: Approve | None = None  # None: the person at the page, `run.approve()`
    journal: Path | None = None
    secrets: tuple[str, ...] = ()  # texts that the journal must not hold
    memory: Memory | None = None  # whose tools the model has beside its own

    @classmethod
    def of(
        cls,
        policy: Policy | Sequence[Policy] | None = None,
        mandate: Mandate | Sequence[Mandate] | None = None,
        approve: Approve | None = None,
        journal: str | Path | None = None,
        secrets: Sequence[str] = (),
        *,
        memory: Memory | None = None,
    ) -> "Rules":
        """The rules from what may be one or several; InputError for what is of another kind."""
        policies, mandates, texts = map(_several, (policy, mandate, secrets))
        fits = {
            "policy": all(map(callable, policies)),
            "mandate": all(isinstance(each, Mandate) for each in mandates),
            "approve": approve is None or callable(approve),
            "journal": isinstance(journal, str | Path | None),
            "secrets": texts != (secrets,) and all(isinstance(each, str) for each in texts),
            "memory": isinstance(memory, Memory | None),
        }
        if wrong := [name for name in fits if not fits[name]]:
            raise InputError(
                f"The rules have {' and '.join(wrong)} of another kind.",
                expected="functions as policy and approve, a Mandate or a list of them, a path as "
                "journal, a list of secret texts, and a Memory.",
                mend="Load a mandate with `Mandate.load`; put a single secret into a list.",
            )
        return cls(
            policy=None if policy is None else policies,
            mandates=mandates,
            approve=approve,
            journal=None if journal is None else Path(journal),
            secrets=texts,
            memory=memory,
        )


def _several(value: Any) -> tuple[Any, ...]:
    """What may be one, several or None, as a tuple."""
    one = isinstance(value, str) or not isinstance(value, Iterable)
    return () if value is None else (value,) if one else tuple(value)


class Given(TypedDict, total=False):
    """The rules as keywords of `lab.run`."""

    policy: Policy | Sequence[Policy] | None
    mandate: Mandate | Sequence[Mandate] | None
    approve: Approve | None
    journal: str | Path | None
    secrets: Sequence[str]
    memory: Memory | None


class Limited(Given, total=False):
    """The rules and the budget."""

    budget: Budget | None


class Resumed(Limited, total=False):
    """What `k2lab.resume` may be given beside."""

    tools: Sequence[Tool] | None
    sampler: Sampler | None
    tap: Tap


def bound(given: Limited) -> tuple[Budget, Rules]:
    """What keywords say of the budget, and of the rules."""
    for name in sorted(given.keys() - Limited.__annotations__.keys()):
        options = sorted({*OPTIONS, *Limited.__annotations__})
        near = [f"Write '{each}' if that is meant." for each in get_close_matches(name, options, 1)]
        raise InputError(
            f"A run has no option '{name}'.",
            expected=f"one of {', '.join(options)}.",
            mend=" ".join([*near, "A temperature goes to the sampler, sampled(temperature=…)."]),
        )
    budget = given.get("budget")
    if not isinstance(budget, Budget | None):
        raise InputError(
            f"The budget is {budget!r:.80}.",
            expected="a Budget, such as Budget(tokens=500).",
            mend="It is in k2lab.agent.budget.",
        )
    rules: dict[str, Any] = {name: value for name, value in given.items() if name != "budget"}
    return budget or Budget(), Rules.of(**rules)


class Desk:
    """Where calls wait for a person, from any thread."""

    def __init__(self, approve: Approve | None = None) -> None:
        self._approve, self._lock = approve, threading.Lock()
        self._waiting: dict[str, Request] = {}  # by digest
        self._decided: dict[str, bool] = {}

    @property
    def waiting(self) -> tuple[Request, ...]:
        """The calls that wait now."""
        with self._lock:
            return tuple(self._waiting.values())

    def decide(self, digest: str, *, allowed: bool) -> None:
        """A person's word about the call with this digest, which must be waiting."""
        with self._lock:
            if digest not in self._waiting:
                raise InputError(
                    f"No call with the digest {digest[:12]}… waits for approval.",
                    expected=f"one of {[each[:12] for each in self._waiting]}.",
                    mend="Look at `run.waiting`; a word holds for one call only.",
                )
            self._decided[digest] = allowed

    def approver(self, request: Request, why: str) -> Approval | None:
        """The person's word, once it is there."""
        if self._approve is not None:
            allowed = self._approve(request) is True
            return Approval(request.digest, allowed=allowed, by="approve")
        with self._lock:
            if request.digest not in self._decided:
                self._waiting[request.digest] = request
                return None
            self._waiting.pop(request.digest, None)
            allowed = self._decided.pop(request.digest)
            return Approval(request.digest, allowed=allowed, by="person")


def with_memory(tools: Sequence[Tool], memory: Memory | None) -> tuple[Tool, ...]:
    """The tools, and those of the memory after them."""
    return (*tools, *(memory.tools() if memory is not None else ()))


def guard_of(rules: Rules, messages: Sequence[Any], run: str) -> Guard:
    """What decides about the calls of a run."""
    if rules.policy is None and not rules.mandates:
        return NoGuard()
    home = Path.home() / ".k2lab"
    mandates = Mandates(
        rules.mandates,
        trusted=[Key.own().public] if rules.mandates else (),
        run=run,
        nonces=Nonces(home / "nonces"),
    )
    return Policies(rules.policy or (), mandates=mandates, user_text=user_text(messages))


def journal_of(
    lab: "Lab", recipe: "Recipe", messages: Sequence[Any], tools: Sequence[Tool]
) -> Journal:
    """A new journal whose first line says what is run."""
    assert recipe.rules.journal is not None
    folder = lab.source.folder
    return Journal.begin(
        recipe.rules.journal,
        lab.tokenizer,
        secrets=recipe.rules.secrets,
        model=lab.name,
        config=digest_of(lab.config.to_json()),
        folder=None if folder is None else str(folder),
        messages=[dict(each) for each in messages],
        own_tools=recipe.tools is None,
        tools=[{"name": each.name, "parameters": dict(each.parameters)} for each in tools],
        sampler=named(recipe.sampler),
        max_tokens=recipe.max_tokens,
        edits=[to_json(each) for each in recipe.edits],
        capture=recipe.capture.to_json(),
        own_tap=recipe.tap is not untouched,
    )


def begun(
    path: Path, lab: "Lab", tools: Sequence[Tool] | None, given: Given, tap: Tap
) -> Mapping[str, Any]:
    """What the first line of a journal says, if it fits this lab, these tools and this tap.

    Older ones tell of no `edits`, `capture` and `own_tap`.
    """
    if not path.exists():
        raise MissingError(
            f"There is no journal {path}.",
            expected="the file that was given to `lab.run` as `journal`.",
            mend="Correct the path.",
        )
    records = read(path)
    if not records or records[0].kind != "begun":
        raise _unfit(f"{path} does not begin as a journal does", "a journal that began")
    about = records[0].facts
    if about["config"] != digest_of(lab.config.to_json()):
        raise _unfit(f"The run was one of {about['model']}, another model", f"one of {lab.name}")
    if about["own_tools"] != (tools is None):
        own = "the lab's own tools" if about["own_tools"] else "tools of its own"
        raise _unfit(f"The run had {own}", "the same tools")
    if about.get("own_tap", tap is not untouched) != (tap is not untouched):
        if about["own_tap"]:
            raise _unfit("The run had a tap, which a journal cannot hold", "the same one as `tap=`")
        raise _unfit("The run had no tap", "none")
    veil = Veil(given.get("secrets", ()), about["run"])
    named = {name: about[name] for name in SHOWN if name in about}
    shown = json.loads(veil.show(json.dumps(named, ensure_ascii=False)))
    if "edits" in shown:
        _check_edits(unique(shown["edits"]), lab)
    there = with_memory(lab.tools if tools is None else tools, given.get("memory"))
    _check_tools({each["name"]: each["parameters"] for each in shown["tools"]}, there)
    return {**about, **shown}


def _check_edits(had: Sequence[Edit], lab: "Lab") -> None:
    """Raise if an open `lab.edit` block has other edits than the run had."""
    there = [to_json(each) for each in lab.edits]
    if there and unique(there) != tuple(had):
        raise JournalError(
            f"The run had the edits {[to_json(each) for each in had]}, "
            f"and the open `lab.edit` block has {there}.",
            expected="the same edits, or no open block.",
            mend="Resume it outside of the block: its own edits are in the journal.",
        )


def _check_tools(had: Mapping[str, Any], there: Sequence[Tool]) -> None:
    """Raise unless each tool that a run had is there, with the arguments that it had."""
    known, problems, missing = {each.name: each.parameters for each in there}, list[str](), set()
    for name, schema in had.items():
        if name not in known:
            problems.append(f"{name} is missing")
            missing.add(name)
        elif isinstance(schema, str):  # of a journal that holds their hash alone
            if schema != digest_of(known[name]):
                problems.append(f"{name} has other arguments, or other words about them")
        elif bare(schema) != bare(known[name]):
            before, now = (json.dumps(bare(each))[:200] for each in (schema, known[name]))
            problems.append(f"{name} took {before} and takes {now}")
    if problems:
        mend = "Give `tools=` as they were when the run began, or begin a new one with `lab.run`."
        if missing & {"recall", "remember"}:
            mend = f"Give the run's memory again, as `memory=`. {mend}"
        raise JournalError(
            f"The tools of the run are not as they were: {'; '.join(problems)}.",
            expected="each tool under its name, with its arguments; their descriptions may differ.",
            mend=mend,
        )


def bare(schema: Any) -> Any:
    """A JSON Schema without what is only said to readers.

    >>> bare({"properties": {"title": {"type": "string", "title": "Its title"}}})
    {'properties': {'title': {'type': 'string'}}}
    """
    if isinstance(schema, list):
        return [bare(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {}
    for key, value in schema.items():
        if key in NAMED and isinstance(value, Mapping):
            kept[key] = {name: bare(each) for name, each in value.items()}
        elif key not in SAID:
            kept[key] = value if key in VALUES else bare(value)
    return kept


def _unfit(found: str, expected: str) -> JournalError:
    return JournalError(
        f"{found}.", expected=f"{expected}.", mend="Give what the run had when it began."
    )


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(canonical_arguments(json.dumps(value)).encode()).hexdigest()
