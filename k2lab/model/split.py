"""The network over several devices: before each layer, what it needs is moved to its device.

The arithmetic is that of `model/k2.py`, unchanged.
"""

from dataclasses import replace

import torch
from torch import Tensor

from k2lab.model.k2 import K2, Block, Step
from k2lab.spec.config import K2Config
from k2lab.weights.sharded import Sharded


class Split(K2):
    """K2 over the devices of a `Sharded` store."""

    def __init__(self, config: K2Config, store: Sharded) -> None:
        super().__init__(config, store)
        self.layers = [Settled(config, layer, store) for layer in range(config.num_hidden_layers)]

    def logits(self, x: Tensor, step: Step) -> Tensor:
        """W^{head} norm(x), back on the first device."""
        return super().logits(x.to(self.device), step)


class Settled(Block):
    """A layer at home on one device."""

    def __init__(self, config: K2Config, layer: int, store: Sharded) -> None:
        super().__init__(config, layer, store)
        self.device = store.device_of(layer)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The residual stream after this layer, on its device."""
        return super().__call__(x.to(self.device), _moved(step, self.device))


def _moved(step: Step, device: torch.device) -> Step:
    """The step on another device; itself where it lies there already."""
    if step.rotation.device == device:
        return step
    mask = None if step.mask is None else step.mask.to(device)
    return replace(step, rotation=step.rotation.to(device), mask=mask)
