"""The routed experts of one layer, one above the other as the checkpoint stores them.

Whoever holds experts in their stored form computes with them here, so that a row has the same bits
wherever its expert lies. INT4 codes are read where they are: by a GPU if few rows are asked for, by
a CPU if experts are large and none has many rows. In all other cases the chosen experts are
expanded first, some at a time.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from k2lab.tensors.int4 import PER_WORD
from k2lab.tensors.linear import expert_rows, laid, swiglu
from k2lab.tensors.stored import gpu_kernels, plain
from k2lab.weights.slab import Layout

LARGE = 2**18  # weights of an expert whose codes a CPU reads; smaller ones it keeps expanded


@dataclass(frozen=True, slots=True)
class Stack:
    """Gate and up [e, 2, width, …] and down [e, hidden, …]; the scales of coded ones likewise."""

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None

    @classmethod
    def of(cls, slabs: Tensor, layout: Layout) -> Self:
        """The experts in slabs, uint8 [e, nbytes], where they lie."""
        both = ((layout.gate_up(slabs, leaf), layout.down(slabs, leaf)) for leaf in layout.leaves)
        return cls(*(each for pair in both for each in pair))

    @property
    def apart(self) -> bool:
        """Whether one expert after the other is computed, from its codes."""
        weights = PER_WORD * (self.gate_up[0].numel() + self.down[0].numel())
        scale = self.down_scale
        # The kernel reads the scales of INT4 codes as bfloat16, which other dtypes are not.
        coded = scale is not None and scale.dtype == torch.bfloat16
        return coded and self.gate_up.is_cpu and weights >= LARGE

    def take(self, ids: Tensor) -> "Stack":
        """Only the experts `ids`, in their order."""
        scales = (None if s is None else s[ids] for s in (self.gate_up_scale, self.down_scale))
        return Stack(self.gate_up[ids], self.down[ids], *scales)

    def expand(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Plain stacks gate_up [e, 2·width, hidden] and down [e, hidden, width]."""
        gate_up = plain(self.gate_up, self.gate_up_scale, dtype)
        return laid(gate_up.flatten(1, 2)), laid(plain(self.down, self.down_scale, dtype))

    def rows(self, x: Tensor, places: Tensor, *, at_once: int, out: Tensor | None = None) -> Tensor:
        """SwiGLU_e(x) of each request, [token, slot, hidden], for x [token, hidden].

        `places` [token, slot] index the stack; −1 is not here, and its row stays as it is in `out`,
        or undefined. No more than `at_once` experts are expanded at the same time.
        """
        if self.apart:
            return self._rows_apart(x, places, out)
        kernels = gpu_kernels(x.device) if self.gate_up.dtype == torch.int32 else None
        if kernels is not None and places.numel() <= kernels.FEW:
            assert self.gate_up_scale is not None, "words have scales"
            gate_up = self.gate_up.flatten(1, 2), self.gate_up_scale.flatten(1, 2)
            found: Tensor = kernels.swiglu_rows(x, places, gate_up, (self.down, self.down_scale))
            return found if out is None else torch.where((places >= 0)[..., None], found, out)
        used = torch.unique(places)  # rising: each store expands the same experts in one order
        for some in used[used >= 0].split(at_once):
            local = places.new_full((len(self.gate_up) + 1,), -1)
            local[some] = torch.arange(len(some), device=places.device)
            # −1 finds the last one, which is −1.
            out = subset_rows(x, local[places], self.take(some).expand(x.dtype), out)
        assert out is not None, "asked for no expert"
        return out

    def _rows_apart(self, x: Tensor, places: Tensor, out: Tensor | None) -> Tensor:
        from k2lab.tensors import int4cpu  # brings a compiler, which K2-nano never needs

        assert self.gate_up_scale is not None, "words have scales"
        assert self.down_scale is not None, "words have scales"
        if out is None:
            out = x.new_empty(*places.shape, x.shape[-1])
        used = torch.unique(places)
        for place in used[used >= 0]:
            tokens, requests = (places == place).nonzero(as_tuple=True)
            if len(tokens) > int4cpu.MANY:
                gate_up, down = self.take(place[None]).expand(x.dtype)
                gate, up = gate_up[0].chunk(2)
                rows = swiglu(x[tokens], gate, up, down[0])
            else:
                both = self.gate_up[place].flatten(0, 1), self.gate_up_scale[place].flatten(0, 1)
                rows = int4cpu.swiglu(x[tokens], both, (self.down[place], self.down_scale[place]))
            out[tokens, requests] = rows
        return out


def subset_rows(
    x: Tensor, places: Tensor, stack: tuple[Tensor, Tensor], out: Tensor | None
) -> Tensor:
    """Rows of the requests whose place in the stack is known (−1: not here), [token, slot, …].

    Whole requests go to the kernel as they are. Others go one by one, grouped by expert as the
    whole would be, so that each row is the same bits as in one piece.
    """
    here = places >= 0
    if out is None:
        if bool(here.all()):
            return expert_rows(x, places, *stack)
        out = x.new_empty(*places.shape, x.shape[-1])
    tokens, requests = here.nonzero(as_tuple=True)
    picked = places[here]
    if len(picked) == 1:
        # A single request would take the kernel for single tokens: a second one, whose row is
        # thrown away, keeps it grouped. It needs a group of its own.
        if len(stack[0]) == 1:
            stack = laid(torch.cat([stack[0]] * 2)), laid(torch.cat([stack[1]] * 2))
        pair = torch.cat([picked, (picked + 1) % len(stack[0])])
        rows = expert_rows(x[tokens.repeat(2)], pair[:, None], *stack)[:1]
    elif len(picked):
        rows = expert_rows(x[tokens], picked[:, None], *stack)
    else:
        return out
    out[tokens, requests] = rows[:, 0]
    return out
