"""The two feed-forward kernels: one SwiGLU, and many expert SwiGLUs at once.

    SwiGLU(x) = W_down (silu(W_gate x) ⊙ W_up x)

Expert weights come stacked: gate_up [expert, 2·width, hidden] (gate above up) and
down [expert, hidden, width]. Rows are returned unsummed, one per (token, slot).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
SMALL = 2**16  # numbers of a matrix that is small: it and its peers fit a processor's cache


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """W x for x [..., in].

    One row in bfloat16 on a CPU waits for the matrix to come from memory, and torch's product of a
    matrix and a vector reads it up to three times as fast as its product of matrices (measured);
    both sum in float32.
    """
    if weight.dtype is torch.bfloat16 and weight.is_cpu and x.numel() == weight.shape[1]:
        return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)
    return F.linear(x, weight)


def linear_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """W_h x_h for x [head, token, in] and weight [head, out, in]: [head, token, out].

    In bfloat16 on a CPU matrices times columns take a quarter of the time of rows times transposed
    matrices (measured), and give the same bits.
    """
    if x.dtype is torch.bfloat16 and x.is_cpu:
        return torch.bmm(weight, x.mT).mT
    return torch.bmm(x, weight.mT)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W_down (silu(W_gate x) ⊙ W_up x) for x [..., hidden]."""
    return linear(F.silu(linear(x, gate)) * linear(x, up), down)


def expert_rows(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU_e(x) for each token's chosen experts: [token, slot, hidden], x [token, hidden].

    `ids` [token, slot] index the first axis of the stacks. Several tokens are sorted by expert, so
    that each expert is one matrix product (grouped); one token takes its experts' weights. How the
    stacks lie decides how: see `laid`.
    """
    if ids.shape[0] != 1:
        return _grouped(x, ids, gate_up, down)
    if gate_up.stride(1) == 1 and not (x.requires_grad or gate_up.requires_grad):
        (chosen,) = ids.tolist()
        rows = _expert_row(x.numpy()[0], chosen, gate_up.numpy(), down.numpy())
        return torch.from_numpy(rows[None])
    token, asked = x[0], ids[0]
    if x.is_cpu:  # where the weights lie, one after the other: copying them takes longer (measured)
        inner = torch.cat([torch.mv(gate_up[expert], token) for expert in asked.tolist()])
    else:  # without waiting for the ids
        inner = torch.mv(gate_up.index_select(0, asked).flatten(0, 1), token)
    return _down(inner, asked, down)


def laid(weights: Tensor) -> Tensor:
    """The stack [expert, out, in], lying in memory as `expert_rows` reads it fastest.

    Small float32 matrices on a CPU lie as [expert, in, out]; others stay as they are.
    """
    small = weights.shape[-2] * weights.shape[-1] <= SMALL
    if weights.is_cpu and weights.dtype == torch.float32 and small:
        return weights.mT.contiguous().mT
    return weights


def _expert_row(x: Array, ids: Sequence[int], gate_up: Array, down: Array) -> Array:
    """SwiGLU_e(x) for each of the experts, [slot, hidden], in NumPy: its calls cost the least."""
    inner = np.empty((len(ids), gate_up.shape[1]), np.float32)
    for slot, expert in enumerate(ids):
        gate_up[expert].dot(x, inner[slot])
    width = down.shape[2]
    with np.errstate(over="ignore"):  # far below zero σ is zero
        inner = silu(inner[:, :width]) * inner[:, width:]  # gate and up
    rows = np.empty((len(ids), down.shape[1]), np.float32)
    for slot, expert in enumerate(ids):
        down[expert].dot(inner[slot], rows[slot])
    return rows


def silu(x: Array) -> Array:
    """x · σ(x)."""
    return x / (1 + np.exp(-x))


def _down(inner: Tensor, ids: Tensor, down: Tensor) -> Tensor:
    """W_down (silu(gate) ⊙ up) for inner [slot · 2·width]: [1, slot, hidden]."""
    gate, up = inner.view(len(ids), 2, 1, -1).unbind(1)  # [slot, 1, width]
    # index_select, not down[ids]: advanced indexing is four times slower here (measured).
    # Row times matrix: as matrix times column the same product is five times slower (measured).
    return torch.bmm(F.silu(gate) * up, down.index_select(0, ids).mT).transpose(0, 1)


def _grouped(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    tokens, slots = ids.shape
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)  # pairs sorted by expert
    ends = torch.bincount(flat, minlength=gate_up.shape[0]).cumsum(0).to(torch.int32)
    # The transposed view of [expert, out, in] is the fast layout of grouped_mm on CPU (measured).
    sorted_x = x.index_select(0, order // slots)  # [pair, hidden]
    inner = _grouped_mm(sorted_x, gate_up.transpose(1, 2), ends)  # [pair, 2·width]
    gate, up = inner.chunk(2, dim=-1)
    rows = _grouped_mm(F.silu(gate) * up, down.transpose(1, 2), ends)  # [pair, hidden]
    return torch.empty_like(rows).index_copy_(0, order, rows).view(tokens, slots, -1)


def _grouped_mm(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows up to `ends[e]` times weights[e]; torch 2.9 has it under its private name only."""
    grouped = getattr(F, "grouped_mm", None) or torch._grouped_mm  # noqa: SLF001
    return grouped(x, weights, offs=ends)
