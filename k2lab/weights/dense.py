"""Everything that is no routed expert, read onto its device: the same in every store that holds it.

FP8 matrices are expanded while they are read; they lie on the device in the compute dtype.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.spec.keys import TensorSpec, tensors
from k2lab.tensors.stored import plain, raw
from k2lab.weights.store import Lease, namespace, place

SCALE = "_scale_inv"


def dense_specs(config: K2Config) -> Iterator[TensorSpec]:
    """The tensors that lie on the device whatever the store: no routed expert, no scale."""
    for spec in tensors(config):
        if spec.part != "routed" and not spec.key.endswith(SCALE):
            yield spec


def width(spec: TensorSpec, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a dense tensor lies there: the router, which computes in float32, in that.

    Widening it for every token would cost more than its product; the selection bias stays exact.
    """
    return torch.float32 if ".mlp.gate." in spec.key else dtype


def read_dense(
    config: K2Config, read: Callable[[str], Tensor], device: torch.device, dtype: torch.dtype
) -> dict[tuple[int | None, str], Lease]:
    """A lease for each part of each layer, and (layer None) for what lies outside layers."""
    parts: dict[tuple[int | None, str], dict[str, Tensor]] = defaultdict(dict)
    for spec in dense_specs(config):
        layer, part, name = place(spec.key)
        value, wanted = read(spec.key), width(spec, dtype)
        if spec.dtype == "F8_E4M3":
            value = plain(raw(value), read(spec.key + SCALE), wanted)
        parts[layer, part][name] = value.to(device, wanted)
    return {where: Lease(namespace(held)) for where, held in parts.items()}
