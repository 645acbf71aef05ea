"""INT4 weights in groups of 32 that share one scale, as `compressed-tensors` packs them.

    w[o, 32 g + j] = code[o, 32 g + j] · scale[o, g],   code ∈ −8 … 7

Layout of `pack-quantized`: along the input dimension, eight codes per int32, element i in the bits
4·(i mod 8) (lowest nibble first), stored as code + 8. K2 Thinking keeps its routed experts this way
and nothing else. Not here: which tensors are quantised (`spec/keys.py`) and reading files
(`tensors/shards.py`).

Source: vllm-project/compressed-tensors, compressors/pack_quantized/helpers.py.
"""

import torch
from torch import Tensor

from k2lab.errors import InputError

GROUP = 32  # weights sharing one scale (quantization_config group_size)
OFFSET = 8  # added to a code before it is stored, so that −8 … 7 becomes 0 … 15
LEVELS = 7  # largest code used by the quantiser: −7 … 7, the symmetric range seen in K2 Thinking
PER_WORD = 8  # nibbles in one int32


def pack(codes: Tensor) -> Tensor:
    """Int32 words [out, in / 8] from codes −8 … 7 [out, in]."""
    nibbles = (codes.to(torch.int32) + OFFSET).unflatten(-1, (-1, PER_WORD))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=codes.device)
    # Bits do not overlap, so the sum is the bitwise or; it wraps into the sign bit as wanted.
    return (nibbles << shifts).sum(-1, dtype=torch.int32)


def unpack(words: Tensor) -> Tensor:
    """Codes −8 … 7, int8 [out, in], from int32 words [out, in / 8]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    # The shift of a negative word is arithmetic; the mask takes the copied sign bits away.
    return (((words.unsqueeze(-1) >> shifts) & 0xF) - OFFSET).flatten(-2).to(torch.int8)


def quantise(weight: Tensor, levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """Codes −levels … levels, int8 [out, in], and bfloat16 scales [out, in / 32].

    The scale is the largest weight of its group over `levels`; fewer levels than 7 round coarser.
    It is rounded to bfloat16 first and the codes are chosen for the rounded scale, so that reading
    the file back loses nothing more.
    """
    if not 1 <= levels <= LEVELS:
        raise InputError(
            f"Quantisation to {levels} levels on either side of zero.",
            expected=f"1 to {LEVELS} of them: four bits hold no more.",
            mend="Give 7 for INT4, 3 for three bits or 1 for two.",
        )
    groups = weight.float().unflatten(-1, (-1, GROUP))
    scale = (groups.abs().amax(-1) / levels).to(torch.bfloat16)
    safe = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    codes = (groups / safe.unsqueeze(-1)).round().clamp(-levels, levels)
    return codes.flatten(-2).to(torch.int8), scale


def dequantise(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights [out, in] in `dtype`; the product is taken in float32 and rounded once."""
    groups = codes.float().unflatten(-1, (-1, GROUP)) * scale.float().unsqueeze(-1)
    return groups.flatten(-2).to(dtype)


def fake_quantise(weight: Tensor, levels: int = LEVELS) -> Tensor:
    """The weight as its codes give it back, with the gradient of the identity (straight-through).

    Used in training, so that the shipped codes are the weights that were trained.
    """
    with torch.no_grad():
        codes, scale = quantise(weight, levels)
        rounded = dequantise(codes, scale, weight.dtype)
    return weight + (rounded - weight).detach()
