"""Think, call, answer: the loop that carries a conversation through its tool calls.

    think → call → result → think → … → answer

One cache lives through the whole run: results are appended after what the model wrote, and nothing
is read twice, unless the context is nearly full: then it is compacted, and read anew in the same
run, also in the middle of a turn. A conversation begins at an `opening`, or goes on from any
`Place`. Whatever goes wrong with a call becomes a text that the model gets to read; a turn that is
neither call nor answer is asked on, twice at most. Every call has a key of its own, step.position:
wire ids are not unique.
Not here: how a turn is written (`turns.py`), how room is made (`context.py`), how calls are made
(`calling.py`), what they may do (`policy.py`), where it is written down (`journal.py`).
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from k2lab.agent.budget import Meter, Spent
from k2lab.agent.calling import POLL, Done, Job, perform_all
from k2lab.agent.context import SHARES, Context
from k2lab.agent.repeats import END, WARNINGS, WITHDRAWN, Repeats, signature
from k2lab.agent.terms import Decision, Request, Terms
from k2lab.agent.tools import Outcome, Tool, by_name, canonical_arguments, declare, read_arguments
from k2lab.agent.turns import Mind as Mind  # a part of this module's face
from k2lab.agent.turns import Pen, Written
from k2lab.engine.events import (
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    Event,
    Misread,
    Nudged,
    Reason,
    Stopped,
    ToolAnswered,
    ToolAsked,
)
from k2lab.engine.generate import NOTHING, Prompt, Settings
from k2lab.engine.sampling import state_of
from k2lab.errors import InputError, TransientError
from k2lab.model.cache import LatentCache
from k2lab.text.messages import Message
from k2lab.text.parse import ParsedCall, Turn
from k2lab.text.template import render

NUDGES = 2  # in a row, before the run ends

ASKED_ON = {
    "thinking only": "The turn ended after thinking. Call a tool, or write the answer.",
    "damaged call": "The tool call was damaged ({problems}) and was not made. Write it again.",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a conversation stands: what is remembered, and what is to be read next."""

    prompt: Prompt
    cache: LatentCache  # holds all that comes before the prompt
    turn: tuple[int, ...] = ()  # of the model's turn that goes on: its ids, the prompt's too
    steps: int = 0  # turns before this one
    seconds: float = 0.0  # on the run's clock
    tokens: int = 0  # chosen before, for the budget
    cost: float = 0.0  # of the calls before, for the budget
    apart: tuple[int, float] = (0, 0.0)  # steps and seconds that the budget does not count
    signatures: tuple[str, ...] = ()  # of the steps before, for `Repeats`
    by_hand: bool = False  # a person ended the turn: it is taken as it is, and not asked on
    held: Prompt = NOTHING  # what the cache holds
    first: int = 0  # index, in the run, of the token that the cache begins with
    earlier: tuple[Prompt, ...] = ()  # contexts before this one, to be read again first


def converse(
    mind: Mind,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    settings: Settings,
    terms: Terms | None = None,
) -> Iterator[Event]:
    """Events of a run: from the messages to an answer, the token limit or the end of a budget."""
    yield from carry_on(mind, opening(mind, messages, tools), tools, settings, terms)


def opening(mind: Mind, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> Place:
    """The beginning of a conversation: its messages as a prompt, nothing remembered yet."""
    segments = render(
        messages,
        tools=declare(tools) if tools and mind.declares_tools else None,
        system=mind.system,
    )
    return Place(Prompt.of(segments, mind.tokenizer), LatentCache(mind.model.config))


def carry_on(
    mind: Mind,
    place: Place,
    tools: Sequence[Tool],
    settings: Settings,
    terms: Terms | None = None,
) -> Iterator[Event]:
    """Events from a place in a conversation on, to its end; Halted where the terms say stop."""
    return _Loop(mind, place, tools, settings, terms or Terms()).events()


def digest_of(run: str, key: str, name: str, canonical: str) -> str:
    """What an approval is bound to: this run, this step and position, this tool, these arguments.

    >>> digest_of("r", "0.0", "pay", '{"to":"Ada"}') == digest_of("r", "1.0", "pay", '{"to":"Ada"}')
    False
    """
    digest = hashlib.sha256()
    for part in (run, key, name, canonical):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


Steps = Generator[Event, None, Stopped]


class _Loop:
    """One run of the loop, with what it has to keep in mind."""

    def __init__(
        self, mind: Mind, place: Place, tools: Sequence[Tool], settings: Settings, terms: Terms
    ) -> None:
        self.mind, self.place, self.terms = mind, place, terms
        self.tools = by_name(tools)
        began = time.perf_counter()

        def clock() -> float:
            return place.seconds + time.perf_counter() - began

        stop_ids = frozenset(mind.model.config.stop_ids)
        self.meter = Meter(terms.budget, clock, terms.halted, since=place.apart[1])
        check = self.meter.check
        self.settings = replace(settings, stop_ids=stop_ids, clock=clock, check=check)
        self.meter.tokens, self.meter.cost = place.tokens, place.cost
        self.repeats = Repeats(place.signatures)
        schemas = {tool.name: tool.parameters for tool in tools}
        self.pen = Pen(mind, place.cache, schemas, self.meter)
        self.context = Context(mind, place.cache, terms.budget.context)
        self.context.first = place.first
        self.context.add(place.held)

    def events(self) -> Iterator[Event]:
        """All events; the last is always Stopped."""
        try:
            stopped = yield from self._run()
        except Spent as spent:
            stopped = self._stopped("budget", str(spent))
        except TransientError as error:
            stopped = self._stopped("error", error.found)
        self.terms.witness.note("ended", reason=stopped.reason, detail=stopped.detail)
        yield stopped

    def _run(self) -> Steps:
        place, most = self.place, self.terms.budget.steps
        after = place.apart[0] + most
        prompt, begun, nudges, step = place.prompt, place.turn, 0, place.steps
        self.terms.witness.note("opened", given=prompt)
        for each in place.earlier:
            yield from self.pen.read(each, self._settings())
            self.context.renew()
        while step < after:
            self.meter.check()
            self.context.add(prompt)
            written = yield from self.pen.write(prompt, self._settings(begun))
            turn = written.turn
            self.context.add(written.prompt.after(len(begun)))
            self.terms.witness.note(
                "turn", step=step, given=prompt.after(0, len(prompt.ids) - len(begun)),
                chosen=written.ids, context=self.context.number, seconds=self.meter.clock(),
                draws=state_of(self.settings.sampler),
            )  # fmt: skip
            if not written.whole and (shorter := self._room_within()) is not None:
                prompt, begun = shorter, written.ids  # the turn goes on in another context
                continue
            begun = ()
            for error in turn.errors:
                yield Misread(error.kind, error.text)
            if not written.whole:
                yield Answered(turn.content, turn.reasoning)
                return self._cut_short(written)
            if turn.calls:
                nudges, messages = 0, (yield from self._calls(step, written))
                if messages is None:
                    return self._stopped("loop", f"The same calls came {END} times.")
            else:
                why = None if place.by_hand and step == place.steps else _unfinished(turn)
                if why is None or nudges == NUDGES:
                    yield Answered(turn.content, turn.reasoning)
                    return self._stopped("answer" if why is None else "error", _told(why, turn))
                nudges += 1
                text = ASKED_ON[why].format(problems=_problems(turn))
                yield Nudged(why, text)
                messages = [Message("system", text)]
            following = self._room_for(messages)
            if following is None:
                return self._full("What was to be read next does not fit, however it is cut.")
            prompt, step = following, step + 1
        return self._stopped("budget", f"{most} turns without an answer.")

    def _settings(self, begun: tuple[int, ...] = ()) -> Settings:
        """Those of the next turn, which goes on after the ids it has begun with."""
        left = max(0, min(self.meter.left(self.settings.max_tokens), self.context.left))
        return replace(self.settings, max_tokens=left, turn=begun, first=self.context.first)

    def _room_for(self, messages: Sequence[Message]) -> Prompt | None:
        """What is to be read next: the messages, or the whole context compacted with them.

        Results are cut where they do not fit otherwise; None: nothing helps.
        """
        for share in SHARES:
            shown = self.context.cut(messages, share, self.terms.memory)
            prompt = Prompt.of(render(shown, system=None), self.mind.tokenizer)
            prompt = self._compacted(prompt) or prompt
            if len(prompt.ids) < self.context.left:
                return prompt
        return None

    def _room_within(self) -> Prompt | None:
        """The compacted context with the turn so far, where that turn has filled it."""
        if self.context.left or self.meter.left(self.settings.max_tokens) <= 0:
            return None
        return self._compacted(NOTHING)

    def _compacted(self, prompt: Prompt) -> Prompt | None:
        """All that is remembered with the prompt, to be read anew; None: it stays as it is."""
        shorter = self.context.compacted(prompt, self.terms.memory)
        if shorter is not None:
            tokens = self.context.length + len(prompt.ids)
            self.terms.witness.note(
                "compacted", first=self.context.next, tokens=tokens, kept=len(shorter.ids)
            )
            self.context.renew()
        return shorter

    def _calls(self, step: int, written: Written) -> Generator[Event, None, list[Message] | None]:
        """The results of a turn's calls, in their order, for the model; None: it goes in circles.

        All are asked, and decided about, before the first is made.
        """
        turn, outcomes, jobs = written.turn, dict[str, Outcome](), list[Job]()
        asked = {f"{step}.{place}": call for place, call in enumerate(turn.calls)}
        for (key, call), end in zip(asked.items(), written.ends, strict=True):
            yield ToolAsked(key, call.id, call.name, call.arguments, end)
        for key, call in asked.items():
            admitted = yield from self._admit(key, call)
            if isinstance(admitted, Job):
                jobs.append(admitted)
            else:
                outcomes[key] = admitted
                yield self._answered(key, call.name, admitted, 0.0)
        for news in perform_all(jobs, self.meter.check, self._making):
            if isinstance(news, Done):
                outcomes[news.key] = news.outcome
                yield self._answered(news.key, asked[news.key].name, news.outcome, news.seconds)
            else:
                yield news
        messages = [
            Message("tool", outcomes[key].content, call_id=call.id, name=call.name)
            for key, call in asked.items()
        ]
        known = signature(self._parts(turn, [outcomes[key] for key in asked]))
        self.terms.witness.note("step", step=step, mark=known)
        repeated = self.repeats.step(known)
        if repeated is not None:
            yield repeated
            if repeated.response == "ended":
                return None
            text = WARNINGS[repeated.response].format(n=repeated.times)
            messages.append(Message("system", text))
        return messages

    def _admit(self, key: str, call: ParsedCall) -> Generator[Event, None, Job | Outcome]:
        """The call as it may be made, or what the model reads in its place."""
        if key in self.terms.recalled:
            return self.terms.recalled[key]
        if self.repeats.withdrawn:
            return Outcome(WITHDRAWN, ok=False)
        tool = self.tools.get(call.name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            return Outcome(f"error: unknown tool {call.name}; known tools: {known}", ok=False)
        try:
            arguments = read_arguments(tool, call.arguments)
        except InputError as error:
            return Outcome(f"error: {error.found}", ok=False)
        canonical = canonical_arguments(call.arguments)
        digest = digest_of(self.terms.witness.run, key, tool.name, canonical)
        request = Request(key, tool, arguments, canonical, digest)
        decision = self.terms.guard.decide(request)
        if decision.verdict == "ask":
            yield ApprovalAsked(key, tool.name, canonical, digest, decision.why)
            decision = self._approved(request, decision.why)
            yield ApprovalGiven(key, digest, decision.verdict == "allow", decision.by)
        self.terms.witness.note(
            "decided", key=key, digest=digest, verdict=decision.verdict,
            why=decision.why, by=decision.by,
        )  # fmt: skip
        if decision.verdict != "allow":
            return Outcome(f"error: not allowed: {decision.why}", ok=False)
        self.terms.guard.made(request, decision)
        return Job(key, tool, arguments)

    def _approved(self, request: Request, why: str) -> Decision:
        """The approver's word, as a decision; anything but a yes to this very call is a no."""
        while True:
            self.meter.check()
            try:
                approval = self.terms.approver(request, why)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not a yes
                return Decision("deny", f"the approver failed: {error}", "approver")
            if approval is not None:
                break
            self.meter.wait(POLL)
        if approval.digest != request.digest:
            return Decision("deny", "the approval was given for another call", approval.by)
        if not approval.allowed:
            return Decision("deny", why, approval.by)
        return Decision("allow", why, approval.by)

    def _making(self, job: Job) -> None:
        """A call is about to be made: paid for, and written down where no crash can undo it."""
        self.meter.pay(job.tool.name, job.tool.cost)
        self.terms.made.add(job.key)
        self.terms.witness.note(
            "asked", key=job.key, name=job.tool.name, arguments=dict(job.arguments),
            effect=job.tool.effect, cost=job.tool.cost,
        )  # fmt: skip

    def _answered(self, key: str, name: str, outcome: Outcome, seconds: float) -> ToolAnswered:
        if key not in self.terms.recalled:
            self.terms.witness.note("answered", key=key, content=outcome.content, ok=outcome.ok)
        if name in self.tools:
            self.terms.guard.answered(key, self.tools[name], outcome)
        return ToolAnswered(key, name, outcome.content, outcome.ok, seconds)

    def _parts(self, turn: Turn, outcomes: Sequence[Outcome]) -> Iterator[str]:
        """What makes a step what it is, for `Repeats`."""
        for call, outcome in zip(turn.calls, outcomes, strict=True):
            yield from (call.name, canonical_arguments(call.arguments), outcome.content)
        if any(self._changes(call.name) for call in turn.calls):
            yield from (turn.reasoning, turn.content)

    def _changes(self, name: str) -> bool:
        return name in self.tools and self.tools[name].effect != "reads"

    def _cut_short(self, written: Written) -> Stopped:
        limit = self.terms.budget.tokens
        if limit is not None and self.meter.tokens >= limit:
            return self._stopped("budget", f"{limit} tokens without an answer.")
        if self.context.left or self.meter.left(self.settings.max_tokens) <= 0:
            return self._stopped("length", "The token limit was reached.")
        return self._full(f"{len(written.ids)} of its tokens are this turn's, which has no end.")

    def _full(self, why: str) -> Stopped:
        """The end of a run whose context is full, and nothing in it can make room."""
        room, most = self.context.room, self.mind.model.config.max_position_embeddings
        mend = (
            f"give `Budget(context=…)` more than {room}, at most {most}"
            if room < most
            else "ask for less at once, or load a model with a longer context"
        )
        found = f"The context of {room} tokens is full, and nothing older can make room."
        return self._stopped("context", f"{found} {why} Mend: {mend}.")

    def _stopped(self, reason: Reason, detail: str) -> Stopped:
        return Stopped(reason, detail, self.meter.tokens, self.meter.clock())


def _unfinished(turn: Turn) -> Literal["thinking only", "damaged call"] | None:
    """Why a turn without calls is no answer; None if it is one."""
    if turn.errors:
        return "damaged call"
    return None if turn.content.strip() else "thinking only"


def _told(why: str | None, turn: Turn) -> str:
    match why:
        case None:
            return ""
        case "damaged call":
            return f"The model wrote a damaged tool call: {_problems(turn)}."
    return "The model ended its turn after thinking, without an answer."


def _problems(turn: Turn) -> str:
    return ", ".join(dict.fromkeys(error.kind for error in turn.errors))
