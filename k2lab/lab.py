"""The lab: one object around a checkpoint, all that a notebook needs.

    lab = k2lab.load()
    run = lab.run("What is 3 * 14?")      # returns at once, displays live
    run.wait().trace

A fold over the engine: it joins model, tokenizer, tools, worker thread, trace and widgets, and adds
no mechanism of its own.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from k2lab.agent.calling import cancellation
from k2lab.agent.tools import Tool
from k2lab.agent.workflow import Workflow
from k2lab.engine.capture import ROUTE, Level, level_of
from k2lab.engine.edits import Edit, How, Json, edits_at, refused, unique
from k2lab.engine.events import Event, Kind
from k2lab.engine.generate import Prompt, Settings, check_ids, generate, pieces
from k2lab.engine.sampling import Sampler, anew, greedy, sampled, written
from k2lab.engine.session import EngineLock, Halted
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import untouched
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.load import Placement, Places, load_model
from k2lab.recipe import Conversation, Recipe, Source, check_limit, check_tools
from k2lab.rules import Limited, begun, bound
from k2lab.run import LabRun
from k2lab.spec.config import K2Config
from k2lab.spec.costs import cache_bytes_per_token, multi_head_bytes_per_token
from k2lab.spec.sites import Tap
from k2lab.text.tokenizer import Tokenizer
from k2lab.trace.trace import About, Facts
from k2lab.watched import Watched
from k2lab.weights.store import Mover, WeightStore
from k2lab.world.tools import World

if TYPE_CHECKING:
    from k2lab.widgets.dashboard import Dashboard
    from k2lab.widgets.store import Store

Tools = Callable[[], Sequence[Tool]]
"""Makes a lab's own tools, with whatever they keep at its beginning."""

MAX_TOKENS = 2048  # chosen tokens of one run, unless the person says otherwise


class Lab:
    """A model, its tokenizer, its tools; runs one conversation at a time."""

    def __init__(self, name: str, model: K2, tokenizer: Tokenizer, tools: Tools) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.source = Source(None)
        self.latest: LabRun | None = None  # also the one that a question in the page started
        self.edits: tuple[Edit, ...] = ()  # of the open `edit` blocks
        self.lock = EngineLock()
        self._waits = False  # for the lock, where another run holds it
        self._tools = tools

    @classmethod
    def open(cls, folder: Path, placement: Placement | Places | WeightStore = "auto") -> "Lab":
        """The lab around a checkpoint folder."""
        model = load_model(folder, placement)
        tokenizer = Tokenizer.from_folder(folder)
        name = str(tokenizer.lab.get("name", folder.name))
        lives = tokenizer.lab.get("world") == "microworld"
        lab = cls(name, model, tokenizer, _of_the_world if lives else tuple)
        lab.source = Source(folder, placement)
        return lab

    def __repr__(self) -> str:
        config = self.config
        experts = f"experts={config.num_experts_per_tok}/{config.n_routed_experts}"
        return f"Lab({self.name}, layers={config.num_hidden_layers}, {experts})"

    @property
    def config(self) -> K2Config:
        """The facts of the checkpoint."""
        return self.model.config

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The lab's own tools, in a world that begins anew."""
        return tuple(self._tools())

    @contextmanager
    def edit(self, *edits: Edit | Json | str, **how: Unpack[How]) -> Iterator["Lab"]:
        """While the block is open, runs that start are edited, and so are `logits`.

        `lab.edit("layers.4.mlp.router", ablate=[12], segment="thinking")`: a router or an
        attention by its site, what to do, and for which tokens; or edits as records or JSON.
        """
        before = self.edits
        if len(edits) == 1 and isinstance(edits[0], str):
            more = edits_at(edits[0], how, self.config)
        elif edits and not how:
            more = unique(edits)  # type: ignore[arg-type]
        else:
            raise refused("An edit without a site, or with a record and keywords", "one of the two")
        together = unique((*before, *more))
        Surgery(together, self.config)
        self.edits = together
        try:
            yield self
        finally:
            self.edits = before

    def logits(self, ids: Tensor) -> Tensor:
        """Float32 logits of the token after each, [batch, seq, vocab], for ids [batch, seq].

        BusyError where a run goes on for which a store moves weights.
        """
        whole = isinstance(ids, Tensor) and ids.dtype in (torch.int64, torch.int32)
        if not whole or ids.dim() != 2:
            shown = f"{list(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else repr(ids)
            raise InputError(
                f"ids are {shown:.80}.",
                expected="integer ids of the shape [batch, seq].",
                mend="Use torch.tensor([tokenizer.encode(text)]).",
            )
        check_ids(ids.flatten().tolist(), self.config.vocab_size)
        LatentCache(self.config).room_for(ids.shape[1])
        offloads = isinstance(self.model.store, Mover)
        with self.alone() if offloads else nullcontext(), torch.inference_mode():
            tap = Surgery(self.edits, self.config).tap(0, None, ids.shape[1])
            step = self.model.step(ids.shape[1], cache=None, tap=tap)
            return self.model(ids.to(self.model.device), step).float()

    def generate(
        self,
        ids: Sequence[int] | Tensor,
        *,
        sampler: Sampler | None = None,
        max_tokens: int = MAX_TOKENS,
        tap: Tap = untouched,
    ) -> Iterator[Event]:
        """Events of plain text continuation after `ids`: no template, no tools."""
        given = _whole(ids.flatten().tolist() if isinstance(ids, Tensor) else ids)
        check_ids(given, self.config.vocab_size)
        kind: Kind = "user"
        texts = tuple(pieces(given, self.tokenizer))
        prompt = Prompt(tuple(given), texts, (kind,) * len(given))
        settings = self._settings(sampler, max_tokens, tap)
        settings = replace(settings, stop_ids=frozenset(self.config.stop_ids))
        return self._alone(
            generate(self.model, self.tokenizer, prompt, LatentCache(self.config), settings)
        )

    def events(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[Tool] | None = None,
        sampler: Sampler | None = None,
        max_tokens: int = MAX_TOKENS,
        tap: Tap = untouched,
        **rules: Unpack[Limited],
    ) -> Iterator[Event]:
        """Events of a run in this thread: thinking, tool calls and all, until the answer.

        Without `tools` the lab's own are used; without a sampler, the checkpoint's habit (K2-nano:
        greedy, others: temperature 1). Budget and rules are those of `run`; without `approve`
        nobody can be asked, so a call that would wait for a person is refused.
        """
        recipe = self._recipe(conversation, tools, sampler, max_tokens=max_tokens, rules=rules)
        return LabRun(self, replace(recipe, tap=tap)).here()

    def run(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[Tool] | None = None,
        sampler: Sampler | None = None,
        max_tokens: int = MAX_TOKENS,
        tap: Tap = untouched,
        capture: Level | str = ROUTE,
        store: "Store | None" = None,
        **rules: Unpack[Limited],
    ) -> "LabRun":
        """The same run in a worker thread: returns at once, shows itself live in a notebook.

        Its widgets are new, or those around `store`, which then shows this run. `capture` says how
        much is recorded: "off", "route", "scores", "attention", "residual", "full", or a `Level`.
        `budget` ends the run after so many turns, tokens or seconds, or so much cost of calls, and
        says how much it remembers at once.
        `policy` and `mandate` say which calls are made, `approve` stands for the person who is
        asked, `journal` is a file that is written ahead, without the `secrets`; a `memory` adds its
        tools.
        """
        recipe = self._recipe(conversation, tools, sampler, max_tokens=max_tokens, rules=rules)
        run = LabRun(self, replace(recipe, tap=tap, capture=level_of(capture))).begin()
        self.latest = run
        return run if store is None else run.show_in(store)

    def resume(
        self,
        path: str | Path,
        *,
        tools: Sequence[Tool] | None = None,
        sampler: Sampler | None = None,
        tap: Tap = untouched,
        **rules: Unpack[Limited],
    ) -> "LabRun":
        """The run of a journal, gone on with where it was interrupted.

        What was decided and done is known from the journal, and so are edits and the capture level;
        tools of one's own, policies, mandates and secrets are given again, and so are a sampler and
        a tap of one's own; the draws go on where they were.
        """
        rules["journal"] = path
        about = begun(Path(path), self, tools, rules, tap)
        messages, most = about["messages"], about["max_tokens"]
        sampler = sampler or written(about["sampler"])
        recipe = self._recipe(messages, tools, sampler, max_tokens=most, rules=rules)
        edits, level = unique(about.get("edits", ())), Level.from_json(about.get("capture", {}))
        recipe = replace(recipe, edits=edits, capture=level, tap=tap)
        run = LabRun(self, recipe).begin(again=True)
        self.latest = run
        return run

    def guide(self, tools: Sequence[Tool] | None = None, sampler: Sampler | None = None) -> Sampler:
        """A sampler whose tool calls are valid by construction, around another one.

        `lab.run(question, sampler=lab.guide())`; the names and schemas are those of the tools.
        """
        from k2lab.engine.guided import Grammar, Guided

        chosen = self.tools if tools is None else tools
        check_tools(chosen)
        schemas = {each.name: each.parameters for each in chosen}
        grammar = Grammar(self.tokenizer, schemas, self.config.vocab_size)
        return Guided(grammar, self._sampler(sampler))

    def show(self, run: "LabRun") -> "Dashboard":
        """All views of a run on one page, with one selection."""
        if not hasattr(run, "dashboard"):
            raise InputError(
                f"There is nothing to show of {run!r:.80}.",
                expected="a run, as `lab.run(question)` gives it.",
                mend="Write lab.show(lab.run(question)); a trace shows itself with `trace.show()`.",
            )
        return run.dashboard()

    def beside(self) -> "Lab":
        """A lab over the same weights that runs at the same time as this one.

        Where a store moves weights for the run that goes on, it waits for its turn instead.
        """
        twin = Lab(self.name, self.model, self.tokenizer, self._tools)
        twin.source, twin.edits = self.source, self.edits
        if isinstance(self.model.store, Mover):
            twin.lock, twin._waits = self.lock, True
        return twin

    def watch(self, workflow: Workflow) -> Watched:
        """A workflow in a worker thread, with all of its agents on one timeline."""
        if not isinstance(workflow, Generator):
            raise InputError(
                f"A workflow that is {workflow!r:.80}.",
                expected="what a function of k2lab.agent.workflow gives, such as `planned(…)`.",
                mend="Call the function first; it begins nothing by itself.",
            )
        return Watched(workflow, self.about, self.facts(ROUTE)).begin()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the block is open, no other run uses the engine."""
        while self._waits and not self.lock.wait(0.05):
            if cancellation().cancelled:
                raise Halted
        if not self._waits:
            self.lock.take()
        try:
            yield
        finally:
            self.lock.release()

    @property
    def dtype(self) -> str:
        """What the network computes in."""
        with self.model.store.dense(None, "norm") as w:
            return str(w.norm.dtype).removeprefix("torch.")

    @property
    def about(self) -> About:
        """What traces of this lab are traces of."""
        config = self.config
        return About(
            model=self.name,
            layers=config.num_hidden_layers,
            dense_layers=config.first_k_dense_replace,
            experts=config.n_routed_experts,
            slots=config.num_experts_per_tok,
            scaling=config.routed_scaling_factor,
            vocab=config.vocab_size,
        )

    def facts(self, capture: Level) -> Facts:
        """Where the numbers of this lab's traces come from."""
        config, dtype = self.config, self.dtype
        item = torch.finfo(getattr(torch, dtype)).bits // 8
        return Facts(
            engine=f"k2lab on {self.model.device}",
            dtype=dtype,
            capture=str(capture),
            latent_bytes=cache_bytes_per_token(config, item_bytes=item),
            multi_head_bytes=multi_head_bytes_per_token(config, item_bytes=item),
        )

    def _recipe(
        self,
        conversation: Conversation,
        tools: Sequence[Tool] | None,
        sampler: Sampler | None,
        *,
        max_tokens: int,
        rules: Limited,
    ) -> Recipe:
        self._check_numbers()
        budget, others = bound(rules)
        return Recipe(
            conversation=conversation,
            tools=None if tools is None else tuple(tools),
            sampler=self._sampler(sampler),
            max_tokens=max_tokens,
            edits=self.edits,
            budget=budget,
            rules=others,
        )

    def _settings(self, sampler: Sampler | None, max_tokens: int, tap: Tap) -> Settings:
        check_limit(max_tokens)
        self._check_numbers()
        edits = Surgery(self.edits, self.config) if self.edits else None
        return Settings(self._sampler(sampler), max_tokens, tap=tap, edits=edits)

    def _check_numbers(self) -> None:
        if self.model.device.type == "meta":
            raise InputError(
                "This lab has the placement 'meta': shapes without numbers.",
                expected="weights to choose a token with.",
                mend='Load it with another placement, such as "auto".',
            )

    def _sampler(self, sampler: Sampler | None) -> Sampler:
        """The sampler from its seed on; without one, the checkpoint's habit."""
        if sampler is None:
            own = self.tokenizer.lab.get("temperature", 1.0)
            return sampled(temperature=float(own)) if own else greedy  # type: ignore[arg-type]
        return anew(sampler)

    def _alone(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, while no other run uses the engine."""
        with self.alone():
            yield from events


def _whole(ids: Sequence[int]) -> list[int]:
    """Ids as Python's own numbers."""
    try:
        return [index(each) for each in ids]
    except TypeError as error:
        raise InputError(
            f"ids are {ids!r:.80}.",
            expected="a row of whole numbers.",
            mend="Of a text, lab.tokenizer.encode(text) gives them; lab.events takes a question.",
        ) from error


def _of_the_world() -> Sequence[Tool]:
    """The tools of a microworld that begins anew, with what is known of them."""
    return [
        replace(
            each,
            effect="writes" if each.name in {"order", "next_item"} else "reads",
            trusted=each.name in {"calc", "convert", "date", "next_item"},  # no words of others
        )
        for each in World(0).tools()
    ]
