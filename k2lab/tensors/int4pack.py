"""INT4 products on a CPU without expanding the weights: torch's own kernel and its layout.

    y = x W,  W = code · scale,  x in bfloat16, sums in float32, y in bfloat16

The kernel reads codes in an order that depends on the processor: blocks of 32 rows with AVX2, of
64 with AVX-512. Bringing a matrix of Kimi K2's experts into it by torch's own way takes twelve
times as long as here (AVX2, measured) and eight times the room, so the order is written directly
where it is one of the two, which a small trial decides once.
What it is not: exact in the sense of `int4.dequantise`; activations are rounded to bfloat16.
Source: pytorch, aten/src/ATen/native/cpu/int4mm_kernel.cpp.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from k2lab.tensors.int4 import GROUP, OFFSET, pack, unpack

BLOCKS = (64, 32)  # output rows that lie interleaved, in the known layouts
LEAST_BLOCK = 32  # rows of which a matrix has to be a multiple
CONVERTED = 64  # rows that torch's own way converts at once: a multiple of every block it knows
WORD_CODES = 16  # codes in eight bytes
TOGETHER = 4  # blocks of one NumPy call: with fewer, threads wait for the interpreter (measured)
_LOW, _HIGH = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
_NIBBLE = np.uint64(4)


def available(rows: int, columns: int) -> bool:
    """Whether the kernel exists and takes matrices [rows, columns] in groups of 32."""
    ops = torch.ops.aten
    exists = hasattr(ops, "_weight_int4pack_mm_for_cpu")
    return exists and rows % LEAST_BLOCK == 0 and columns % GROUP == 0


def pack_into(words: NDArray[np.int32], out: NDArray[np.uint8]) -> None:
    """Write the codes of checkpoint words [out, in / 8] into `out` [out · in / 2], for the kernel.

    Plain NumPy, so that threads which read from a disk do it beside the network's own threads.
    """
    block = _block()
    if block and words.shape[0] % block == 0:
        _interleave(words, out, block)
        return
    # Few rows at a time: each code takes four bytes on the way.
    step = CONVERTED if words.shape[0] % CONVERTED == 0 else words.shape[0]
    for lower, place in zip(
        words.reshape(-1, step, words.shape[1]),
        out.reshape(-1, words.shape[1] * step * 4),
        strict=True,
    ):
        place[:] = _converted(unpack(torch.from_numpy(lower)).to(torch.int32) + OFFSET)


def scales_into(scale: Tensor, out: Tensor) -> None:
    """Write bfloat16 scales [out, in / 32] into `out` [in / 32, out, 2]; the zero points are 0."""
    # As one number of four bytes with the scale below: written once, not twice.
    out.view(torch.int32).numpy()[..., 0] = scale.view(torch.int16).numpy().view(np.uint16).T


def linear(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """y [row, out] in bfloat16 for x [row, in] in bfloat16."""
    codes = packed.view(scales.shape[1], -1)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)  # noqa: SLF001


def swiglu(x: Tensor, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> Tensor:
    """W_down (silu(W_gate x) ⊙ W_up x) in x's dtype for x [row, hidden]; (codes, scales) each."""
    gate, up = linear(x.to(torch.bfloat16), *gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, *down).to(x.dtype)


def _converted(nibbles: Tensor) -> NDArray[np.uint8]:
    """The order that torch itself gives to codes 0 … 15, int32 [out, in]."""
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)  # noqa: SLF001
    return packed.view(torch.uint8).numpy().ravel()


def _interleave(words: NDArray[np.int32], out: NDArray[np.uint8], block: int) -> None:
    """Byte (block, k, i) holds the code of row i below that of row i + block / 2."""
    blocks, half, columns = words.shape[0] // block, block // 2, words.shape[1] * 8
    pairs = words.view(np.uint64).reshape(blocks, 2, half, columns // WORD_CODES)
    target = out.reshape(blocks, columns // 2, block)  # [block, k / 2, (k mod 2, i)]
    room = np.empty((TOGETHER, 3, half, columns // WORD_CODES), np.uint64)
    for start in range(0, blocks, TOGETHER):
        some, place = pairs[start : start + TOGETHER], target[start : start + TOGETHER]
        lower, upper = some[:, 0], some[:, 1]
        even, odd, spare = room[: len(some)].swapaxes(0, 1)
        np.left_shift(np.bitwise_and(upper, _LOW, out=even), _NIBBLE, out=even)
        np.bitwise_or(np.bitwise_and(lower, _LOW, out=spare), even, out=even)
        np.bitwise_and(np.right_shift(lower, _NIBBLE, out=odd), _LOW, out=odd)
        np.bitwise_or(np.bitwise_and(upper, _HIGH, out=spare), odd, out=odd)
        by_row = room[: len(some), :2].view(np.uint8).reshape(len(some), block, -1)
        place[:] = by_row.swapaxes(1, 2)


@cache
def _block() -> int:
    """Rows of a block of this processor's layout; 0 where `_interleave` does not write it."""
    rows, columns = 2 * max(BLOCKS), 64
    codes = torch.arange(rows * columns, dtype=torch.int64).mul_(2654435761).bitwise_right_shift_(7)
    nibbles = (codes & 15).to(torch.int32).view(rows, columns)
    theirs, words = _converted(nibbles), pack(nibbles - OFFSET).numpy()
    trial = np.empty(nibbles.numel() // 2, np.uint8)
    for block in BLOCKS:
        _interleave(words, trial, block)
        if np.array_equal(theirs, trial):
            return block
    return 0
