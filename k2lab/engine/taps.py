"""Taps: functions called at every site, which watch a value by returning it, or change it.

    tap(site, value) -> value

`watch` and `edit` make a tap from a site pattern, `chain` joins taps, `RouteCapture` is the watcher
behind every live view. A pattern that matches no site of the model raises `SiteError`.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.engine.events import Routed
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap, describe, looking_at, match, rows, takes_arrays

FIRST_ROWS = 64  # tokens that route capture has room for at first: more than a frame holds

Value = Tensor | NDArray[Any]
"""What a tap is shown; arrays only where it says that it takes them (`looking_at`)."""


def untouched(site: str, value: Tensor) -> Tensor:
    """The value itself: the tap of a run that nobody watches."""
    return value


looking_at(untouched, (), arrays=True)


def watch(pattern: str, config: K2Config, see: Callable[[str, Tensor], None]) -> Tap:
    """A tap that shows matching values to `see` and changes nothing.

    The tensor is the model's own: copy what is to be kept, at [batch, …] values per token each.
    """
    sites = frozenset(match(pattern, config))

    def tap(site: str, value: Tensor) -> Tensor:
        if site in sites:
            see(site, value)
        return value

    return looking_at(tap, (describe(each).name for each in sites))


def edit(pattern: str, config: K2Config, change: Callable[[Tensor], Tensor]) -> Tap:
    """A tap that replaces matching values by `change(value)` of the same shape."""
    sites = frozenset(match(pattern, config))

    def tap(site: str, value: Tensor) -> Tensor:
        return change(value) if site in sites else value

    return looking_at(tap, (describe(each).name for each in sites))


def chain(*taps: Tap) -> Tap:
    """One tap that passes each value through all of them, in order."""
    active = [tap for tap in taps if tap is not untouched]
    if len(active) < 2:
        return active[0] if active else untouched

    def joined(first: Tap, second: Tap) -> Tap:
        both, arrays = rows(first) | rows(second), takes_arrays(first) and takes_arrays(second)
        tap: Tap = lambda site, value: second(site, first(site, value))  # noqa: E731 - it is named
        return looking_at(tap, both, arrays=arrays)

    return reduce(joined, active)


def joined(values: Sequence[Value]) -> Tensor:
    """Values that a tap has kept, one after the other along the first axis."""
    if any(isinstance(each, Tensor) for each in values):
        return torch.cat([torch.as_tensor(each) for each in values])
    return torch.from_numpy(np.concatenate(values))


class RouteCapture:
    """Collects which experts each token went to, with weights and margins, for batch 1.

    Costs 3 bytes per (MoE layer, slot) and 2 per MoE layer for each token: 1,560 bytes at K2 size.
    On single tokens the price is calls, not arithmetic: each value is written where it will be
    read, since joining them afterwards takes longer than that (measured).
    """

    def __init__(self, config: K2Config) -> None:
        self._factor = 255 / config.routed_scaling_factor
        self._layers, self._slots = len(config.moe_layers), config.num_experts_per_tok
        self._all_chosen = config.n_routed_experts == self._slots
        # Of single tokens [token, layer, …]; of others, and on a GPU, as the network had them.
        shape = (FIRST_ROWS, self._layers)
        self._rows: dict[str, NDArray[Any]] = {
            "choice": np.empty((*shape, config.n_routed_experts), np.float32),
            "experts": np.empty((*shape, self._slots), np.int64),
            "weights": np.empty((*shape, self._slots), np.float32),
        }
        self._written = 0  # whole tokens in these rows
        self._many: dict[str, list[Tensor]] = {leaf: [] for leaf in self._rows}
        sees = {
            f"layers.{layer}.mlp.router.{leaf}": partial(self._see, leaf, place)
            for place, layer in enumerate(config.moe_layers)
            for leaf in self._rows
        }
        look = sees.get

        def tap(site: str, value: Value) -> Value:
            see = look(site)
            if see is not None:
                see(value)
            return value

        watched = (f"layers.{{i}}.mlp.router.{leaf}" for leaf in self._rows)
        self.tap: Tap = looking_at(tap, watched, arrays=True)

    @property
    def tokens(self) -> int:
        """Tokens of the last forward that was seen."""
        many = self._many["experts"]
        return many[-1].shape[1] if many else min(self._written, 1)

    def take(self, start: int, forwards: int = 1) -> Routed | None:
        """What was seen since the last call, for tokens from index `start`; None without MoE.

        They went through the network in one forward, or one by one in so many.
        """
        if self._written:
            routed = self._of_rows(start, min(self._written, forwards))
        elif self._many["weights"]:
            routed = self._of_many(start, forwards)
        else:
            return None
        self.clear()
        return routed

    def clear(self) -> None:
        """Forget what a halted forward left behind."""
        self._written = 0
        for seen in self._many.values():
            seen.clear()

    def _see(self, leaf: str, place: int, value: Value) -> None:
        if isinstance(value, Tensor):
            if value.shape[1] != 1 or not value.is_cpu:
                self._many[leaf].append(value)
                return
            value = value.numpy(force=True)
        self._rows[leaf][self._written, place] = value
        if leaf == "weights" and place == self._layers - 1:  # the last that a token has
            self._written += 1
            if self._written == len(self._rows[leaf]):
                twice = {k: np.concatenate([v, np.empty_like(v)]) for k, v in self._rows.items()}
                self._rows = twice

    def _of_rows(self, start: int, tokens: int) -> Routed:
        choice, experts, weights = (rows[:tokens] for rows in self._rows.values())
        if self._all_chosen:  # nobody is left out
            gap = np.full(experts.shape[:2], np.inf, np.float32)
        else:
            last = np.take_along_axis(choice, experts, -1).min(-1)
            np.put_along_axis(choice, experts, -np.inf, -1)
            with np.errstate(invalid="ignore"):
                gap = last - choice.max(-1)
        return self._routed(start, experts, weights * self._factor, gap)

    def _of_many(self, start: int, forwards: int) -> Routed:
        whole = forwards * self._layers  # without what a halted forward left
        choice, chosen, weights = (torch.cat(seen[:whole]) for seen in self._many.values())
        if self._all_chosen:
            gap = torch.full(chosen.shape[:2], float("inf"))
        else:
            # Not by a larger top k: over a prompt that takes sixteen times as long (measured).
            first = choice.scatter(-1, chosen, float("-inf")).amax(-1)
            gap = choice.gather(-1, chosen).amin(-1) - first
        found = [each.cpu().numpy() for each in (chosen, weights * self._factor, gap)]
        if forwards > 1:  # each is [forward · layer, 1, …]
            row = (forwards, self._layers)
            return self._routed(start, *(each.reshape(*row, *each.shape[2:]) for each in found))
        return self._routed(start, *(each.swapaxes(0, 1) for each in found))  # by token first

    def _routed(
        self, start: int, experts: NDArray[Any], share: NDArray[Any], gap: NDArray[Any]
    ) -> Routed:
        """The event, of share of 255 and gap from the last chosen to the first not chosen."""
        margin = gap if self._all_chosen else np.minimum(gap, 65504)  # float16's largest
        weights = np.rint(np.minimum(share, 255)).astype(np.uint8)
        return Routed(start, experts.astype(np.uint16), weights, margin.astype(np.float16))
