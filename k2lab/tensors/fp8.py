"""FP8 weights (e4m3) in blocks of 128 × 128 that share one float32 scale.

    w[o, i] = code[o, i] · scale[⌊o / 128⌋, ⌊i / 128⌋]

Kimi K2 Instruct and DeepSeek-V3 store every linear layer but router and head this way; the scale is
the tensor `weight_scale_inv`, which despite its name multiplies. Blocks at the edges may be cut
off. Not here: arithmetic in FP8; weights are widened first. Source: DeepSeek-V3,
inference/fp8_cast_bf16.py.
"""

import torch
from torch import Tensor

BLOCK = 128  # rows and columns that share a scale
LARGEST = 448.0  # of e4m3
CODE = torch.float8_e4m3fn


def dequantise(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights [..., out, in] in `dtype`; the product is taken in float32 and rounded once.

    `codes` in FP8, or its bytes as uint8, [..., out, in]; scale [..., ⌈out / 128⌉, ⌈in / 128⌉].
    """
    rows, columns = codes.shape[-2:]
    wide = scale.repeat_interleave(BLOCK, -1)[..., :columns]
    wide = wide.repeat_interleave(BLOCK, -2)[..., :rows, :]
    return wide.mul_(codes.view(CODE).float()).to(dtype)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 codes [out, in] and float32 scales, the largest of a block at the end of the range."""
    rows, columns = weight.shape
    up, across = -rows % BLOCK, -columns % BLOCK
    whole = torch.nn.functional.pad(weight.float(), (0, across, 0, up))
    blocks = whole.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # [O, 128, I, 128]
    scale = blocks.abs().amax((1, 3)) / LARGEST
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (blocks / safe[:, None, :, None]).flatten(2).flatten(0, 1)
    return codes[:rows, :columns].contiguous().to(CODE), scale
