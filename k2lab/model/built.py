"""Whether a network is what `k2.py` builds from its config, and stays so from token to token.

`single.py` computes that network and no other one. Somebody may at any time put another number,
part, function or weight into theirs, which `k2.py` obeys: from then on it alone may compute. A
picture of a network is judged in full once a run. Before each token it is compared with what has
been assigned since, to the parts and the weights; and when a while has passed, so before the first
token after a pause, with everything: methods, numbers changed in place, where a weight lies.

What is followed, not refused: other weights in float32 on the CPU, experts and taps, for which both
ask in the same way. What is not seen: other functions within torch, and a weight that is turned
where it lies (`t_`) while a run is under way.
"""

import copy
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from operator import getitem, is_, itemgetter
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2, MLA, Block, Dense, MoE, RMSNorm, Router
from k2lab.spec.config import K2Config
from k2lab.tensors.rope import Rotary
from k2lab.weights.store import Lease, Part

AGAIN = 0.05  # seconds after which everything is compared: 0.2 ms, since it has left the caches
OWN = (K2, Block, MLA, MoE, Dense, Router, RMSNorm)
Where = tuple[int | None, str]
"""Layer (None: outside layers) and part, as a store is asked for them."""

_CLASSES = (*OWN, LatentCache, Rotary)
_METHODS = [vars(each) for each in _CLASSES]
_WRITTEN = [dict(each) for each in _METHODS]
_K2 = vars(sys.modules[K2.__module__])
_named = itemgetter(*(name for name in _K2 if not name.startswith("__")))
_NAMES = _named(_K2)


def _functions() -> Iterator[tuple[str, Any]]:
    """What of this package the network calls, by the names under which it was written."""
    for name in ("linear", "linear_by_head", "rotate", "swiglu"):
        yield name, _K2[name]
    for each, methods in zip((*OWN, LatentCache), _WRITTEN, strict=False):
        for name, value in methods.items():
            if callable(value):
                yield f"{each.__name__}.{name}", value


def _original(name: str, function: Any) -> bool:
    """Whether nobody had put another one there before this file was imported."""
    if not isinstance(function, FunctionType) or function.__qualname__ != name:
        return False
    package = Path(_K2["__file__"]).parents[1]
    return Path(function.__code__.co_filename).is_relative_to(package)


_ORIGINAL = all(_original(name, function) for name, function in _functions())
_FUNCTIONS = [each for _, each in _functions() if isinstance(each, FunctionType)]
_CODES = [function.__code__ for function in _FUNCTIONS]


def _untouched() -> bool:
    """Whether the network would run what was written for it, in the dtypes that it asks for."""
    return bool(
        _ORIGINAL
        and _METHODS == _WRITTEN
        and _named(_K2) == _NAMES
        and [function.__code__ for function in _FUNCTIONS] == _CODES  # autoreload swaps these
        and not torch.is_autocast_enabled("cpu")
    )


@lru_cache(maxsize=4)
def _built(config: K2Config) -> K2:
    """The network of this shape as it leaves `k2.py`, over no weights."""
    nowhere: Any = None
    return K2(config, nowhere)


class Picture:
    """What a network was made of at one moment, and its dense weights as NumPy sees them."""

    def __init__(self, model: K2) -> None:
        self._model, self._config = model, copy.copy(model.config)
        self._parts, self._others = _Attributes(), _Attributes()
        self._numbers: list[tuple[dict[str, Any], str]] = []  # tensors of parts, by attribute,
        self._views: list[NDArray[Any]] = []  # where they lie,
        self._bytes: list[bytes] = []  # and what they held
        self._tensors: list[Tensor] = []  # these, then the weights
        self._marks: list[object] = []  # of the weights
        self.arrays: dict[Where, SimpleNamespace] = {}
        """Weights by attribute, in the memory of the tensors; complete where it is plain."""
        self.plain = (
            type(model) is K2
            and type(model.config) is K2Config
            and model.device.type == "cpu"
            and _untouched()
            and self._alike(model, _built(model.config))
            and all(map(self._lent, _asked(model.config)))
        )
        """Whether it was the network of `k2.py`, in float32 on a CPU."""
        self._asked = tuple(zip(*self.arrays, strict=True))  # layers, parts
        self._named = tuple(zip(*self._numbers, strict=True))  # attributes, names
        self._places = list(map(Tensor.data_ptr, self._tensors)) if self.plain else []
        self._lately = time.perf_counter()

    def holds(self) -> bool:
        """Whether a network that was plain is made of the same things still."""
        model, now = self._model, time.perf_counter()
        try:
            marks = [lease.weights.mark for lease in map(model.store.dense, *self._asked)]
            if marks != self._marks or self._parts.live != self._parts.seen:
                return False
            if now < self._lately + AGAIN:
                return True
            self._lately = now
            return bool(
                self._others.live == self._others.seen
                # A number may have given way to an equal one, which may change in its turn.
                and all(map(is_, map(getitem, *self._named), self._tensors))
                and list(map(Tensor.data_ptr, self._tensors)) == self._places
                and [view.tobytes() for view in self._views] == self._bytes
                and model.config == self._config
                and _untouched()
            )
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False  # what cannot be compared is not what it was

    def _alike(self, value: Any, built: Any) -> bool:
        """Whether it holds what `built` does, part by part and number by number."""
        if type(value) is not type(built):
            return False
        if isinstance(value, Tensor):
            if (value.dtype, value.shape) != (built.dtype, built.shape) or not value.is_cpu:
                return False
            self._views.append(value.detach().numpy())
            self._bytes.append(self._views[-1].tobytes())
            return self._bytes[-1] == built.numpy().tobytes()
        if isinstance(value, list):
            return len(value) == len(built) and all(map(self._alike, value, built))
        if not isinstance(value, (*OWN, Rotary)):
            return bool(value == built)
        few = isinstance(value, (RMSNorm, Rotary))
        seen, wanted = (self._others if few else self._parts).look(value), vars(built)
        given = {"config": self._model.config, "store": self._model.store}
        for name, each in seen.items():
            if isinstance(each, Tensor):
                self._numbers.append((vars(value), name))
                self._tensors.append(each)
        return seen.keys() == wanted.keys() and all(  # an attribute of its own hides a method
            each is given[name] if name in given else self._alike(each, wanted[name])
            for name, each in seen.items()
            if name != "_tables"  # of rotations, which grow as a text does
        )

    def _lent(self, where: Where) -> bool:
        """Whether the store lends this part for good, in float32 on the CPU."""
        lease = self._model.store.dense(*where)
        if type(lease) is not Lease or type(lease.weights) is not Part:
            return False
        self._marks.append(lease.weights.mark)
        seen = self._others.look(lease.weights)
        if not all(map(_readable, seen.values())):
            return False
        self._tensors += seen.values()
        arrays = {name: each.detach().numpy() for name, each in seen.items()}
        self.arrays[where] = SimpleNamespace(**arrays)
        return self._model.store.dense(*where) is lease


class _Attributes:
    """The attributes of some objects: as they are now, and as they were."""

    def __init__(self) -> None:
        self.live: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []

    def look(self, holder: object) -> dict[str, Any]:
        """Those of one object more, as they are now."""
        live = vars(holder)
        seen = {name: [*it] if isinstance(it, list) else it for name, it in live.items()}
        self.live.append(live)
        self.seen.append(seen)
        return seen


def _asked(config: K2Config) -> Iterator[Where]:
    """Every part of which the network asks for the dense weights."""
    yield from ((None, part) for part in ("embed_tokens", "norm", "lm_head"))
    for layer in range(config.num_hidden_layers):
        mixer = ("mlp.gate", "mlp.shared_experts") if config.is_moe(layer) else ("mlp",)
        yield from ((layer, part) for part in ("norms", "self_attn", *mixer))


def _readable(weight: Any) -> bool:
    """Whether NumPy can read it where it lies, as the network would."""
    if type(weight) not in (Tensor, Parameter):
        return False
    return bool(weight.dtype is torch.float32 and weight.is_cpu and weight.layout is torch.strided)
