"""Taps: functions called at every site, which watch a value by returning it, or change it.

    tap(site, value) -> value

`watch` and `edit` make a tap from a site pattern, `chain` joins taps, `RouteCapture` is the watcher
behind every live view. A pattern that matches no site of the model raises `SiteError`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.engine.events import Routed
from k2lab.spec.config import K2Config
from k2lab.spec.sites import (
    Notes,
    Tap,
    describe,
    looking_at,
    match,
    noting,
    parts,
    rows,
    takes_arrays,
)
from k2lab.spec.sites import untouched as untouched

MOST = 65504.0  # float16's largest

Value = Tensor | NDArray[Any]
"""What a tap is shown; arrays only where it says that it takes them (`looking_at`)."""


def watch(pattern: str, config: K2Config, see: Callable[[str, Tensor], None]) -> Tap:
    """A tap that shows matching values to `see` and changes nothing.

    The tensor is the model's own: copy what is to be kept, at [batch, …] values per token each.
    """
    sites = frozenset(match(pattern, config))

    def tap(site: str, value: Tensor) -> Tensor:
        if site in sites:
            see(site, value)
        return value

    tap.watches = True  # type: ignore[attr-defined]
    return looking_at(tap, (describe(each).name for each in sites))


def watches(tap: Tap) -> bool:
    """Whether all that a tap does is to watch: what a run computes is the same without it."""
    return getattr(tap, "watches", parts(tap)[0] is untouched)


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
    return reduce(_then, active)


def _then(first: Tap, second: Tap) -> Tap:
    """One tap that is the first, then the second; what the second watches may still be told."""
    both, (after, notes) = _calls(first, second), parts(second)
    if not notes:
        return both
    if after is untouched:
        after, known = parts(first)
        return noting(both, _noted(known, notes), after=after)
    return noting(both, notes, after=_calls(first, after))


def _calls(first: Tap, second: Tap) -> Tap:
    tap: Tap = lambda site, value: second(site, first(site, value))  # noqa: E731 - it is named
    tap.watches = watches(first) and watches(second)  # type: ignore[attr-defined]
    arrays = takes_arrays(first) and takes_arrays(second)
    return looking_at(tap, rows(first) | rows(second), arrays=arrays)


def _noted(first: Notes, second: Notes) -> Notes:
    """What both are told, the first one before the second."""

    def both(site: str) -> Callable[[Any], None]:
        one, other = first[site], second[site]
        return lambda value: (one(value), other(value))[1]

    return {**first, **second, **{site: both(site) for site in first.keys() & second.keys()}}


def keeping(lists: Mapping[str, list[Value]]) -> Tap:
    """A tap that puts each value of these sites at the end of its list, and changes nothing."""
    look = lists.get

    def tap(site: str, value: Tensor) -> Tensor:
        seen = look(site)
        if seen is not None:
            seen.append(value)
        return value

    looking_at(tap, (describe(each).name for each in lists))
    return noting(tap, {site: seen.append for site, seen in lists.items()})


def joined(values: Sequence[Value]) -> Tensor:
    """What a tap was shown [batch, token, …], or told [, …], one after the other."""
    if isinstance(values[0], Tensor):
        return torch.cat([torch.as_tensor(each) for each in values])
    whole = np.concatenate(values)
    return torch.from_numpy(whole.reshape(len(values), 1, *values[0].shape))


class RouteCapture:
    """Collects which experts each token went to, with weights and margins, for batch 1.

    Costs 3 bytes per (MoE layer, slot) and 2 per MoE layer for each token: 1,560 bytes at K2 size.
    """

    def __init__(self, config: K2Config) -> None:
        self._factor = 255 / config.routed_scaling_factor
        self._layers, self._slots = len(config.moe_layers), config.num_experts_per_tok
        self._all_chosen = config.n_routed_experts == self._slots
        self.seen: dict[str, list[Value]] = {leaf: [] for leaf in ("choice", "experts", "weights")}
        self.tap: Tap = keeping(
            {
                f"layers.{layer}.mlp.router.{leaf}": seen
                for layer in config.moe_layers
                for leaf, seen in self.seen.items()
            }
        )

    def take(self, start: int, forwards: int = 1) -> Routed | None:
        """What was seen since the last call, for tokens from index `start`; None without MoE.

        They went through the network in one forward, or one by one in so many.
        """
        whole = forwards * self._layers  # without what a halted forward left
        if not self.seen["weights"]:
            return None
        choice, chosen, weights = (joined(seen[:whole]) for seen in self.seen.values())
        for seen in self.seen.values():
            seen.clear()
        gap = torch.full(chosen.shape[:2], float("inf"))
        if not self._all_chosen:  # else nobody is left out
            # Not by a larger top k: over a prompt that takes sixteen times as long (measured).
            first = choice.scatter(-1, chosen, float("-inf")).amax(-1)
            gap = (choice.gather(-1, chosen).amin(-1) - first).clamp(max=MOST)
        found = [each.cpu().numpy() for each in (chosen, weights * self._factor, gap)]
        if forwards > 1:  # each is [forward · layer, 1, …]
            row = (forwards, self._layers)
            experts, share, margin = (each.reshape(*row, *each.shape[2:]) for each in found)
        else:
            experts, share, margin = (each.swapaxes(0, 1) for each in found)
        share = np.rint(np.minimum(share, 255)).astype(np.uint8)
        return Routed(start, experts.astype(np.uint16), share, margin.astype(np.float16))
