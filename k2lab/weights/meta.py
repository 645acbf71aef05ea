"""A store of shapes without numbers: the whole network on torch's meta device.

Answers what a config costs before anything is fetched: `Meta(K2_THINKING)` builds in seconds on any
machine, counts parameters and bytes, and a forward through it proves that all shapes fit together.
What it is not: it computes no value, and which experts a token chooses is a value.
Source: `spec/keys.py` for the shapes.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from k2lab.spec.config import DTYPES, K2Config
from k2lab.spec.costs import expert_bytes, expert_parameters
from k2lab.spec.keys import TensorSpec, tensors
from k2lab.tensors.shards import TORCH_NAMES
from k2lab.weights.dense import SCALE
from k2lab.weights.store import Lease, Ledger, namespace, place

META = torch.device("meta")


class Meta:
    """A weight store that holds shapes only.

    Its ledger's `bytes_moved` counts the bytes that were asked for, by part of the network
    (`self_attn`, `mlp.experts`, …), as a store that holds nothing would have to move them.
    """

    def __init__(self, config: K2Config) -> None:
        """Shapes of every tensor that the config implies."""
        self.config, self.device = config, META
        self.parameters = 0  # INT4 codes count one each; scales and shapes do not count
        self.nbytes = 0  # of all tensors on disk, headers not counted
        held: dict[tuple[int | None, str], dict[str, TensorSpec]] = defaultdict(dict)
        for spec in tensors(config):
            self.nbytes += spec.nbytes
            if spec.part != "routed":
                layer, part, name = place(spec.key)
                held[layer, part][name] = spec
        self._leases: dict[tuple[int | None, str], Lease] = {}
        self._bytes: dict[tuple[int | None, str], int] = {}
        plain = DTYPES[config.dtype]  # in which what is coded is lent
        for where, specs in held.items():
            blank = {
                name: _blank(replace(spec, dtype=plain) if spec.dtype == "F8_E4M3" else spec)
                for name, spec in specs.items()
                if not name.endswith(SCALE)
            }
            self.parameters += sum(tensor.numel() for tensor in blank.values())
            self._leases[where] = Lease(namespace(blank))
            self._bytes[where] = sum(spec.nbytes for spec in specs.values())
        self._bytes |= {(layer, "mlp.experts"): expert_bytes(config) for layer in config.moe_layers}
        experts = len(config.moe_layers) * config.n_routed_experts
        self.parameters += experts * expert_parameters(config)
        self._ledger = Ledger()

    def dense(self, layer: int | None, part: str) -> Lease:
        """Blank tensors of one part."""
        self._ask(part, self._bytes[layer, part])
        return self._leases[layer, part]

    def experts(self, layer: int, ids: Tensor) -> "MetaBatch":
        """A batch whose rows have the right shape.

        Ids have no values here, so the bytes are those of the most distinct experts there can be.
        """
        distinct = min(ids.numel(), self.config.n_routed_experts)
        self._ledger.misses += ids.numel()
        self._ask("mlp.experts", distinct * self._bytes[layer, "mlp.experts"])
        return MetaBatch(ids)

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """Nothing to fetch."""

    def ledger(self) -> Ledger:
        """The bytes asked for so far, by part."""
        return self._ledger

    def _ask(self, part: str, count: int) -> None:
        moved = self._ledger.bytes_moved
        moved[part] = moved.get(part, 0) + count


@dataclass(frozen=True, slots=True)
class MetaBatch:
    """The chosen experts of one layer, as shapes."""

    ids: Tensor  # [token, slot]

    def rows(self, x: Tensor) -> Tensor:
        """Blank rows [token, slot, hidden] for x [token, hidden]."""
        tokens, slots = self.ids.shape
        return x.new_empty(tokens, slots, x.shape[-1])


def _blank(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=getattr(torch, TORCH_NAMES[spec.dtype]), device=META)
