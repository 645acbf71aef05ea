"""Rotary positions with YaRN, in the pair layout of the checkpoint.

The rope part of a query or key is read as d/2 complex numbers (adjacent pairs); position p turns
the i-th by p·ω_i. YaRN divides the slow frequencies by `factor`, leaves the fast ones, and ramps
between the two where a pair turns `beta_fast … beta_slow` times within the original context.

Source: YaRN (arXiv 2309.00071) section 3; the DeepSeek-V3 modelling code.
"""

import math

import torch
from torch import Tensor

from k2lab.spec.config import K2Config


def frequencies(config: K2Config) -> Tensor:
    """ω, radians per position, float32 [rope / 2]."""
    size, base = config.qk_rope_head_dim, config.rope_theta
    pairs = torch.arange(0, size, 2, dtype=torch.float32) / size
    raw = 1.0 / base**pairs
    scaling = config.rope_scaling
    if scaling is None:
        return raw

    def pair_turning(turns: float) -> float:
        """Index of the pair that turns `turns` times within the original context."""
        context = scaling.original_max_position_embeddings
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), size - 1)
    width = high - low if high != low else 0.001  # the reference's guard against 0 / 0
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return raw / scaling.factor * ramp + raw * (1 - ramp)


def softmax_scale(config: K2Config) -> float:
    """What attention logits are multiplied with: qk_head_dim^−½ · m²; K2 Thinking: 0.1446796258."""
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling
    if scaling is None or not scaling.mscale_all_dim:
        return scale
    return scale * _magnitude(scaling.factor, scaling.mscale_all_dim) ** 2


class Rotary:
    """Gives the rotation of each position, e^{i p ω} times YaRN's magnitude, from a table."""

    def __init__(self, config: K2Config) -> None:
        self._frequencies = frequencies(config)
        self._magnitude = rotation_magnitude(config)
        self._tables: dict[torch.device, Tensor] = {}

    def __call__(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Complex64 [token, 1, rope / 2] for the positions start … stop − 1."""
        # By the device as it is named: "cuda" is not equal to the "cuda:0" of a tensor that lies
        # there. Another thread may put another table in its place.
        table = self._tables.get(device)
        if table is None or table.shape[0] < stop:
            count = max(stop, 0 if table is None else 2 * table.shape[0])
            table = self._tables[device] = self._rotations(count, device)
        return table[start:stop]

    @torch.inference_mode(mode=False)  # the table outlives the run that made it
    def _rotations(self, count: int, device: torch.device) -> Tensor:
        positions = torch.arange(count, dtype=torch.float32)
        angles = positions[:, None] * self._frequencies
        rotations = torch.polar(torch.full_like(angles, self._magnitude), angles)
        return rotations.unsqueeze(1).to(device)


def rotation_magnitude(config: K2Config) -> float:
    """The factor on cos and sin: m(s, mscale) / m(s, mscale_all_dim), 1.0 for K2 Thinking."""
    scaling = config.rope_scaling
    if scaling is None:
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        stretched = _magnitude(scaling.factor, scaling.mscale)
        return stretched / _magnitude(scaling.factor, scaling.mscale_all_dim)
    return _magnitude(scaling.factor, 1.0)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x [..., token, head, rope] turned by `rotation` [token, 1, rope / 2], in float32.

    Comes back in x's dtype.
    """
    pairs = torch.view_as_complex(x.float().contiguous().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


def _magnitude(factor: float, coefficient: float) -> float:
    """YaRN's m(s, k) = 0.1·k·ln s + 1; 1 where nothing is stretched."""
    return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0
