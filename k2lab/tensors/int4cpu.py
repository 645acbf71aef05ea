"""INT4 matrices on a CPU, read as the checkpoint packs them: one kernel, compiled by Numba.

    y[o] = Σ_g scale[o, g] · Σ_j code[o, 32 g + j] · x[32 g + j]

Codes are taken apart in registers and never written out: no expert of Kimi K2 is brought into
another order before it is used, and it takes no more memory than in the file. Sums are float32, of
sixteen lanes that are added in a fixed order, so a row has the same bits whatever is asked for
beside it and however many threads share the work.
What it is not: a kernel for more than `MANY` rows of one expert, as prompts have.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from k2lab.tensors.int4 import GROUP, OFFSET

LANES = GROUP // 2  # bytes of a group; each holds an even column's code and an odd one's
BLOCK = 4  # rows of a matrix that share the reading of x
MANY = 128  # rows from which on expanding the expert is faster (two cores, K2's width, measured)
_OFFSET = np.float32(OFFSET)


def swiglu(x: Tensor, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> Tensor:
    """W_down (silu(W_gate x) ⊙ W_up x) in x's dtype for x [row, hidden]; words and scales each."""
    gate, up = linear(x, *gate_up).chunk(2, -1)
    return linear(F.silu(gate) * up, *down).to(x.dtype)


def linear(x: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    """W x in float32, [row, out], for x [row, in], words [out, in / 8] and scale [out, in / 32].

    Matrices have four rows at least.
    """
    columns = x.float().unflatten(-1, (-1, 2)).mT.contiguous().numpy()  # [row, even or odd, in / 2]
    codes, scales = words.numpy().view(np.uint8), scale.view(torch.int16).numpy().view(np.uint16)
    y = torch.empty(len(x), len(words))
    out, blocks = y.numpy(), -(-len(words) // BLOCK)
    threads = min(torch.get_num_threads(), blocks)
    (own, *others) = pairwise(blocks * part // threads for part in range(threads + 1))
    work = partial(_products, codes, scales, columns, out)
    parts = [_helpers(threads).submit(work, *other) for other in others]
    work(*own)
    for part in parts:
        part.result()
    return y


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """Threads beside the caller's own; the kernel holds no lock of Python's."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="k2lab-int4")


# With a signature there is one compiled version, and so one order of all sums.
@njit(
    "void(uint8[:, ::1], uint16[:, ::1], float32[:, :, ::1], float32[:, ::1], intp, intp)",
    nogil=True,
    fastmath={"contract"},  # a product and a sum are rounded once, where the processor can
)
def _products(
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint16],  # bfloat16: the upper half of a float32
    columns: NDArray[np.float32],
    out: NDArray[np.float32],
    first: int,
    end: int,
) -> None:
    """Blocks `first` … `end` of rows; the last block may repeat rows of the one before it."""
    groups = scales.shape[1]
    widened = np.empty((BLOCK, groups), np.uint32)
    factors = widened.view(np.float32)
    lanes = np.empty((BLOCK, LANES), np.float32)
    for block in range(first, end):
        row = min(block * BLOCK, len(codes) - BLOCK)
        for k in range(BLOCK):
            for group in range(groups):
                widened[k, group] = np.uint32(scales[row + k, group]) << np.uint32(16)
        for request in range(len(columns)):
            even, odd = columns[request, 0], columns[request, 1]
            lanes[:] = np.float32(0)
            for group in range(groups):
                for k in range(BLOCK):
                    factor = factors[k, group]
                    for lane in range(LANES):
                        place = LANES * group + lane
                        byte = codes[row + k, place]
                        lower = np.float32(np.int32(byte & np.uint8(15))) - _OFFSET
                        upper = np.float32(np.int32(byte >> np.uint8(4))) - _OFFSET
                        lanes[k, lane] += factor * (lower * even[place] + upper * odd[place])
            for k in range(BLOCK):
                total = np.float32(0)
                for lane in range(LANES):
                    total += lanes[k, lane]
                out[request, row + k] = total
