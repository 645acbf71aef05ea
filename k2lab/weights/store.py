"""The protocol between the network and its weights: the model asks, a store answers.

The network in `model/k2.py` owns no weights. It asks for the dense tensors of one part of one
layer, and for a batch of routed experts. A store decides where they lie. Stores differ in place,
never in numbers: all compute routed experts with `expert_rows`, which returns *unsummed* rows, and
the model sums them in a fixed order.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Weights = Any
"""Tensors of one part as attributes named like the checkpoint, e.g. `w.q_a_proj` (a `Part`)."""


@dataclass(slots=True)
class Ledger:
    """What a store moved and how long the model waited for it."""

    hits: int = 0  # expert requests served from the compute device
    misses: int = 0  # expert requests that had to wait for a copy
    bytes_moved: dict[str, int] = field(default_factory=dict)  # by link, e.g. "disk→host"
    stall_seconds: float = 0.0
    wasted_bytes: int = 0  # prefetched and never used
    prefetched_bytes: int = 0  # prefetched at all, the wasted ones among them


@dataclass(frozen=True, slots=True)
class Moves:
    """What a store moved in one forward, by the place of the layer among the MoE layers."""

    hits: tuple[int, ...]  # per MoE layer, requests served from a slot
    misses: tuple[int, ...]  # per MoE layer, experts that had to be brought
    stall_seconds: tuple[float, ...]  # per MoE layer, how long the model waited
    loads: tuple[tuple[int, int, int, int], ...]  # (MoE layer, slot, expert, evicted or −1)
    bytes_moved: dict[str, int]  # by link, prefetched ones included


@runtime_checkable
class Mover(Protocol):
    """A store that moves experts while the network runs, and can tell what it moved."""

    @property
    def slots(self) -> int:
        """Slots per MoE layer."""
        ...

    def take_moves(self) -> Moves:
        """What was moved since the last call."""
        ...


class ExpertBatch(Protocol):
    """The routed experts that one MoE layer needs for one batch of tokens."""

    def rows(self, x: Tensor) -> Tensor:
        """Each chosen expert's output, unsummed: [token, slot, hidden] for x [token, hidden]."""
        ...


@runtime_checkable
class WeightStore(Protocol):
    """Where weights live."""

    @property
    def device(self) -> torch.device:
        """Where token ids go in and logits come out."""
        ...

    def dense(self, layer: int | None, part: str) -> "Lease":
        """The tensors of one part (`self_attn`, `mlp`, `mlp.gate`, …); None: outside layers."""
        ...

    def experts(self, layer: int, ids: Tensor) -> ExpertBatch:
        """The experts that `ids` [token, slot] name, ready to compute."""
        ...

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """These experts may be wanted soon; a store may fetch them or ignore this."""
        ...

    def ledger(self) -> Ledger:
        """What happened so far."""
        ...


class Lease:
    """Tensors lent for the time of a `with` block; this one holds what needs no giving back."""

    __slots__ = ("weights",)

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def __enter__(self) -> Weights:
        return self.weights

    def __exit__(self, *_: object) -> None:
        return None


class Part(SimpleNamespace):
    """The tensors of one part."""

    __slots__ = ("mark",)  # not among its `vars`, which are the tensors
    mark: object
    """Another object after each assignment: whoever keeps what a tensor gave knows by it."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__(**tensors)
        super().__setattr__("mark", object())

    def __setattr__(self, name: str, value: Tensor) -> None:
        super().__setattr__(name, value)
        super().__setattr__("mark", object())

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        super().__setattr__("mark", object())


def namespace(tensors: dict[str, Tensor]) -> Weights:
    """Attributes from checkpoint names relative to a part: `q_a_proj.weight` → `.q_a_proj`."""
    return Part(**{name.removesuffix(".weight"): each for name, each in tensors.items()})


def place(key: str) -> tuple[int | None, str, str]:
    """Layer, part and name within the part of a dense checkpoint key.

    >>> place("model.layers.3.mlp.shared_experts.up_proj.weight")
    (3, 'mlp.shared_experts', 'up_proj.weight')
    >>> place("model.norm.weight")
    (None, 'norm', 'norm.weight')
    """
    name = key.removeprefix("model.")
    if not name.startswith("layers."):
        return None, name.split(".")[0], name
    _, layer, name = name.split(".", 2)
    for part in ("self_attn", "mlp.shared_experts", "mlp.gate", "mlp"):
        if name.startswith(f"{part}."):
            return int(layer), part, name.removeprefix(f"{part}.")
    return int(layer), "norms", name
