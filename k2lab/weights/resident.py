"""Everything on one device: the store of K2-nano on a CPU, or of a checkpoint on one large GPU.

Routed experts are stacked per layer. On a CPU quantised ones are expanded to the compute dtype
while loading, where that fits `EXPAND_LIMIT`; above it they stay packed, and the chosen experts are
expanded each time they are asked for. Both ways give the same numbers there, bit for bit. Where a
kernel reads their codes, on a GPU and for large experts, they always stay packed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from k2lab.spec.config import K2Config, Quantization
from k2lab.spec.costs import expert_parameters, parameters
from k2lab.tensors.linear import expert_rows
from k2lab.tensors.stored import gpu_kernels, leaves, raw
from k2lab.weights.dense import read_dense
from k2lab.weights.memory import together
from k2lab.weights.stacks import LARGE, Stack
from k2lab.weights.store import Lease, Ledger

EXPAND_LIMIT = 2**30  # bytes of expanded experts that are kept rather than expanded on each use

Keeping = Literal["auto", "expanded", "packed"]
"""Whether INT4 experts are held expanded or packed."""


def expands(config: K2Config, dtype: torch.dtype) -> bool:
    """Whether a CPU keeps quantised experts expanded."""
    coded = isinstance(config.quantization_config, Quantization)
    if coded and expert_parameters(config) >= LARGE:
        return False
    return parameters(config).routed * dtype.itemsize <= EXPAND_LIMIT


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
        counts = parameters(config)
        if keeping == "auto":
            apart = gpu_kernels(self.device) is not None or not expands(config, dtype)
            keeping = "packed" if apart else "expanded"
        self._experts: dict[int, Stack | tuple[Tensor, Tensor]] = {}
        # As inference tensors they carry nothing for gradients: 4 % of a token's time (measured).
        with torch.inference_mode():
            self._leases = read_dense(config, read, self.device, dtype)
            for layer in config.moe_layers:
                stack = self._read_experts(layer, read)
                packed = stack.gate_up_scale is not None and keeping == "packed"
                self._experts[layer] = stack if packed else stack.expand(dtype)
            # For a moment all of it is there twice.
            if self.device.type == "cpu" and counts.total * dtype.itemsize <= EXPAND_LIMIT:
                self._move_together()
        self._ledger = Ledger()

    def dense(self, layer: int | None, part: str) -> Lease:
        """Tensors of one part, which stay where they are."""
        return self._leases[layer, part]

    def experts(self, layer: int, ids: Tensor) -> "ResidentBatch":
        """All experts of the layer are at hand."""
        self._ledger.hits += ids.numel()
        return ResidentBatch(self._experts[layer], ids, self.config.num_experts_per_tok)

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """Nothing to fetch."""

    def ledger(self) -> Ledger:
        """Hits only: nothing ever moves."""
        return self._ledger

    def _move_together(self) -> None:
        """All weights close together in memory."""
        parts = [lease.weights.__dict__ for lease in self._leases.values()]
        stacks = {layer: each for layer, each in self._experts.items() if isinstance(each, tuple)}
        dense = [part[name] for part in parts for name in part]
        moved = iter(together([*dense, *chain.from_iterable(stacks.values())]))
        for part in parts:
            part.update({name: next(moved) for name in part})
        self._experts |= {layer: (next(moved), next(moved)) for layer in stacks}

    def _read_experts(self, layer: int, read: Callable[[str], Tensor]) -> Stack:
        prefix = f"model.layers.{layer}.mlp.experts"
        count = self.config.n_routed_experts

        def stacked(projections: tuple[str, ...], leaf: str) -> Tensor:
            """Each straight to its place: a stack made elsewhere would be copied once more."""
            names = [f"{expert}.{name}" for expert in range(count) for name in projections]
            first = raw(read(f"{prefix}.{names[0]}.{leaf}"))
            stack = first.new_empty(len(names), *first.shape, device=self.device)
            stack[0] = first
            for place, name in enumerate(names[1:], 1):
                stack[place] = raw(read(f"{prefix}.{name}.{leaf}"))
            return stack.unflatten(0, (count, -1))

        gate_up, down = ("gate_proj", "up_proj"), ("down_proj",)
        found = [
            each
            for leaf in leaves(self.config)
            for each in (stacked(gate_up, leaf), stacked(down, leaf)[:, 0])
        ]
        return Stack(*found)


@dataclass(slots=True)
class ResidentBatch:
    """The chosen experts of one layer."""

    stack: Stack | tuple[Tensor, Tensor]  # as stored, or gate_up and down expanded
    ids: Tensor  # [token, slot]
    at_once: int  # experts that may be expanded at the same time

    def rows(self, x: Tensor) -> Tensor:
        """Each chosen expert's output, unsummed: [token, slot, hidden] for x [token, hidden]."""
        if isinstance(self.stack, Stack):
            return self.stack.rows(x, self.ids, at_once=self.at_once)
        return expert_rows(x, self.ids, *self.stack)
