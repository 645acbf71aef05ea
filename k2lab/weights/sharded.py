"""Layers split over devices: each holds a run of layers whole, and the hidden state hops.

Embedding, last norm and head lie on the first device, where ids go in and logits come out; that
device gets fewer layers for it. What hops is one vector a token and device (14 KB at K2 size); the
cache of a layer lies where its layer lies. The hop itself is `model/split.py`.
What it is not: tensor parallelism; one device computes at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from k2lab.errors import InputError
from k2lab.spec.config import K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.spec.keys import layer_tensors
from k2lab.weights.resident import Resident
from k2lab.weights.store import ExpertBatch, Lease, Ledger


class Sharded:
    """A weight store of one resident store per device."""

    def __init__(
        self,
        config: K2Config,
        read: Callable[[str], Tensor],
        *,
        devices: Sequence[torch.device | str],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`read(key)` gives a checkpoint tensor; the layers are split by their bytes."""
        self.config, self.dtype = config, dtype
        self.devices = tuple(torch.device(each) for each in devices)
        self.device = self.devices[0]
        self.ranges = split(config, len(self.devices))
        self._stores = [
            Resident(
                _part(config, layers), _shifted(read, layers.start), device=device, dtype=dtype
            )
            for layers, device in zip(self.ranges, self.devices, strict=True)
        ]
        self._places = {
            layer: (store, layer - layers.start)
            for layers, store in zip(self.ranges, self._stores, strict=True)
            for layer in layers
        }

    def device_of(self, layer: int) -> torch.device:
        """Where a layer lies."""
        return self._places[layer][0].device

    def dense(self, layer: int | None, part: str) -> Lease:
        """Tensors of one part, on the device of their layer."""
        if layer is None:
            return self._stores[0].dense(None, part)
        store, local = self._places[layer]
        return store.dense(local, part)

    def experts(self, layer: int, ids: Tensor) -> ExpertBatch:
        """All experts of the layer are at hand, on its device."""
        store, local = self._places[layer]
        return store.experts(local, ids)

    def hint(self, layer: int, ids: Tensor, confidence: float) -> None:
        """Nothing to fetch."""

    def ledger(self) -> Ledger:
        """Hits of all devices: nothing ever moves but the hidden state."""
        return Ledger(hits=sum(store.ledger().hits for store in self._stores))


def split(config: K2Config, devices: int) -> tuple[range, ...]:
    """The layers of each device, so that the largest share of bytes is as small as can be.

    >>> from k2lab.spec.config import K2_THINKING
    >>> [len(layers) for layers in split(K2_THINKING, 8)]
    [8, 8, 8, 8, 8, 8, 8, 5]
    """
    if not 1 <= devices <= config.num_hidden_layers:
        raise InputError(
            f"{devices} devices for {config.num_hidden_layers} layers.",
            expected="at least one device, and one layer for each.",
            mend="Name fewer devices.",
        )
    costs, whole = _costs(config)
    low, high = max(costs), whole + sum(costs)
    while low < high:  # the smallest share that is enough for every device
        middle = (low + high) // 2
        if _fill(costs, whole, middle, devices) is None:
            low = middle + 1
        else:
            high = middle
    found = _fill(costs, whole, low, devices)
    assert found is not None, "one device could hold all"
    return found


def shares(config: K2Config, devices: int) -> tuple[int, ...]:
    """Bytes in the files of what each device holds."""
    costs, whole = _costs(config)
    runs = [sum(costs[layers.start : layers.stop]) for layers in split(config, devices)]
    return (runs[0] + whole, *runs[1:])


@cache
def _costs(config: K2Config) -> tuple[tuple[int, ...], int]:
    """Bytes of each layer, and of what lies outside layers."""
    # Two sizes of layers only: those with experts, and the dense ones before them.
    sizes: dict[bool, int] = {}
    costs = []
    for layer in range(config.num_hidden_layers):
        moe = config.is_moe(layer)
        if moe not in sizes:
            sizes[moe] = sum(spec.nbytes for spec in layer_tensors(config, layer))
        costs.append(sizes[moe])
    return tuple(costs), bytes_on_disk(config) - sum(costs)


def _fill(costs: Sequence[int], first: int, share: int, devices: int) -> tuple[range, ...] | None:
    """Runs of layers of at most `share` bytes, none empty; None if they do not hold all layers."""
    runs, layer = [], 0
    for device in range(devices):
        start, left = layer, share - (first if device == 0 else 0)
        last = len(costs) - (devices - device - 1)  # those after this one need a layer each
        while layer < last and costs[layer] <= left:
            left -= costs[layer]
            layer += 1
        if layer == start:
            return None
        runs.append(range(start, layer))
    return tuple(runs) if layer == len(costs) else None


def _part(config: K2Config, layers: range) -> K2Config:
    """The config of these layers alone, counted from 0."""
    dense = min(max(config.first_k_dense_replace - layers.start, 0), len(layers))
    return replace(config, num_hidden_layers=len(layers), first_k_dense_replace=dense)


def _shifted(read: Callable[[str], Tensor], start: int) -> Callable[[str], Tensor]:
    """Reads a layer under its number from `start` on; what is outside layers only for the first."""

    def read_part(key: str) -> Tensor:
        prefix, layers, rest = key.partition("model.layers.")
        if not layers:
            return read(key) if start == 0 else torch.empty(0)
        number, _, name = rest.partition(".")
        return read(f"{prefix}{layers}{int(number) + start}.{name}")

    return read_part
