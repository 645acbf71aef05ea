"""Short ways into the network for lessons: values at sites, logits, and how far two lie apart."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from k2lab.engine.taps import untouched, watch

if TYPE_CHECKING:
    from k2lab.lab import Lab
    from k2lab.model.k2 import Form
    from k2lab.spec.sites import Tap


def look(lab: "Lab", ids: Tensor, pattern: str) -> dict[str, Tensor]:
    """Values at the sites that match, by site name, each [token, …], for ids [1, token]."""
    seen: dict[str, Tensor] = {}

    def see(site: str, value: Tensor) -> None:
        seen[site] = value[0].clone()

    forward(lab, ids, tap=watch(pattern, lab.config, see))
    return seen


def forward(
    lab: "Lab", ids: Tensor, *, tap: "Tap" = untouched, form: "Form" = "expanded"
) -> Tensor:
    """Logits of the token after each [token, vocab], for ids [1, token], without a cache."""
    with torch.inference_mode():
        step = lab.model.step(ids.shape[1], cache=None, tap=tap, form=form)
        return lab.model(ids, step)[0].float()


def divergence(plain: Tensor, other: Tensor) -> float:
    """Mean Kullback–Leibler divergence in nats of next-token probabilities, from logits."""
    p, q = plain.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
