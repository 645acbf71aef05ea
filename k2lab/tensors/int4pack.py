"""INT4 products on a CPU without expanding the weights: torch's own kernel and its layout.

    y = x W,  W = code · scale,  x in bfloat16, sums in float32, y in bfloat16

The kernel reads codes in an order that depends on the processor. Bringing a matrix of Kimi K2's
experts into it by torch's own way takes twelve times as long as here (for AVX2; measured), so the
order is written directly where it is the known one, which a small trial decides once.
What it is not: exact in the sense of `int4.dequantise`; activations are rounded to bfloat16.
Source: pytorch, aten/src/ATen/native/cpu/int4mm_kernel.cpp.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from k2lab.tensors.int4 import GROUP, OFFSET, unpack

BLOCK = 32  # output rows that lie interleaved in the known layout
WORD_CODES = 16  # codes in eight bytes
_LOW, _HIGH = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
_NIBBLE = np.uint64(4)


def available(rows: int, columns: int) -> bool:
    """Whether the kernel exists and takes matrices [rows, columns] in groups of 32."""
    ops = torch.ops.aten
    exists = hasattr(ops, "_weight_int4pack_mm_for_cpu")
    return exists and rows % BLOCK == 0 and columns % GROUP == 0


def pack_into(words: NDArray[np.int32], out: NDArray[np.uint8]) -> None:
    """Write the codes of checkpoint words [out, in / 8] into `out` [out · in / 2], for the kernel.

    Plain NumPy, so that threads which read from a disk do it beside the network's own threads.
    """
    if _known():
        _interleave(words, out)
        return
    nibbles = unpack(torch.from_numpy(words)).to(torch.int32) + OFFSET
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)  # noqa: SLF001
    out[:] = packed.view(torch.uint8).numpy().ravel()


def scales_into(scale: Tensor, out: Tensor) -> None:
    """Write bfloat16 scales [out, in / 32] into `out` [in / 32, out, 2]; the zero points are 0."""
    out[..., 0] = scale.T
    out[..., 1] = 0


def linear(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """y [row, out] in bfloat16 for x [row, in] in bfloat16."""
    codes = packed.view(scales.shape[1], -1)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)  # noqa: SLF001


def swiglu(x: Tensor, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> Tensor:
    """W_down (silu(W_gate x) ⊙ W_up x) in x's dtype for x [row, hidden]; (codes, scales) each."""
    gate, up = linear(x.to(torch.bfloat16), *gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, *down).to(x.dtype)


def _interleave(words: NDArray[np.int32], out: NDArray[np.uint8]) -> None:
    """Byte (block, k, i) holds the code of row i below that of row i + 16, for 32 rows a block."""
    rows, half = words.shape[0], BLOCK // 2
    columns = words.shape[1] * 8
    pairs = words.view(np.uint64).reshape(rows // BLOCK, 2, half, columns // WORD_CODES)
    target = out.reshape(rows // BLOCK, columns // 2, 2, half)  # [block, k / 2, k mod 2, i]
    for (lower, upper), place in zip(pairs, target, strict=True):  # a block fits the cache
        even = (lower & _LOW) | ((upper & _LOW) << _NIBBLE)
        odd = ((lower >> _NIBBLE) & _LOW) | (upper & _HIGH)
        place[:, 0] = even.view(np.uint8).reshape(half, -1).T
        place[:, 1] = odd.view(np.uint8).reshape(half, -1).T


@cache
def _known() -> bool:
    """Whether this processor's layout is the one that `_interleave` writes."""
    codes = torch.arange(2 * BLOCK * 64, dtype=torch.int64).mul_(2654435761).bitwise_right_shift_(7)
    nibbles = (codes & 15).to(torch.int32).view(2 * BLOCK, 64)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)  # noqa: SLF001
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    words = (nibbles.unflatten(-1, (-1, 8)) << shifts).sum(-1, dtype=torch.int32)
    trial = np.empty(nibbles.numel() // 2, np.uint8)
    _interleave(words.numpy(), trial)
    theirs = packed.view(torch.uint8).numpy().ravel()
    return theirs.size == trial.size and bool(np.array_equal(theirs, trial))
