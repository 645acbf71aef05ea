"""Who decides about a call: ordered policies, mandates, and what was read before it.

Policies are asked in order, the first that says something decides, and where none does a person is
asked. Whatever goes wrong with a policy is a no. No policy can waive the rule on taint:

    Once text from outside was read (the result of a tool that is not `trusted`, or what an agent
    handed on after reading one), a call that changes the world needs a mandate or a person's
    approval, unless all its arguments stand word by word in what the user wrote and not all of
    them in what was read.

Taint is of the *context*, not of values: which words a model took from where cannot be known. So
the rule is coarse. It stops calls that nobody wanted, and some that were wanted; and it does not
stop an order inside a result that makes the model use the user's own words otherwise than meant.
Source of the rule: Debenedetti et al. 2025 (CaMeL), cut down to what holds without their
interpreter.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from queue import Empty, SimpleQueue
from typing import Any, get_args

from k2lab.agent.mandate import Mandates
from k2lab.agent.terms import Decision, Request, Verdict
from k2lab.agent.tools import Outcome, Tool
from k2lab.errors import InputError

Policy = Callable[[Request], Verdict | None]
"""What is to become of a call; None: the next policy decides."""

SECONDS = 1.0  # that a policy may take


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy for tools by their names; `*` stands for anything, as in file names."""

    verdict: Verdict
    names: tuple[str, ...]
    when: Callable[[Mapping[str, Any]], bool] | None = None  # of the arguments

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict) or not self.names:
            raise InputError(
                f"A rule says {self.verdict!r} about {list(self.names)}.",
                expected=f"one of {', '.join(get_args(Verdict))}, and names of tools.",
                mend="Use `allow(…)`, `deny(…)` or `ask(…)`.",
            )

    def __call__(self, request: Request) -> Verdict | None:
        """The verdict, if the rule is about this call."""
        if not any(fnmatchcase(request.tool.name, name) for name in self.names):
            return None
        if self.when is not None and not self.when(request.arguments):
            return None
        return self.verdict

    def __str__(self) -> str:
        return f"{self.verdict} {', '.join(self.names)}"


def allow(*names: str, when: Callable[[Mapping[str, Any]], bool] | None = None) -> Rule:
    """Calls of these tools are made."""
    return Rule("allow", names, when)


def deny(*names: str, when: Callable[[Mapping[str, Any]], bool] | None = None) -> Rule:
    """Calls of these tools are not made."""
    return Rule("deny", names, when)


def ask(*names: str, when: Callable[[Mapping[str, Any]], bool] | None = None) -> Rule:
    """A person decides about calls of these tools."""
    return Rule("ask", names, when)


def allow_reading(request: Request) -> Verdict | None:
    """Calls that change nothing are made."""
    return "allow" if request.tool.effect == "reads" else None


class Policies:
    """The guard of a run: its policies, its mandates, and the taint of its context."""

    def __init__(
        self,
        policies: Sequence[Policy],
        *,
        mandates: Mandates | None = None,
        user_text: str = "",
        seconds: float = SECONDS,
    ) -> None:
        """`user_text` is all that the user wrote; `seconds` is what one policy may take."""
        self.policies, self.mandates = tuple(policies), mandates or Mandates(())
        self._user, self._seconds = user_text, seconds
        self._made: set[str] = set()
        self._read: list[str] = []  # what came from outside
        self.tainted_by = ""  # key of the first call whose result came from outside

    def decide(self, request: Request) -> Decision:
        """Deny before mandate before ask: no mandate makes up for a no."""
        decision = self._first(request)
        if decision.verdict == "deny":
            return decision
        if decision.verdict == "allow":
            reason = self._taint(request)
            if not reason:
                return decision
            decision = Decision("ask", reason, "taint")
        covered, told = self.mandates.covers(request)
        if covered is not None:
            return Decision("allow", f"{decision.why}; mandate {covered}", f"mandate {covered}")
        return Decision("ask", f"{decision.why}{told}", decision.by)

    def made(self, request: Request, decision: Decision) -> None:
        """Count the use of a mandate."""
        self._made.add(request.key)
        if decision.by.startswith("mandate "):
            self.mandates.use(decision.by.removeprefix("mandate "))

    def answered(self, key: str, tool: Tool, outcome: Outcome) -> None:
        """Remember what came from outside; what the loop says in place of a result did not."""
        if not tool.trusted and key in self._made:
            self.found(key, outcome.content)

    def found(self, key: str, text: str) -> None:
        """Remember this text from outside: it taints what comes after it."""
        self.tainted_by = self.tainted_by or key
        self._read.append(text)

    def _first(self, request: Request) -> Decision:
        for policy in self.policies:
            name = _name(policy)
            verdict = self._asked(policy, request)
            if isinstance(verdict, Exception):
                return Decision("deny", f"the policy {name} failed: {_text(verdict)}", name)
            if verdict is None:
                continue
            if verdict not in get_args(Verdict):
                return Decision("deny", f"the policy {name} gave {verdict!r}", name)
            return Decision(verdict, f"the policy {name}", name)
        return Decision("ask", "no policy decides about it", "default")

    def _asked(self, policy: Policy, request: Request) -> Any:
        """What a policy says within its time, or the exception that it ended in."""
        said: SimpleQueue[Any] = SimpleQueue()

        def work() -> None:
            try:
                said.put(policy(request))
            except Exception as error:  # noqa: BLE001 - whatever it is, it means no
                said.put(error)

        threading.Thread(target=work, name="k2lab-policy", daemon=True).start()
        try:
            return said.get(timeout=self._seconds)
        except Empty:
            return TimeoutError(f"nothing within {self._seconds:g} s")

    def _taint(self, request: Request) -> str:
        """Why this call needs a mandate or an approval in this context; empty: it does not."""
        if not self.tainted_by or request.tool.effect == "reads":
            return ""
        leaves = [_leaf(each) for each in _leaves(request.arguments)]
        outside = f"text from outside was read ({self.tainted_by})"
        if not leaves:
            return f"{outside}, and nothing in the call is the user's"
        strange = [each for each in leaves if not _stands(each, self._user)]
        if strange:
            return f"{outside}, and {strange[0][:40]!r} is no word of the user's"
        if all(_stands(each, "\n".join(self._read)) for each in leaves):
            return f"{outside}, and all arguments stand in it"
        return ""


def user_text(messages: Iterable[Mapping[str, Any]]) -> str:
    """All that user and system messages say of their own: no results, no words of a model."""
    told = [each for each in messages if each.get("role") in ("user", "system")]
    return "\n".join(_own(str(each.get("content") or ""), each.get("outside")) for each in told)


def _own(content: str, outside: Any) -> str:
    """The content without what was handed on in it, wherever that stands."""
    return content.replace(outside, "\n") if isinstance(outside, str) and outside else content


def _name(policy: Policy) -> str:
    return str(policy) if isinstance(policy, Rule) else getattr(policy, "__name__", "policy")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _leaf(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _stands(word: str, text: str) -> bool:
    """Whether the word stands in the text, as a whole word; nothing stands nowhere."""
    if not word.strip():
        return False
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
