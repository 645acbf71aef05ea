"""What the network did at one token, computed again from the run's ids.

For questions that are asked after the run: capturing every router score and attention weight of
every token would cost far more than the run. One forward over the prefix, without a cache, with
the run's own edits as tap. Not here: what was recorded while it ran (`trace/`).

Source: the sites in `spec/sites.py`; the rotated share follows from q·k = q_nope·k_nope +
q_rope·k_rope.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.engine.taps import chain, untouched
from k2lab.model.k2 import K2
from k2lab.spec.sites import Tap
from k2lab.tensors.rope import softmax_scale


@dataclass(frozen=True, slots=True)
class Routers:
    """All routers at one token, float32 [MoE layer, expert]."""

    scores: NDArray[np.float32]  # affinities, after the sigmoid
    choice: NDArray[np.float32]  # affinities plus bias: what decides


@dataclass(frozen=True, slots=True)
class Reading:
    """What the heads of one layer read at one token."""

    weights: NDArray[np.float32]  # [head, source], rows sum to 1
    rope: NDArray[np.float32]  # [head], the rotated part's share of |logit|, weighted by `weights`
    norm: NDArray[np.float32]  # [source], length of each cached latent


def routers(model: K2, ids: Sequence[int], tap: Tap = untouched) -> Routers:
    """Scores of all experts at the last of `ids`."""
    names = {"scores": [], "choice": []}  # type: dict[str, list[Tensor]]

    def see(site: str, value: Tensor) -> Tensor:
        _, _, last = site.rpartition(".mlp.router.")
        if last in names:
            names[last].append(value[0, -1].float())
        return value

    _forward(model, ids, chain(tap, see))
    empty = np.zeros((0, model.config.n_routed_experts), np.float32)
    scores, choice = (torch.stack(rows).cpu().numpy() if rows else empty for rows in names.values())
    return Routers(scores, choice)


def reading(model: K2, ids: Sequence[int], layer: int, tap: Tap = untouched) -> Reading:
    """Weights of all heads of `layer` at the last of `ids`, and what they are made of."""
    site, seen = f"layers.{layer}.self_attn.", {}  # type: tuple[str, dict[str, Tensor]]

    def see(name: str, value: Tensor) -> Tensor:
        if name.startswith(site):
            seen[name.removeprefix(site)] = value
        return value

    _forward(model, ids, chain(tap, see))
    weights, scores = (seen[name][0, :, -1].float() for name in ("weights", "scores"))  # [h, s]
    query, key = seen["q_rope"][0, -1].float(), seen["k_rope"][0].float()  # [h, r], [s, r]
    rotated = query @ key.T * softmax_scale(model.config)
    plain = scores - rotated
    part = (weights * rotated.abs()).sum(-1)
    whole = part + (weights * plain.abs()).sum(-1)
    norm = seen["latent"][0].float().norm(dim=-1)
    share = part / whole.clamp_min(1e-20)
    return Reading(weights.cpu().numpy(), share.cpu().numpy(), norm.cpu().numpy())


def _forward(model: K2, ids: Sequence[int], tap: Tap) -> None:
    with torch.inference_mode():
        step = model.step(len(ids), cache=None, tap=tap, form="expanded")
        model.hidden(torch.tensor([list(ids)], device=model.device), step)
