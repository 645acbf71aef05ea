"""How much of a model lies on the device, in bytes, before any byte is read.

What it is not: a planner; it takes one budget and one folder, and refuses what cannot work with the
smallest number that does.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch

from k2lab.errors import BudgetError
from k2lab.spec.config import K2Config
from k2lab.spec.costs import expert_bytes, parameters
from k2lab.weights.dense import dense_specs, width
from k2lab.weights.forms import FormName, Room, choose, slot_bytes
from k2lab.weights.residency import Lru, Policies, Policy
from k2lab.weights.resident import expands
from k2lab.weights.slab import Layout

Unit = Literal["expert", "layer"]
"""What is brought at once: one expert, or all experts of a layer."""

READERS = 4  # threads that fetch: half of them read while the others fill slots
GPU_READERS = 16  # where a copy fills a slot: from the page cache twice the rate of 4 (measured)
WIDE_LIMIT = 4 * 2**30  # bytes that all but the experts may take in float32 on a CPU


def _lru(layer: int) -> Policy:
    return Lru()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """How to offload."""

    device: torch.device
    dtype: torch.dtype
    device_budget: int  # bytes on the device, of all weights that lie there
    host_budget: int = 0  # bytes of host memory that keep experts as they are in the file
    unit: Unit = "expert"
    prefetch: bool = False
    policies: Policies = _lru
    form: FormName | None = None  # None: the one that suits
    readers: int | None = None  # threads that fetch; None: as many as suit the device

    @property
    def threads(self) -> int:
        """How many threads fetch."""
        return self.readers or (READERS if self.device.type == "cpu" else GPU_READERS)

    def form_of(self, config: K2Config) -> FormName:
        """The form that was asked for, or else the one that suits."""
        return self.form or choose(config, self.device)


class Needs(NamedTuple):
    """What a model takes on the device."""

    dense: int  # bytes of all that always lies there
    slot: int  # bytes of one expert in a slot
    staging: int  # bytes through which experts come that a CPU expands
    smallest: int  # the smallest budget that works
    most: int  # the budget from which on nothing leaves


def needs(config: K2Config, layout: Layout, offload: Offload) -> Needs:
    """What the model takes on the device with these options."""
    dense = _dense_bytes(config, offload.dtype)
    slot = slot_bytes(offload.form_of(config), config, layout, offload.dtype)
    made = offload.device.type == "cpu" and offload.form_of(config) == "expanded"
    staging = offload.threads * layout.nbytes if made else 0
    layers, every = len(config.moe_layers), config.n_routed_experts
    least = min(layers, 1) * every
    if offload.unit == "expert":
        least = layers * min(config.num_experts_per_tok, every)
    fixed = dense + staging
    return Needs(dense, slot, staging, fixed + least * slot, fixed + layers * every * slot)


@cache
def _dense_bytes(config: K2Config, dtype: torch.dtype) -> int:
    return sum(math.prod(spec.shape) * width(spec, dtype).itemsize for spec in dense_specs(config))


def divide(config: K2Config, needs: Needs, offload: Offload) -> Room:
    """How many slots the budget gives; BudgetError if they are too few."""
    budget, layers, every = offload.device_budget, len(config.moe_layers), config.n_routed_experts
    if budget < needs.smallest:
        top = config.num_experts_per_tok
        slots = f"{top} experts (those of one token) in each of {layers} layers"
        least = slots if offload.unit == "expert" else f"the {every} experts of one layer"
        reading = f"{needs.staging:,} for reading, " if needs.staging else ""
        raise BudgetError(
            f"A device budget of {budget:,} bytes.",
            expected=f"at least {needs.smallest:,}: {needs.dense:,} for all that is no routed "
            f"expert, {reading}and {least} of {needs.slot:,} each.",
            mend=f"Give device_budget={needs.smallest} or more.",
        )
    if not layers:
        return Room(0, 0)
    room = (budget - needs.dense - needs.staging) // needs.slot
    if offload.unit == "layer":
        return Room(min(layers, room // every), every)
    return Room(layers, min(every, room // layers))


def resident_bytes(config: K2Config, dtype: torch.dtype) -> int:
    """Bytes of a model on one device, its experts expanded where the resident store expands.

    A GPU that reads codes takes less for a small model, which is not worth a plan of its own.
    """
    counts = parameters(config)
    dense = (counts.total - counts.routed) * dtype.itemsize
    if config.quantization_config is None or expands(config, dtype):
        return dense + counts.routed * dtype.itemsize
    return dense + len(config.moe_layers) * config.n_routed_experts * expert_bytes(config)


def compute_dtype(config: K2Config, device: torch.device) -> torch.dtype:
    """Float32 on a CPU, where its products are faster than bfloat16 ones, and exact.

    Of a model whose dense part alone would fill a computer that way, bfloat16 there too.
    """
    counts = parameters(config)
    wide = (counts.total - counts.routed) * torch.float32.itemsize <= WIDE_LIMIT
    return torch.float32 if device.type == "cpu" and wide else torch.bfloat16
