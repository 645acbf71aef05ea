"""Taps: functions called at every site, which watch a value by returning it, or change it.

    tap(site, value) -> value

`watch` and `edit` make a tap from a site pattern, `chain` joins taps, `RouteCapture` is the watcher
behind every live view. A pattern that matches no site of the model raises `SiteError`.
"""

from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from k2lab.engine.events import Routed
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap, match


def untouched(site: str, value: Tensor) -> Tensor:
    """The value itself: the tap of a run that nobody watches."""
    return value


def watch(pattern: str, config: K2Config, see: Callable[[str, Tensor], None]) -> Tap:
    """A tap that shows matching values to `see` and changes nothing.

    The tensor is the model's own: copy what is to be kept, at [batch, …] values per token each.
    """
    sites = frozenset(match(pattern, config))

    def tap(site: str, value: Tensor) -> Tensor:
        if site in sites:
            see(site, value)
        return value

    return tap


def edit(pattern: str, config: K2Config, change: Callable[[Tensor], Tensor]) -> Tap:
    """A tap that replaces matching values by `change(value)` of the same shape."""
    sites = frozenset(match(pattern, config))

    def tap(site: str, value: Tensor) -> Tensor:
        return change(value) if site in sites else value

    return tap


def chain(*taps: Tap) -> Tap:
    """One tap that passes each value through all of them, in order."""
    active = [tap for tap in taps if tap is not untouched]
    if len(active) < 2:
        return active[0] if active else untouched

    def tap(site: str, value: Tensor) -> Tensor:
        return reduce(lambda held, each: each(site, held), active, value)

    return tap


class RouteCapture:
    """Collects which experts each token went to, with weights and margins, for batch 1.

    Costs 3 bytes per (MoE layer, slot) and 2 per MoE layer for each token: 1,560 bytes at K2 size.
    """

    def __init__(self, config: K2Config) -> None:
        self._scaling = config.routed_scaling_factor
        self._slots = config.num_experts_per_tok
        self._all_chosen = config.n_routed_experts == self._slots
        self._sees: dict[str, Callable[[Tensor], None]] = {}
        self._experts: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._choices: list[Tensor] = []
        for layer in config.moe_layers:
            router = f"layers.{layer}.mlp.router"
            self._sees[f"{router}.experts"] = self._experts.append
            self._sees[f"{router}.weights"] = self._weights.append
            self._sees[f"{router}.choice"] = self._choices.append

    def tap(self, site: str, value: Tensor) -> Tensor:
        """Watches the routers' sites."""
        see = self._sees.get(site)
        if see is not None:
            see(value)
        return value

    def take(self, start: int) -> Routed | None:
        """What was seen since the last call, for tokens from index `start`; None without MoE.

        All layers are turned into arrays at once, and the rest is NumPy: on single tokens its calls
        cost a fraction of torch's.
        """
        if not self._experts:
            return None
        experts = _by_token(self._experts)
        share = _by_token(self._weights) * np.float32(255 / self._scaling)
        weights = np.rint(np.minimum(share, 255)).astype(np.uint8)
        routed = Routed(start, experts.astype(np.uint16), weights, self._margins(experts))
        self.clear()
        return routed

    def clear(self) -> None:
        """Forget what a halted forward left behind."""
        for seen in (self._experts, self._weights, self._choices):
            seen.clear()

    def _margins(self, experts: np.ndarray) -> np.ndarray:
        if self._all_chosen:  # nobody is left out
            return np.full(experts.shape[:2], np.inf, np.float16)
        best = torch.cat(self._choices).topk(self._slots + 1, -1).values[..., -2:]
        last, next_best = best.transpose(0, 1).cpu().numpy().transpose(2, 0, 1)
        return np.minimum(last - next_best, 65504).astype(np.float16)  # float16's largest


def _by_token(layers: list[Tensor]) -> np.ndarray:
    """[1, token, slot] of each layer as one array [token, layer, slot]."""
    return torch.cat(layers).transpose(0, 1).cpu().numpy()
