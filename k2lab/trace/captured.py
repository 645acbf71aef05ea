"""What a trace holds of the network's inside, where the capture level asked for it.

By name, each for some layers; `values(name, layer)` has one row per kept token:

    latent        [latent]        c^KV of the token, as cached
    key_rope      [rope]          k^R of the token, as cached
    query_latent  [head, latent]  scale · q^C W^UK: the query in the latents' space
    query_rope    [head, rope]    scale · q^R
    scores        [expert]        affinities after the sigmoid
    choice        [expert]        affinities plus bias: what decides who is chosen
    residual      [hidden]        residual stream before the layer

Numbers are the model's own: bfloat16 is kept as its bits and widened when read. Under a byte budget
the oldest tokens are given up; `first` is the first one kept. Not here: what wrote them
(`engine/capture.py`), and what follows from them (`attention.py`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import Captured
from k2lab.errors import TraceError
from k2lab.trace.table import Table

NAMES = ("latent", "key_rope", "query_latent", "query_rope", "scores", "choice", "residual")
ATTENTION = NAMES[:4]  # what attention is computed from


class CapturedValues:
    """Captured values by name and layer; empty where nothing was captured."""

    def __init__(self) -> None:
        self.heads: tuple[int, ...] = ()
        self._layers: dict[str, tuple[int, ...]] = {}
        self._table = Table.empty({})

    @classmethod
    def of(
        cls,
        arrays: dict[str, NDArray[Any]],
        *,
        layers: dict[str, tuple[int, ...]],
        heads: tuple[int, ...],
        first: int,
    ) -> "CapturedValues":
        """These arrays [token, layer, …], from the token `first` on."""
        made = cls()
        made.heads, made._layers, made._table = heads, layers, Table.of(arrays, first=first)
        return made

    def __bool__(self) -> bool:
        return bool(self._layers)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={list(layers)}" for name, layers in self._layers.items())
        return f"CapturedValues({parts or 'nothing'}, tokens={self.first}…{self.stop})"

    @property
    def names(self) -> tuple[str, ...]:
        """What was captured."""
        return tuple(self._layers)

    @property
    def first(self) -> int:
        """The first token whose values are kept."""
        return self._table.first

    @property
    def stop(self) -> int:
        """The token after the last one captured."""
        return self._table.length

    @property
    def nbytes(self) -> int:
        """Bytes of the kept values."""
        return self._table.nbytes

    def layers(self, name: str) -> tuple[int, ...]:
        """The layers for which `name` was captured; none: ()."""
        return self._layers.get(name, ())

    def raw(self, name: str) -> NDArray[Any]:
        """All layers as they are kept [token, layer, …]; bfloat16 as uint16."""
        return self._table[name]

    def values(self, name: str, layer: int) -> NDArray[np.float32]:
        """Float32 values of one layer [token − first, …]; TraceError if it was not captured."""
        layers = self.layers(name)
        if layer not in layers:
            there = f"layers {', '.join(map(str, layers))}" if layers else "no layer"
            level = LEVEL_OF.get(name, "full")
            raise TraceError(
                f"'{name}' of layer {layer} is not in this trace, which has it for {there}.",
                expected=f"one of {', '.join(NAMES)}, in a captured layer.",
                mend=f"run again with capture='{level}', or with the layer among its layers.",
            )
        return widened(self._table[name][:, layers.index(layer)])

    def append(self, event: Captured) -> None:
        """Folds in the values of the next tokens."""
        if not self._layers:
            columns = {name: (a.dtype, a.shape[1:]) for name, a in event.arrays.items()}
            self._table = Table.empty(columns, first=event.start)  # before the names tell of it
            self.heads, self._layers = event.heads, dict(event.layers)
        same = event.layers == self._layers and event.heads == self.heads
        if event.start != self.stop or not same:
            raise TraceError(
                f"Captured values from token {event.start} on, of {dict(event.layers)}.",
                expected=f"those of token {self.stop}, of {self._layers}.",
                mend="append every event of one run, once and in order, with one capture level.",
            )
        self._table.append(len(next(iter(event.arrays.values()))), **event.arrays)

    def forget(self, first: int) -> None:
        """Gives up the values of the tokens before `first`."""
        self._table.forget(first)

    def fork(self, length: int) -> "CapturedValues":
        """The values of the tokens before `length`; grows on its own."""
        made = CapturedValues()
        if self._layers and length > self.first:
            made.heads, made._layers = self.heads, dict(self._layers)
            made._table = self._table.fork(length)
        return made


LEVEL_OF = dict.fromkeys(ATTENTION, "attention") | {
    "scores": "scores",
    "choice": "scores",
    "residual": "residual",
}


def widened(values: NDArray[Any]) -> NDArray[np.float32]:
    """Float32; uint16 are the bits of bfloat16, the upper half of a float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
