"""LabRun: a run that knows its lab, shows itself, and branches.

    branch = run.branch(17, text=" Wait,")      # the same thought up to token 16, then this

Runs form a tree. A branch shares the latent cache of the tokens before it (`cache.fork()`): nothing
of them is computed again. It stands in the model's own turn: in a thought, in the arguments of a
call, right after a tool result, or where an answer would end. The lab's own tools begin anew for
each run, and a branch asks again what was asked before it, so that their world is where it was.

Not here: the cell of code (`recipe.py`), what an edit did (`engine/experiment.py`), and how two
runs differ (`trace/compare.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from k2lab.agent.calling import cancellation
from k2lab.agent.journal import Journal
from k2lab.agent.loop import Mind, Place, carry_on, opening
from k2lab.agent.resume import stand, tell_again
from k2lab.agent.terms import Approver, Guard, NoWitness, Request, Terms, nobody
from k2lab.agent.tools import Tool, by_name, call
from k2lab.branch import (
    Token,
    again,
    ask_again,
    beyond,
    given_ids,
    given_in,
    outside,
    place_of,
    subject_of,
    turn_of,
)
from k2lab.engine.edits import Edit, Json, unique
from k2lab.engine.events import Event, PromptRead, TokenChosen
from k2lab.engine.experiment import Experiment, experiment
from k2lab.engine.generate import Settings
from k2lab.engine.line import Line, Stretch
from k2lab.engine.sampling import Sampler, anew, at, named, within
from k2lab.engine.session import Control, Run
from k2lab.engine.taps import chain, watches
from k2lab.errors import BusyError, InputError
from k2lab.model.cache import LatentCache
from k2lab.recipe import Recipe, cell, messages_of
from k2lab.rules import Desk, guard_of, journal_of, with_memory
from k2lab.spec.sites import Tap
from k2lab.trace.compare import Comparison, compare
from k2lab.trace.trace import CallRecord, Trace
from k2lab.widgets.shown import Shown

if TYPE_CHECKING:
    from k2lab.lab import Lab
    from k2lab.widgets.base import Column
    from k2lab.widgets.compare import CompareBranch
    from k2lab.widgets.store import Store


class LabRun(Run, Shown):
    """A run of a lab; all its widgets share one selection."""

    def __init__(self, lab: "Lab", recipe: Recipe, *, parent: "LabRun | None" = None) -> None:
        at = recipe.at or 0
        # Index at which each turn of the model begins.
        self.turns: list[int] = [start for start in parent.turns if start <= at] if parent else []
        # Index of the first token that the edits act on. Logits are not remembered: with nothing
        # given, the last token is read once more for them, and what it does is recorded anew.
        self.edited = at if recipe.given or not parent else at - 1
        trace = parent.trace.fork(at, read=self.edited) if parent else Trace(lab.about)
        if parent:  # calls of the turn that goes on are asked again when it ends
            trace.calls = [each for each in trace.calls if each.index < self.turns[-1]]
        trace.facts = lab.facts(recipe.capture)
        super().__init__(trace, Control())
        self.lab, self.recipe, self.parent = lab, recipe, parent
        self.children: list[LabRun] = []
        self.cache: LatentCache | None = None  # of every token read so far
        # Keys of calls that were made; the others were refused, or never begun.
        self.made: set[str] = {each.key for each in trace.calls} & parent.made if parent else set()
        self.desk = Desk(recipe.rules.approve)
        self._journal: Journal | None = None
        self._given = at + len(recipe.given)  # tokens before any that are new here
        # Index of the first token that is read here: routes that a stop cut off are read again.
        self.begins = min(trace.routed or at, self.edited)

    def __repr__(self) -> str:
        branch = "" if self.parent is None else f", branch={self.name}"
        return f"Run({self.lab.name}, tokens={len(self.trace)}, state={self.state}{branch})"

    @property
    def name(self) -> str:
        """Its place in the tree: `run`, `run.1` for the first branch, then `run.1.2`."""
        if self.parent is None:
            return "run"
        return f"{self.parent.name}.{self.parent.children.index(self) + 1}"

    @property
    def line(self) -> "list[LabRun]":
        """The runs from the root of the tree to this one."""
        return [*(self.parent.line if self.parent else ()), self]

    @property
    def leaves(self) -> "list[LabRun]":
        """The runs below this one that nothing branches off, itself if nothing does."""
        return [leaf for child in self.children for leaf in child.leaves] or [self]

    @property
    def waiting(self) -> tuple[Request, ...]:
        """The calls that wait for `approve` or `refuse`."""
        return self.desk.waiting

    def approve(self, digest: str | None = None) -> None:
        """Let a call that waits be made: the one of this digest, or the only one."""
        self.desk.decide(digest or self._only_waiting(), allowed=True)

    def refuse(self, digest: str | None = None) -> None:
        """Do not let a call that waits be made."""
        self.desk.decide(digest or self._only_waiting(), allowed=False)

    def begin(self, *, again: bool = False) -> Self:
        """This run, started: with its prompt, where it leaves its parent, or `again`, resumed."""
        tap = chain(self.control.tap, self.recipe.tap)
        with self._or_undone(again=again):
            self.start(self._prepared(tap, self.desk.approver, again=again), self.lab.lock)
        if self.parent is not None:
            self.parent.children.append(self)
        return self

    def here(self) -> Iterator[Event]:
        """The events of this run in the caller's thread, where nobody is asked but `approve`.

        Where the caller is a tool call that is given up, the run ends: Halted.
        """
        asked = nobody if self.recipe.rules.approve is None else self.desk.approver
        with self.lab.alone(), cancellation().calling(self.stop):
            with self._or_undone():
                events = self._prepared(self.recipe.tap, asked)
            yield from events

    @contextmanager
    def _or_undone(self, *, again: bool = False) -> Iterator[None]:
        """Leaves no journal of a run that could not begin."""
        try:
            yield
        except Exception:
            if self._journal is not None:
                self._journal.close()
                if not again:
                    self._journal.discard()
            raise

    def _prepared(self, tap: Tap, approver: Approver, *, again: bool = False) -> Iterator[Event]:
        """The events to come, under all that the recipe says."""
        lab, recipe, parent = self.lab, self.recipe, self.parent
        mind = Mind(lab.model, lab.tokenizer)
        settings = Settings(
            sampler=recipe.sampler,
            max_tokens=recipe.max_tokens,
            tap=tap,
            edits=self.surgery() if any(run.recipe.edits for run in self.line) else None,
            capture=recipe.capture,
        )
        tools = with_memory(
            lab.tools if recipe.tools is None else recipe.tools, recipe.rules.memory
        )
        messages = messages_of(recipe.conversation)
        terms = Terms(
            budget=recipe.budget,
            approver=approver,
            halted=lambda: self.control.stopped,
            memory=recipe.rules.memory,
            made=self.made,
        )
        if again:
            place, terms, draws = self._interrupted(mind, tools, terms)
            settings = replace(settings, sampler=at(recipe.sampler, draws))
        elif parent is None:
            place = opening(mind, messages, tools)
            if recipe.rules.journal is not None:
                self._journal = journal_of(lab, recipe, messages, tools)
        else:
            place = self._leave(parent)
            settings = replace(settings, sampler=within(recipe.sampler, place.turn))
            if recipe.tools is None:
                ask_again(self._calls_made(), tools)
        if not again:
            witness = self._journal or NoWitness()
            terms = replace(terms, witness=witness, guard=self._guard(witness.run, tools))
        self.cache = place.cache
        return self._noting(carry_on(mind, place, tools, settings, terms))

    def branch(
        self,
        at: int,
        *,
        token: Token | None = None,
        text: str | None = None,
        sampler: Sampler | None = None,
        max_tokens: int | None = None,
        edits: Sequence[Edit | Json] | None = None,
    ) -> "LabRun":
        """A new run with this one's tokens before `at`, then the token or text, then the model's.

        Given neither, the model chooses again from `at` on: under other edits, or another seed.
        The sampler is this run's from its seed on, unless given. Edits are this run's and those of
        the open `lab.edit` blocks, unless given; they act from `at` on, as what came before is
        remembered as it was. With nothing given, the token before `at` is read again under them:
        what is chosen at `at` follows from it.
        """
        if not self.done:
            raise BusyError(
                "This run is still going on.",
                expected="a run that has ended, to branch off.",
                mend="Wait for it with `run.wait()`, or stop it with `run.stop()`.",
            )
        at = place_of(self.trace, at)
        turn_of(self.trace, self.turns, self.lab.config.stop_ids, at)
        chosen = (*self.recipe.edits, *self.lab.edits) if edits is None else edits
        recipe = replace(
            self.recipe,
            sampler=anew(sampler or self.recipe.sampler),
            max_tokens=self.recipe.max_tokens if max_tokens is None else max_tokens,
            edits=unique(chosen),
            rules=replace(self.recipe.rules, journal=None),  # a journal is of one run
            at=at,
            given=given_ids(token, text, self.lab.tokenizer, self.lab.config),
        )
        child = LabRun(self.lab, recipe, parent=self).begin()
        self.lab.latest = child
        return child

    def ask(self, question: str) -> "LabRun":
        """Another question with this run's tools, sampler, limits and rules."""
        recipe = replace(
            self.recipe,
            conversation=question,
            sampler=anew(self.recipe.sampler),
            edits=self.lab.edits,
            rules=replace(self.recipe.rules, journal=None),  # a journal is of one run
            at=None,
            given=(),
        )
        asked = self.lab.latest = LabRun(self.lab, recipe).begin()
        return asked

    def experiment(
        self, edits: Sequence[Edit | Json], *, controls: int = 12, seed: int = 0
    ) -> Experiment:
        """What the edits do to this run's tokens, against random experts of the nearest load.

        Only tokens of the last context can be edited: what was compacted away is not read again.
        """
        if not self.trace.routed:
            raise InputError(
                "A run without recorded routes.",
                expected="routes, to find experts of the nearest load.",
                mend="Run it again with capture='route'.",
            )
        if not watches(self.recipe.tap):
            raise InputError(
                "An experiment with a run that has a tap of its own.",
                expected="a run that can be computed again without calling what a person wrote.",
                mend="Run it again without `tap=`; say what it changed as edits (`lab.edit`).",
            )
        subject = subject_of(self.trace, self.surgery().stretches)
        with self.lab.alone():
            return experiment(self.lab.model, subject, unique(edits), controls=controls, seed=seed)

    def surgery(self) -> Line:
        """The edits of this run and of those it branches off, each for the tokens it reads."""
        stretches = [Stretch(run.edited, run.recipe.edits) for run in self.line]
        return Line(stretches, self.lab.config)

    def compare(self, other: "LabRun") -> Comparison:
        """Where the other run's tokens part from this one's, and routing and entropy after that."""
        return compare(self.trace, other.trace)

    def code(self) -> str:
        """A cell of Python that makes this run again: edits, seeds and branches included."""
        recipes = [run.recipe for run in self.line]
        if self.state == "stopped":  # as many tokens as were chosen before Stop
            chosen = self.trace.stopped.tokens if self.trace.stopped else 0
            recipes[-1] = replace(recipes[-1], max_tokens=max(1, chosen))
        return cell(recipes, self.lab.source)

    def _new_store(self) -> "Store":
        from k2lab.live import store_of

        return store_of(self)

    def show_in(self, store: "Store") -> Self:
        """This run, in the place of the one that the store's widgets showed."""
        self._store = store
        store.attach(self)
        return self

    def branches(self, other: "LabRun | None" = None) -> "CompareBranch":
        """The tree of runs, two of them side by side: this one and `other`, or a chosen one."""
        from k2lab.widgets.compare import CompareBranch

        return CompareBranch(self.store, None if other is None else other.store)

    def show(self) -> "Column":
        """Text and experts below each other."""
        from k2lab.widgets.base import Column

        return Column([self.thoughts(), self.experts()])

    def _leave(self, parent: "LabRun") -> Place:
        """Where this branch leaves its parent: a fork of the cache, and what is given there."""
        given, trace = self.recipe.given, self.trace
        first = trace.contexts[-1].start
        assert parent.cache is not None
        cache = parent.cache.fork()
        if first < parent.trace.contexts[-1].start:  # it was forgotten since: read again
            cache = LatentCache(self.lab.config)
        cache.truncate(self.begins - first)
        turn = tuple(trace.ids[self.turns[-1] :].tolist())
        whole, more = again(trace, first), given_in(turn, given, self.lab.tokenizer)
        prompt, held = whole.after(cache.length) + more, whole.after(0, cache.length)
        times = trace.seconds[~np.isnan(trace.seconds)]
        seconds = float(times[-1]) if len(times) else 0.0
        stops = self.lab.config.stop_ids
        by_hand = bool(given) and given[-1] in stops
        before = [int(trace.ids[each.start - 1]) for each in trace.contexts[1:]]
        within = sum(each not in stops for each in before)  # compacted in the middle of a turn
        steps = len(self.turns) - 1 - within
        place = Place(prompt, cache, (*turn, *given), steps, seconds, by_hand=by_hand)
        return replace(place, held=held, first=first, apart=(steps, seconds))

    def _noting(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, while the beginnings of turns are noted; nothing of the prefix twice."""
        header, reading = self.lab.tokenizer.special("<|im_middle|>"), False
        try:
            for event in events:
                if isinstance(event, PromptRead) and event.start >= self._given:
                    if not reading or event.start == event.context:
                        self.turns.append(event.start)
                    ends = [n for n, each in enumerate(event.ids, 1) if each == header]
                    if ends:  # the last one opens the turn, of which more may have been written
                        self.turns[-1] = event.start + ends[-1]
                    reading = True
                elif isinstance(event, TokenChosen):
                    reading = False
                fresh = beyond(self.trace, event)
                if fresh is not None:
                    yield fresh
        finally:
            self.desk = Desk()  # no call waits any more, and nobody's word is taken for one
            if self._journal is not None:
                self._journal.close()

    def _interrupted(
        self, mind: Mind, tools: Sequence[Tool], terms: Terms
    ) -> tuple[Place, Terms, str]:
        """Where the run of the journal stood, the terms with what it knows, the sampler's state."""
        path, secrets = self.recipe.rules.journal, self.recipe.rules.secrets
        assert path is not None
        self._journal, records = Journal.reopen(path, mind.tokenizer, secrets=secrets)
        found = stand(records, self._journal, mind)
        read = (*found.place.earlier, found.place.prompt)
        self.turns, self._given = list(found.turns), sum(len(each.ids) for each in read)
        for event in found.events:
            self.trace.append(event)
        named_tools = by_name(tools)
        if self.recipe.tools is None:  # the lab's own world begins anew
            for _, name, arguments in found.asked:
                call(named_tools[name], arguments)
        guard = self._guard(self._journal.run, tools)
        self.made |= {key for key, *_ in found.asked}
        tell_again(records, guard, named_tools)
        self._journal.note("resumed", unknown=list(found.unknown))
        terms = replace(terms, witness=self._journal, guard=guard, recalled=found.recalled)
        same = records[0].facts["sampler"] == named(self.recipe.sampler)
        return found.place, terms, found.draws if same else ""

    def _calls_made(self) -> Iterator[CallRecord]:
        """Of the calls so far those that were made, in order."""
        return (each for each in self.trace.calls if each.key in self.made)

    def _guard(self, run: str, tools: Sequence[Tool]) -> Guard:
        """What decides about the calls to come; it knows what the context holds from outside."""
        messages = messages_of(self.recipe.conversation)
        guard = guard_of(self.recipe.rules, messages, run)
        for key, text in outside(messages, self._calls_made(), tools):
            guard.found(key, text)
        return guard

    def _only_waiting(self) -> str:
        waiting = self.waiting
        if len(waiting) != 1:
            raise InputError(
                f"{len(waiting)} calls wait for approval.",
                expected="one, or the digest of one.",
                mend="Look at `run.waiting`.",
            )
        return waiting[0].digest
