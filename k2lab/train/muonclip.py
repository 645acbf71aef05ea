"""MuonClip: Muon for matrices, AdamW for the rest, and a clip on attention logits.

Muon keeps a momentum M, replaces it by its nearest semi-orthogonal matrix (Newton–Schulz), and
scales that to the size of an AdamW update:

    O = NS₅(G + μM) · 0.2 · √max(n, m);   W ← W − η (O + λ W)

QK-clip then looks at the largest attention logit S of each head in the step: where S > τ, with
γ = τ / S, the head's q_nope and k_nope rows shrink by √γ and its q_rope rows by γ. The rotated key
is shared by all heads and stays as it is.

Source: Kimi K2 technical report (arXiv 2507.20534); Moonlight (arXiv 2502.16982).
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from k2lab.spec.config import K2Config

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton–Schulz: fast, not exact, on purpose
ITERATIONS = 5
RMS = 0.2  # size of an AdamW update that Muon's update is matched to


class Muon:
    """Muon with Nesterov momentum over matrices; stacks of matrices are one batch each."""

    def __init__(
        self, parameters: Mapping[str, Tensor], *, momentum: float = 0.95, decay: float = 0.1
    ) -> None:
        self.parameters, self.momentum, self.decay = parameters, momentum, decay
        self.moments = {key: torch.zeros_like(value) for key, value in parameters.items()}

    def step(self, rate: float) -> None:
        """One update with learning rate `rate`, from the gradients, which are then dropped.

        Threads share small products badly: each updates parameters of its own (measured).
        """
        threads = ThreadPoolExecutor(
            torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
        )
        with threads:
            list(threads.map(partial(self._update, rate=rate), self.parameters))

    @torch.no_grad()
    def _update(self, key: str, *, rate: float) -> None:
        weight = self.parameters[key]
        gradient, weight.grad = weight.grad, None
        if gradient is None:
            return
        moment = self.moments[key]
        torch.add(gradient, moment, alpha=self.momentum, out=moment)
        direction = gradient.add(moment, alpha=self.momentum)
        # Gate and up are two matrices stacked into one: each is orthogonal on its own.
        halves = 2 if key.endswith("gate_up") else 1
        matrices = direction.unflatten(-2, (halves, -1))
        update = orthogonal(matrices).view_as(weight)
        size = RMS * math.sqrt(max(matrices.shape[-2:]))
        weight.mul_(1 - rate * self.decay).add_(update, alpha=-rate * size)

    def state_dict(self) -> dict[str, Any]:
        """What continues the run exactly."""
        return dict(self.moments)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        for key, moment in state.items():
            self.moments[key].copy_(moment)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each matrix U Σ Vᵀ in [..., n, m], by Newton–Schulz.

    The iteration runs in float32: bfloat16 products are slower on CPUs, and no less exact here.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).reshape(-1, *sorted(matrices.shape[-2:]))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):  # X ← a X + (b A + c A²) X with A = X Xᵀ
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).view(matrices.shape)


@torch.no_grad()
def qk_clip(
    parameters: Mapping[str, Tensor], largest: Mapping[int, Tensor], config: K2Config, tau: float
) -> int:
    """Shrink the heads whose largest logit (`largest[layer]`, [head]) passed τ; how many did."""
    clipped = 0
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    for layer, logits in largest.items():
        gamma = (tau / logits.clamp(min=1e-6)).clamp(max=1.0)[:, None, None]  # [h, 1, 1]
        clipped += int((gamma < 1).sum())
        prefix = f"model.layers.{layer}.self_attn"
        query = "q_proj" if config.q_lora_rank is None else "q_b_proj"
        heads = parameters[f"{prefix}.{query}.weight"].unflatten(0, (-1, nope + rope))
        heads[:, :nope] *= gamma.sqrt()
        heads[:, nope:] *= gamma
        keys = parameters[f"{prefix}.kv_b_proj.weight"].unflatten(0, (logits.numel(), -1))
        keys[:, :nope] *= gamma.sqrt()
    return clipped
