"""How much of a run is recorded: capture levels, their byte budget, and the watcher behind them.

    lab.run("…", capture="attention")             # all layers and heads
    lab.run("…", capture=attention(3, heads=(0, 1)) | scores(3))

`off` nothing · `route` (default) chosen experts, weights, margins · `scores` every router score ·
`attention` latents and queries, from which every weight follows · `residual` the stream before each
layer · `full` all of it, meant for K2-nano. What goes beyond routes is kept for the newest tokens
only, within a budget of bytes; `Dropped` events say what was given up. Not here: what is made of it
(`trace/`), nor numbers computed again after a run (`replay.py`).
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from k2lab.engine.events import Captured, Dropped, Routed
from k2lab.engine.taps import RouteCapture, Value, chain, joined, keeping
from k2lab.errors import BudgetError, InputError
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config
from k2lab.spec.sites import expand, match, parts
from k2lab.tensors.rope import softmax_scale

BUDGET = 512 * 2**20  # bytes of captured values beyond routes
FEWEST = 256  # tokens that a budget must hold
HELD_SECONDS = 0.06  # values may wait so long, less than a frame of the page; a slow model's never
TRIALS = 4  # of a forward's calls, to know what they cost
BLOCKS = 8  # the oldest tokens go in blocks of this part of the budget

Layers = tuple[int, ...] | None
"""Layers by number; None: all that have the site."""

SITES = {
    "scores": ("mlp.router.scores", "mlp.router.choice"),
    "attention": (
        "self_attn.latent",
        "self_attn.k_rope",
        "self_attn.q_nope",
        "self_attn.q_rope",
    ),
    "residual": ("input",),
}
NAMES = {  # of what a site's values become, see trace/captured.py
    "mlp.router.scores": "scores",
    "mlp.router.choice": "choice",
    "self_attn.latent": "latent",
    "self_attn.k_rope": "key_rope",
    "self_attn.q_nope": "query_latent",
    "self_attn.q_rope": "query_rope",
    "input": "residual",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What to record. Levels join with `|`; `str` gives the code that makes the level again."""

    routes: bool = True
    scores: Layers = ()
    attention: Layers = ()
    heads: Layers = None
    residual: Layers = ()
    budget: int = BUDGET

    def __bool__(self) -> bool:
        """Whether anything is recorded."""
        return self.routes or self.more

    @property
    def more(self) -> bool:
        """Whether more than routes is recorded."""
        return any(part != () for part in (self.scores, self.attention, self.residual))

    def __or__(self, other: "Level") -> "Level":
        heads = _joined(self.heads, other.heads)
        if () in (self.attention, other.attention):  # one side alone names heads
            heads = self.heads if other.attention == () else other.heads
        return Level(
            routes=self.routes or other.routes,
            scores=_joined(self.scores, other.scores),
            attention=_joined(self.attention, other.attention),
            heads=heads,
            residual=_joined(self.residual, other.residual),
            budget=max(self.budget, other.budget),
        )

    @classmethod
    def from_json(cls, source: Mapping[str, Any]) -> "Level":
        """The level that JSON values describe; what they leave out is as in `route`."""
        known = {each.name for each in fields(cls)}
        if source.keys() - known:
            raise InputError(
                f"A capture level with {', '.join(sorted(source.keys() - known))}.",
                expected=f"{', '.join(sorted(known))}.",
                mend="read it with the version of k2lab that wrote it.",
            )
        read: dict[str, Any] = {}
        for name, value in source.items():
            read[name] = tuple(value) if isinstance(value, list) else value
        return cls(**read)

    def to_json(self) -> dict[str, Any]:
        """The level as JSON values: numbers of layers and heads in lists, null for all of them."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in plain.items()}

    def within(self, budget: int) -> "Level":
        """The same, with another budget of bytes."""
        return replace(self, budget=budget)

    def __str__(self) -> str:
        name = next((name for name, level in LEVELS.items() if level == self), None)
        if name is not None:
            return name
        parts = [f"{part}({_listed(self, part)})" for part in SITES if getattr(self, part) != ()]
        if not self.routes:
            parts.append("without routes")
        kept = "" if self.budget == BUDGET else f", {self.budget / 2**20:.4g} MiB"
        return " | ".join(parts) + kept


def scores(*layers: int) -> Level:
    """Routes, and the scores of all experts in these layers (none given: in all)."""
    return Level(scores=layers or None)


def attention(*layers: int, heads: tuple[int, ...] | None = None) -> Level:
    """Routes, and what the attention weights of these layers (none: all) and heads follow from."""
    return Level(attention=layers or None, heads=heads)


def residual(*layers: int) -> Level:
    """Routes, and the residual stream before these layers (none given: before all)."""
    return Level(residual=layers or None)


OFF = Level(routes=False)
ROUTE = Level()
FULL = Level(scores=None, attention=None, residual=None)

LEVELS = {
    "off": OFF,
    "route": ROUTE,
    "scores": scores(),
    "attention": attention(),
    "residual": residual(),
    "full": FULL,
}


def level_of(level: Level | str) -> Level:
    """The level itself, or the one of this name."""
    if isinstance(level, Level):
        return level
    if level not in LEVELS:
        raise InputError(
            f"No capture level is called {level!r}.",
            expected=f"one of {', '.join(LEVELS)}, or a Level from k2lab.engine.capture.",
            mend="write capture='route', or for example capture=attention(3) | scores(3).",
        )
    return LEVELS[level]


def bytes_per_token(config: K2Config, level: Level, item: int = 2) -> int:
    """Bytes that one token adds to the captured values, routes not counted.

    `item` are the bytes of a number in the network: 2 for bfloat16. Router scores are float32.
    """
    heads = config.num_attention_heads if level.heads is None else len(level.heads)
    width = config.kv_lora_rank + config.qk_rope_head_dim
    routers = len(_chosen(level.scores, config.moe_layers))
    every = range(config.num_hidden_layers)
    return (
        routers * 2 * 4 * config.n_routed_experts
        + len(_chosen(level.attention, every)) * (1 + heads) * width * item
        + len(_chosen(level.residual, every)) * config.hidden_size * item
    )


class Capture:
    """Watches forwards of batch 1 and turns what it saw into events."""

    def __init__(self, model: K2, level: Level) -> None:
        """SiteError for layers without the site, BudgetError where the budget is too small."""
        config = model.config
        self._model, self._level = model, level
        self._routes = RouteCapture(config) if level.routes else None
        self._seen: dict[str, list[Value]] = {}
        self._layers: dict[str, tuple[int, ...]] = {}
        lists: dict[str, list[Value]] = {}
        every = tuple(range(config.num_hidden_layers))
        for part, sites in SITES.items():
            wanted = getattr(level, part)
            layers = _chosen(wanted, config.moe_layers if part == "scores" else every)
            for site in sites if layers else ():
                self._layers[NAMES[site]] = layers
                seen = self._seen[NAMES[site]] = []
                for layer in layers:
                    (name,) = match(f"layers.{layer}.{site}", config)
                    lists[name] = seen
        taps = [self._routes.tap] if self._routes else []
        self.tap = chain(*taps, *([keeping(lists)] if lists else []))
        """The tap that watches."""
        self._kept = [*(self._routes.seen if self._routes else {}).values(), *self._seen.values()]
        self._heads = _heads(level, config)
        self._scale = softmax_scale(config)
        self._room = self._check_budget(config) if self._seen else 0
        self._dropped = 0
        self._called, self._told = self._time_of_watching(config)  # seconds of a forward
        self._waiting, self._first, self._last = 0, 0, 0.0  # forwards that wait to be told of

    def waits(self) -> bool:
        """Whether something that was seen waits to be told."""
        return self._waiting > 0

    def take(self, start: int, tokens: int) -> Iterable[Routed | Captured | Dropped]:
        """What was seen since the last call: of so many tokens from index `start`.

        Of single ones it may come a little later, of several at once: see `rest`.
        """
        if not self._waiting:
            self._first = start
        self._waiting += 1
        if tokens != 1 or time.perf_counter() - self._last > HELD_SECONDS:
            return self.rest()
        return ()

    def rest(self) -> Iterator[Routed | Captured | Dropped]:
        """What waits: of several tokens at once it costs a fraction.

        Products of several tokens may differ from those of one in their last bit.
        """
        if not self._waiting:
            return
        first, forwards, self._waiting = self._first, self._waiting, 0
        told = any(kept and not isinstance(kept[0], Tensor) for kept in self._kept)
        watching = forwards * (self._told if told else self._called)
        began = time.perf_counter()
        routed = self._routes.take(first, forwards) if self._routes else None
        if routed is not None:
            seconds = time.perf_counter() - began + watching
            yield Routed(first, routed.experts, routed.weights, routed.margin, seconds)
        if self._seen:
            began = time.perf_counter()
            arrays = {name: self._array(name, forwards) for name in self._seen}
            for values in self._seen.values():
                values.clear()
            seconds = time.perf_counter() - began + (watching if routed is None else 0)
            yield Captured(first, self._heads, self._layers, arrays, seconds)
            yield from self._over(first + len(next(iter(arrays.values()))))
        self._last = time.perf_counter()

    def _over(self, stop: int) -> Iterator[Dropped]:
        """What goes to stay within the budget, once the tokens before `stop` are told."""
        block = max(1, self._room // BLOCKS)
        first = math.ceil(max(0, stop - self._room) / block) * block
        if first > self._dropped:
            self._dropped = first
            yield Dropped(first, self._level.budget)

    def _time_of_watching(self, config: K2Config) -> tuple[float, float]:
        """Seconds that a forward's calls of the tap take, or what is told instead: measured here.

        In each forward the clock would cost as much as they do.
        """
        nothing, notes = torch.empty(0), parts(self.tap)[1].values()
        calls = [partial(self.tap, "", nothing)] * len(expand(config))
        seconds = []
        for each in (calls, [partial(note, nothing) for note in notes]):
            for trial in range(TRIALS):
                if trial == 1:  # the first one warms up
                    began = time.perf_counter()
                for call in each:
                    call()
            seconds.append((time.perf_counter() - began) / (TRIALS - 1))
        for kept in self._kept:
            kept.clear()
        return seconds[0], seconds[1]

    def _array(self, name: str, forwards: int) -> np.ndarray:
        """What was seen of one forward, or of so many of one token each: [token, layer, …]."""
        layers = len(self._layers[name])
        whole = joined(self._seen[name][: forwards * layers])  # without what a halted one left
        if forwards > 1:  # each is [forward · layer, 1, …]
            whole = whole.view(forwards, layers, *whole.shape[2:]).transpose(0, 1)
        if name in ("query_latent", "query_rope"):  # [layer, token, …]
            if self._level.heads is not None:
                whole = whole[:, :, list(self._heads)]
            whole = self._absorbed(whole) if name == "query_latent" else whole * self._scale
        whole = whole.transpose(0, 1).cpu()
        if whole.dtype == torch.bfloat16:
            return whole.contiguous().view(torch.int16).numpy().view(np.uint16)
        return whole.numpy()

    def _absorbed(self, queries: Tensor) -> Tensor:
        """scale · q W^UK, [layer, token, head, latent] of [layer, token, head, nope]."""
        config, rows = self._model.config, []
        for place, layer in enumerate(self._layers["query_latent"]):
            with self._model.store.dense(layer, "self_attn") as w:
                up = w.kv_b_proj.unflatten(0, (config.num_attention_heads, -1))
                up = up[:, : config.qk_nope_head_dim]
                if self._level.heads is not None:
                    up = up[list(self._heads)]
                by_head = torch.bmm(queries[place].transpose(0, 1), up)  # [head, token, latent]
            rows.append(by_head.transpose(0, 1))
        return torch.stack(rows) * self._scale

    def _check_budget(self, config: K2Config) -> int:
        """Tokens that the budget holds."""
        with self._model.store.dense(None, "norm") as w:
            each = bytes_per_token(config, self._level, w.norm.element_size())
        room = self._level.budget // max(1, each)
        if room < FEWEST:
            raise BudgetError(
                f"The capture level {self._level} takes {each:,} bytes per token: its budget of "
                f"{self._level.budget:,} bytes holds {room} tokens.",
                expected=f"room for at least {FEWEST} tokens: {each * FEWEST:,} bytes.",
                mend="name fewer layers or heads, or give more with level.within(budget).",
            )
        return room


def _heads(level: Level, config: K2Config) -> tuple[int, ...]:
    """The heads whose queries are kept, checked."""
    if level.attention == ():
        return ()
    heads = _chosen(level.heads, range(config.num_attention_heads))
    wrong = [head for head in heads if not 0 <= head < config.num_attention_heads]
    if wrong or not heads:
        raise InputError(
            f"Heads {list(heads)} are to be captured.",
            expected=f"one or more of 0 … {config.num_attention_heads - 1}.",
            mend="leave `heads` out for all of them.",
        )
    return heads


def _chosen(layers: Layers, every: range | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(every) if layers is None else tuple(sorted(set(layers)))


def _joined(one: Layers, other: Layers) -> Layers:
    if one is None or other is None:
        return None
    return tuple(sorted({*one, *other}))


def _listed(level: Level, part: str) -> str:
    layers: Layers = getattr(level, part)
    given = [*map(str, layers or ())]
    if part == "attention" and level.heads is not None:
        given.append(f"heads={level.heads}")
    return ", ".join(given)
