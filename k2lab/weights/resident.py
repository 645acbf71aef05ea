"""Everything on one device: the store of K2-nano on a CPU, or of a checkpoint on one large GPU.

Routed experts are stacked per layer. Quantised ones are expanded to the compute dtype while
loading, where that fits `EXPAND_LIMIT`; above it they stay packed, and the chosen experts are
expanded each time they are asked for. Both ways give the same numbers, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.spec.costs import parameters
from k2lab.tensors.linear import expert_rows, laid
from k2lab.tensors.stored import leaves, plain, raw
from k2lab.weights.dense import read_dense
from k2lab.weights.store import Lease, Ledger

EXPAND_LIMIT = 2**30  # bytes of expanded experts that are kept rather than expanded on each use

Keeping = Literal["auto", "expanded", "packed"]
"""Whether INT4 experts are held expanded or packed."""


class Resident:
    """A weight store that holds all tensors on one device."""

    def __init__(
        self,
        config: K2Config,
        read: Callable[[str], Tensor],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        keeping: Keeping = "auto",
    ) -> None:
        """`read(key)` gives a checkpoint tensor; each is read once, cast and put on the device."""
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        expanded = parameters(config).routed * dtype.itemsize
        if keeping == "auto":
            keeping = "expanded" if expanded <= EXPAND_LIMIT else "packed"
        self._experts: dict[int, _Stack] = {}
        # As inference tensors they carry nothing for gradients: 4 % of a token's time (measured).
        with torch.inference_mode():
            self._leases = read_dense(config, read, self.device, dtype)
            for layer in config.moe_layers:
                stack = self._read_experts(layer, read)
                if stack.gate_up_scale is not None and keeping == "expanded":
                    stack = stack.expand(dtype)
                self._experts[layer] = stack
        self._ledger = Ledger()

    def dense(self, layer: int | None, part: str) -> Lease:
        """Tensors of one part, which stay where they are."""
        return self._leases[layer, part]

    def experts(self, layer: int, ids: Tensor) -> "ResidentBatch":
        """All experts of the layer are at hand."""
        self._ledger.hits += ids.numel()
        return ResidentBatch(self._experts[layer], ids, self.dtype)

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """Nothing to fetch."""

    def ledger(self) -> Ledger:
        """Hits only: nothing ever moves."""
        return self._ledger

    def _read_experts(self, layer: int, read: Callable[[str], Tensor]) -> "_Stack":
        prefix = f"model.layers.{layer}.mlp.experts"
        experts = range(self.config.n_routed_experts)

        def stacked(projections: tuple[str, ...], leaf: str) -> Tensor:
            per_expert = [
                torch.stack([raw(read(f"{prefix}.{each}.{name}.{leaf}")) for name in projections])
                for each in experts
            ]
            return torch.stack(per_expert).to(self.device)

        both = (("gate_proj", "up_proj"), ("down_proj",))
        found = [[stacked(names, leaf) for names in both] for leaf in leaves(self.config)]
        stack = _Stack(*found[0], *(found[1] if len(found) > 1 else ()))
        return stack if stack.gate_up_scale is not None else stack.expand(self.dtype)


@dataclass(frozen=True, slots=True)
class _Stack:
    """One layer's experts as stored: gate and up [e, 2, width, …] and down [e, 1, hidden, …].

    Without scales they are plain: gate_up [e, 2·width, hidden] and down [e, hidden, width].
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None

    def expand(self, dtype: torch.dtype) -> "_Stack":
        """The same experts in `dtype`."""
        gate_up = plain(self.gate_up, self.gate_up_scale, dtype)
        down = plain(self.down, self.down_scale, dtype)[:, 0]
        return _Stack(laid(gate_up.flatten(1, 2)), laid(down))

    def take(self, ids: Tensor) -> "_Stack":
        """Only the experts `ids`, in their order."""
        scales = (None if s is None else s[ids] for s in (self.gate_up_scale, self.down_scale))
        return _Stack(self.gate_up[ids], self.down[ids], *scales)


@dataclass(slots=True)
class ResidentBatch:
    """The chosen experts of one layer."""

    stack: _Stack
    ids: Tensor  # [token, slot]
    dtype: torch.dtype

    def rows(self, x: Tensor) -> Tensor:
        """Each chosen expert's output, unsummed: [token, slot, hidden] for x [token, hidden]."""
        stack, ids = self.stack, self.ids
        if stack.gate_up_scale is not None:
            # Expand each distinct expert once; `ids` then point into the smaller stack.
            distinct, ids = torch.unique(ids, return_inverse=True)
            stack = stack.take(distinct).expand(self.dtype)
        return expert_rows(x, ids, stack.gate_up, stack.down)
