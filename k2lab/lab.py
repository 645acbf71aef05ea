"""The lab: one object around a checkpoint, all that a notebook needs.

    lab = k2lab.load()
    run = lab.run("What is 3 * 14?")      # returns at once, displays live
    run.wait().trace

A fold over the engine: it joins model, tokenizer, tools, worker thread, trace and widgets, and adds
no mechanism of its own.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from k2lab.agent.loop import Mind, converse
from k2lab.agent.tools import Tool
from k2lab.engine.events import Event, Kind
from k2lab.engine.generate import Prompt, Settings, check_ids, generate, pieces
from k2lab.engine.sampling import Sampler, greedy, sampled
from k2lab.engine.session import Control, Run
from k2lab.engine.taps import chain, untouched
from k2lab.errors import BusyError, InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.load import Placement, load_model
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap
from k2lab.text.tokenizer import Tokenizer
from k2lab.trace.trace import About, Trace
from k2lab.weights.store import WeightStore
from k2lab.world.tools import World

if TYPE_CHECKING:
    from k2lab.widgets.base import Column
    from k2lab.widgets.experts import ExpertMap
    from k2lab.widgets.store import Store
    from k2lab.widgets.thoughts import ThoughtStream

Conversation = str | Sequence[Mapping[str, Any]]
"""A question, or messages in the OpenAI form."""

MAX_TOKENS = 2048  # chosen tokens of one run, unless the person says otherwise


class Lab:
    """A model, its tokenizer, its tools; runs one conversation at a time."""

    def __init__(self, name: str, model: K2, tokenizer: Tokenizer, tools: Sequence[Tool]) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.tools = tuple(tools)
        self.latest: LabRun | None = None  # also the one that a question in the page started
        self._engine = threading.Lock()

    @classmethod
    def open(cls, folder: Path, placement: Placement | WeightStore = "auto") -> "Lab":
        """The lab around a checkpoint folder."""
        model = load_model(folder, placement)
        tokenizer = Tokenizer.from_folder(folder)
        name = str(tokenizer.lab.get("name", folder.name))
        tools = World(0).tools() if tokenizer.lab.get("world") == "microworld" else ()
        return cls(name, model, tokenizer, tools)

    def __repr__(self) -> str:
        config = self.config
        experts = f"experts={config.num_experts_per_tok}/{config.n_routed_experts}"
        return f"Lab({self.name}, layers={config.num_hidden_layers}, {experts})"

    @property
    def config(self) -> K2Config:
        """The facts of the checkpoint."""
        return self.model.config

    def logits(self, ids: Tensor) -> Tensor:
        """Float32 logits of the token after each, [batch, seq, vocab], for ids [batch, seq]."""
        if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"ids have the shape {list(ids.shape)} and the dtype {ids.dtype}.",
                expected="integer ids of the shape [batch, seq].",
                mend="Use torch.tensor([tokenizer.encode(text)]).",
            )
        check_ids(ids.flatten().tolist(), self.config.vocab_size)
        LatentCache(self.config).room_for(ids.shape[1])
        with torch.inference_mode():
            step = self.model.step(ids.shape[1], cache=None, tap=untouched)
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
        given = [int(i) for i in (ids.flatten().tolist() if isinstance(ids, Tensor) else ids)]
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
    ) -> Iterator[Event]:
        """Events of a run in this thread: thinking, tool calls and all, until the answer.

        Without `tools` the lab's own are used; without a sampler, the checkpoint's habit (K2-nano:
        greedy, others: temperature 1).
        """
        settings = self._settings(sampler, max_tokens, tap)
        return self._alone(self._converse(conversation, tools, settings))

    def run(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[Tool] | None = None,
        sampler: Sampler | None = None,
        max_tokens: int = MAX_TOKENS,
        tap: Tap = untouched,
        store: "Store | None" = None,
    ) -> "LabRun":
        """The same run in a worker thread: returns at once, shows itself live in a notebook.

        Its widgets are new, or those around `store`, which then shows this run.
        """
        control = Control()
        settings = self._settings(sampler, max_tokens, chain(control.tap, tap))
        run = LabRun(self, control, store)
        run.start(self._converse(conversation, tools, settings), self._engine)
        self.latest = run
        return run

    def show(self, run: "LabRun") -> "Column":
        """The linked widgets of a run, below each other."""
        return run.show()

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

    def _converse(
        self, conversation: Conversation, tools: Sequence[Tool] | None, settings: Settings
    ) -> Iterator[Event]:
        messages: Sequence[Mapping[str, Any]] = (
            [{"role": "user", "content": conversation}]
            if isinstance(conversation, str)
            else conversation
        )
        chosen = self.tools if tools is None else tools
        return converse(Mind(self.model, self.tokenizer), messages, chosen, settings)

    def _settings(self, sampler: Sampler | None, max_tokens: int, tap: Tap) -> Settings:
        if max_tokens < 1:
            raise InputError(
                f"max_tokens is {max_tokens}.", expected="at least 1.", mend="Give a larger limit."
            )
        if sampler is None:
            own = self.tokenizer.lab.get("temperature", 1.0)
            sampler = sampled(temperature=float(own)) if own else greedy  # type: ignore[arg-type]
        return Settings(sampler=sampler, max_tokens=max_tokens, tap=tap)

    def _alone(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, while no other run uses the engine."""
        if not self._engine.acquire(blocking=False):
            raise BusyError(
                "A run is still going on this engine.",
                expected="one run at a time.",
                mend="Wait for it with `run.wait()`, or stop it with `run.stop()`.",
            )
        try:
            yield from events
        finally:
            self._engine.release()


class LabRun(Run):
    """A run that knows its lab and shows itself; all its widgets share one selection."""

    def __init__(self, lab: Lab, control: Control, store: "Store | None") -> None:
        super().__init__(Trace(lab.about), control)
        self.lab = lab
        self._store = store

    def __repr__(self) -> str:
        return f"Run({self.lab.name}, tokens={len(self.trace)}, state={self.state})"

    @property
    def store(self) -> "Store":
        """Data and selection behind this run's widgets."""
        if self._store is None:
            from k2lab.widgets.store import Facts, Store

            device = self.lab.model.device
            facts = Facts(engine=f"k2lab {self.lab.name} on {device}", dtype=self.lab.dtype)
            self._store = Store(self, facts=facts, on_ask=self._ask)
        return self._store

    def thoughts(self) -> "ThoughtStream":
        """The tokens as they appear: thinking, tool calls, answer."""
        from k2lab.widgets.thoughts import ThoughtStream

        return ThoughtStream(self.store)

    def experts(self) -> "ExpertMap":
        """Which experts computed what, layer by layer."""
        from k2lab.widgets.experts import ExpertMap

        return ExpertMap(self.store)

    def show(self) -> "Column":
        """The linked widgets below each other."""
        from k2lab.widgets.base import Column

        return Column([self.thoughts(), self.experts()])

    def _ask(self, question: str) -> None:
        """A person asked in the page: a new run takes this one's place in the same widgets."""
        store = self.store
        store.attach(self.lab.run(question, store=store))

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """A run as the last line of a cell shows its widgets."""
        return self.show()._repr_mimebundle_(**kwargs)
