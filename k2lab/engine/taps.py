"""Taps: functions called at every site, which watch a value by returning it, or change it.

    tap(site, value) -> value

`watch` and `edit` make a tap from a site pattern, `chain` joins taps, `RouteCapture` is the watcher
behind every live view. A pattern that matches no site of the model raises `SiteError`.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.engine.events import Routed
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap, describe, looking_at, match, rows, takes_arrays

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
    On single tokens the price is calls, not arithmetic: so there are few, and they are NumPy's.
    """

    def __init__(self, config: K2Config) -> None:
        self._scale = torch.tensor(255 / config.routed_scaling_factor)
        self._layers, self._slots = len(config.moe_layers), config.num_experts_per_tok
        self._all_chosen = config.n_routed_experts == self._slots
        self._experts: list[Value] = []
        self._weights: list[Value] = []
        self._choices: list[Value] = []
        sees: dict[str, Callable[[Value], None]] = {}
        for layer in config.moe_layers:
            router = f"layers.{layer}.mlp.router"
            sees[f"{router}.experts"] = self._experts.append
            sees[f"{router}.weights"] = self._weights.append
            sees[f"{router}.choice"] = self._choices.append
        look = sees.get

        def tap(site: str, value: Value) -> Value:
            see = look(site)
            if see is not None:
                see(value)
            return value

        leaves = ("experts", "weights", "choice")
        watched = (f"layers.{{i}}.mlp.router.{leaf}" for leaf in leaves)
        self.tap: Tap = looking_at(tap, watched, arrays=True)

    @property
    def tokens(self) -> int:
        """Tokens of the last forward that was seen."""
        return self._experts[-1].shape[1] if self._experts else 0

    def take(self, start: int, forwards: int = 1) -> Routed | None:
        """What was seen since the last call, for tokens from index `start`; None without MoE.

        They went through the network in one forward, or one by one in so many.
        """
        if not self._experts:
            return None
        for seen in (self._experts, self._weights, self._choices):
            del seen[forwards * self._layers :]  # of a forward that was halted
        chosen = joined(self._experts)
        margin = self._margins(chosen)
        experts = chosen.cpu().numpy().astype(np.uint16)
        share = (joined(self._weights) * self._scale).cpu().numpy()
        weights = np.rint(np.minimum(share, 255)).astype(np.uint8)
        self.clear()
        if forwards > 1:  # each is [forward · layer, 1, …]
            kept, row = (forwards, self._layers), (forwards, self._layers, self._slots)
            return Routed(start, experts.reshape(row), weights.reshape(row), margin.reshape(kept))
        swapped = experts.swapaxes(0, 1), weights.swapaxes(0, 1), margin.swapaxes(0, 1)
        return Routed(start, *swapped)  # by token first

    def clear(self) -> None:
        """Forget what a halted forward left behind."""
        for seen in (self._experts, self._weights, self._choices):
            seen.clear()

    def _margins(self, chosen: Tensor) -> np.ndarray:
        """Choice score of the last chosen − first not chosen [layer, token]."""
        if self._all_chosen:  # nobody is left out
            return np.full(chosen.shape[:2], np.inf, np.float16)
        scores = joined(self._choices)
        last = scores.gather(-1, chosen).amin(-1)
        # Not by a larger top k: over a prompt that takes sixteen times as long (measured).
        first = scores.scatter(-1, chosen, float("-inf")).amax(-1)
        gap = (last - first).cpu().numpy()
        return np.minimum(gap, 65504).astype(np.float16)  # float16's largest
