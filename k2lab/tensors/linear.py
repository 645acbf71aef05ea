"""The two feed-forward kernels: one SwiGLU, and many expert SwiGLUs at once.

    SwiGLU(x) = W_down (silu(W_gate x) ⊙ W_up x)

Expert weights come stacked: gate_up [expert, 2·width, hidden] (gate above up) and
down [expert, hidden, width]. Rows are returned unsummed, one per (token, slot).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W_down (silu(W_gate x) ⊙ W_up x) for x [..., hidden]."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def expert_rows(
    x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor, each: Sequence[Tensor] | None = None
) -> Tensor:
    """SwiGLU_e(x) for each token's chosen experts: [token, slot, hidden], x [token, hidden].

    `ids` [token, slot] index the first axis of the stacks. One token takes its experts' weights;
    several are sorted by expert, so that each expert is one matrix product (grouped). `each` may
    be `gate_up.unbind()`, made once: for one token, cutting the stack takes as long as a product.
    """
    if ids.shape[0] != 1:
        return _grouped(x, ids, gate_up, down)
    token, chosen = x[0], ids[0]
    if x.is_cpu:  # where the weights lie, one after the other: copying them takes longer (measured)
        matrices = gate_up if each is None else each
        inner = torch.cat([torch.mv(matrices[expert], token) for expert in chosen.tolist()])
    else:  # without waiting for the ids
        inner = torch.mv(gate_up.index_select(0, chosen).flatten(0, 1), token)
    return _down(inner, chosen, down)


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
    return torch.empty_like(rows).index_copy(0, order, rows).view(tokens, slots, -1)


def _grouped_mm(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows up to `ends[e]` times weights[e]; torch 2.9 has it under its private name only."""
    grouped = getattr(F, "grouped_mm", None) or torch._grouped_mm  # noqa: SLF001
    return grouped(x, weights, offs=ends)
