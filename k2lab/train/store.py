"""Weights that learn: the store behind the same network when it is trained.

Dense tensors are parameters under their checkpoint names; routed experts are two stacked
parameters per layer. With `quantised` on, the forward sees experts as INT4 would give them back
(quantisation-aware training), so the exported codes are what was trained.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.spec.keys import tensors
from k2lab.tensors.int4 import LEVELS, dequantise, fake_quantise, pack, quantise, unpack
from k2lab.tensors.linear import expert_rows, laid
from k2lab.weights.store import Lease, Ledger, namespace, place

BIAS = "e_score_correction_bias"


class Trainable:
    """A weight store of float32 parameters."""

    def __init__(self, config: K2Config, *, seed: int = 0) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self.quantised = False
        self.levels = LEVELS  # what a quantised forward sees: codes −levels … levels
        self._still: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, while nothing changes
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {}  # by checkpoint key; stacks: `….experts.gate_up`
        self.biases: dict[int, Tensor] = {}  # selection bias per MoE layer: set by balance, no grad
        parts: dict[tuple[int | None, str], dict[str, Tensor]] = defaultdict(dict)
        for key, shape in dense_shapes(config):
            layer, part, name = place(key)
            if name == BIAS:
                assert layer is not None
                value = self.biases[layer] = torch.zeros(shape)
            else:
                value = self.parameters[key] = _initial(shape, generator)
            parts[layer, part][name] = value
        self._leases = {where: Lease(namespace(held)) for where, held in parts.items()}
        count, hidden = config.n_routed_experts, config.hidden_size
        width = config.moe_intermediate_size
        for layer in config.moe_layers:
            gate_up, down = stack_keys(layer)
            self.parameters[gate_up] = _initial((count, 2 * width, hidden), generator)
            self.parameters[down] = _initial((count, hidden, width), generator)

    def dense(self, layer: int | None, part: str) -> Lease:
        """The parameters of one part."""
        return self._leases[layer, part]

    def experts(self, layer: int, ids: Tensor) -> "TrainableBatch":
        """All experts of the layer."""
        return TrainableBatch(*(self._still.get(layer) or self._stacks(layer)), ids)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Parameters stay as they are meanwhile: experts are rounded once, not for every token.

        No gradients reach them.
        """
        with torch.no_grad():
            self._still = {layer: self._stacks(layer) for layer in self.config.moe_layers}
        try:
            yield
        finally:
            self._still = {}

    def _stacks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Gate and up, and down, as the forward sees them."""
        gate_up, down = (self.parameters[key] for key in stack_keys(layer))
        if self.quantised:
            # Laid as in the stores that only compute: the same numbers in the same order.
            gate_up, down = (fake_quantise(each, self.levels) for each in (gate_up, down))
            return laid(gate_up), laid(down)
        return gate_up, down

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """Nothing to fetch."""

    def ledger(self) -> Ledger:
        """Nothing moves."""
        return Ledger()

    def balance(self, load: Mapping[int, Tensor], rate: float) -> tuple[float, ...]:
        """Move each selection bias by ± rate towards even load; max/mean load by layer before it.

        `load` counts tokens per expert [expert] of each MoE layer. Aux-loss-free balancing as in
        DeepSeek-V3 (arXiv 2412.19437, section 2.1.2).
        """
        found = []
        for layer, counts in load.items():
            mean = counts.float().mean()
            found.append(float(counts.max() / mean))
            self.biases[layer] += rate * torch.sign(mean - counts)
        return tuple(found)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of every parameter, for `restore`."""
        return {key: value.detach().clone() for key, value in self.parameters.items()}

    @torch.no_grad()
    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Put a snapshot back."""
        for key, value in kept.items():
            self.parameters[key].copy_(value)

    def export(self, *, rounded: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's tensors: bfloat16, selection bias float32, routed experts INT4.

        Where they are not `rounded`, routed experts are bfloat16, too.
        """
        for key, _ in dense_shapes(self.config):
            layer, _, name = place(key)
            if name == BIAS:
                assert layer is not None
                yield key, self.biases[layer].clone()
            else:
                yield key, self.parameters[key].detach().to(torch.bfloat16)
        for layer in self.config.moe_layers:
            stacks = (self.parameters[key].detach() for key in stack_keys(layer))
            for name, weight in per_expert(layer, *stacks):
                if not rounded:
                    yield f"{name}.weight", weight.to(torch.bfloat16)
                    continue
                codes, scale = quantise(weight)
                yield f"{name}.weight_packed", pack(codes)
                yield f"{name}.weight_scale", scale
                yield f"{name}.weight_shape", torch.tensor(weight.shape, dtype=torch.int32)

    @torch.no_grad()
    def adopt(self, read: Callable[[str], Tensor]) -> None:
        """Take over the tensors of an exported checkpoint; `read(key)` gives one of them."""
        for key, _ in dense_shapes(self.config):
            layer, _, name = place(key)
            if name == BIAS:
                assert layer is not None
                self.biases[layer].copy_(read(key))
            else:
                self.parameters[key].copy_(read(key))
        for layer in self.config.moe_layers:
            stacks = (self.parameters[key] for key in stack_keys(layer))
            for name, weight in per_expert(layer, *stacks):
                codes, scale = unpack(read(f"{name}.weight_packed")), read(f"{name}.weight_scale")
                weight.copy_(dequantise(codes, scale))


class TrainableBatch:
    """One layer's experts with the tokens' choices."""

    def __init__(self, gate_up: Tensor, down: Tensor, ids: Tensor) -> None:
        self.gate_up, self.down, self.ids = gate_up, down, ids

    def rows(self, x: Tensor) -> Tensor:
        """Each chosen expert's output, unsummed: [token, slot, hidden]."""
        return expert_rows(x, self.ids, self.gate_up, self.down)


def dense_shapes(config: K2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of everything but the routed experts."""
    for spec in tensors(config):
        if ".experts." not in spec.key:
            yield spec.key, spec.shape


def stack_keys(layer: int) -> tuple[str, str]:
    """Names of a layer's two expert stacks."""
    prefix = f"model.layers.{layer}.mlp.experts"
    return f"{prefix}.gate_up", f"{prefix}.down"


def per_expert(layer: int, gate_up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Checkpoint name (without leaf) and weight of each projection of each expert."""
    for expert in range(gate_up.shape[0]):
        prefix = f"model.layers.{layer}.mlp.experts.{expert}"
        gate, up = gate_up[expert].chunk(2)
        yield f"{prefix}.gate_proj", gate
        yield f"{prefix}.up_proj", up
        yield f"{prefix}.down_proj", down[expert]


def _initial(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Ones for norms; normal with variance 1 / fan-in for matrices (0.02² is too small here)."""
    if len(shape) == 1:
        return torch.ones(shape, requires_grad=True)
    value = torch.empty(shape).normal_(0, 1 / math.sqrt(shape[-1]), generator=generator)
    return value.requires_grad_()
