"""From a checkpoint folder to a network: config, shards, store, in that order, each checked."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from k2lab.errors import InputError
from k2lab.model.k2 import K2
from k2lab.model.split import Split
from k2lab.spec.amounts import nbytes
from k2lab.spec.config import K2Config
from k2lab.tensors.shards import Shards, check
from k2lab.weights.budget import (
    Offload,
    Unit,
    compute_dtype,
    needs,
    resident_bytes,
)
from k2lab.weights.memory import free
from k2lab.weights.meta import Meta
from k2lab.weights.residency import by_name
from k2lab.weights.resident import Resident
from k2lab.weights.sharded import Sharded
from k2lab.weights.slab import Slabs
from k2lab.weights.store import WeightStore
from k2lab.weights.tiered import Tiered

Placement = Literal["auto", "resident", "sharded", "tiered", "meta"]
"""Where the weights go: `resident` on one device, `sharded` layers over several, `tiered` experts
brought when they are asked for, `meta` shapes without numbers; `auto` the first that fits."""

OFFLOADING = ("host_budget", "unit", "prefetch", "policy")  # options of bringing experts
SHARE = 0.8  # of free memory that weights take where no budget is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where weights go, in full; what is None is chosen."""

    placement: Placement = "auto"
    device: str | tuple[str, ...] | None = None  # such as "cpu", "cuda:1" or ("cuda:0", "cuda:1")
    device_budget: str | int | None = None  # such as "20GiB", for weights on the device
    host_budget: str | int = 0  # for experts in host memory, between disk and device
    unit: Unit = "expert"
    prefetch: bool = False
    policy: str = "lru"

    def __post_init__(self) -> None:
        _one_of("placement", self.placement, get_args(Placement))
        _one_of("unit", self.unit, get_args(Unit))
        if self.placement != "auto":
            self.check_heeded(self.placement, ("device_budget", *OFFLOADING))

    def check_heeded(self, placement: Placement, names: tuple[str, ...] = OFFLOADING) -> None:
        """Raise where one of these options was given to a placement that does not heed it."""
        chosen = {each.name: each.default for each in fields(self)}
        given = [name for name in names if getattr(self, name) != chosen[name]]
        if given and placement != "tiered":
            raise InputError(
                f"{', '.join(given)} beside the placement {placement}, which has no use for it.",
                expected="options that the placement heeds.",
                mend="Choose the placement tiered, or leave out what is named.",
            )

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that were named, or all GPUs, or the CPU."""
        if self.device is None:
            count = torch.cuda.device_count()
            return tuple(torch.device("cuda", n) for n in range(count)) or (torch.device("cpu"),)
        named = (self.device,) if isinstance(self.device, str) else self.device
        try:
            devices = tuple(torch.device(each) for each in named)
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"device is {self.device!r:.80}.",
                expected="the name of a device that torch knows, or several.",
                mend="Use 'cpu', 'cuda', or leave it out.",
            ) from error
        absent = [each for each in devices if (each.index or 0) >= _count(each)]
        if absent or not devices:
            raise InputError(
                f"The device {absent[0] if absent else '()'} is not in this machine.",
                expected=f"'cpu', or one of {torch.cuda.device_count()} CUDA devices.",
                mend="Use device='cpu', or leave it out.",
            )
        return devices


def load_model(folder: Path, placement: Placement | Places | WeightStore = "auto") -> K2:
    """The network of a checkpoint folder, its tensors checked against `config.json` first."""
    config = K2Config.from_json(folder)
    if isinstance(placement, str):
        placement = Places(placement=placement)
    if not isinstance(placement, Places):
        if not isinstance(placement, WeightStore):
            _one_of("placement", placement, get_args(Placement))
        return K2(config, placement)
    if placement.placement == "meta":
        return K2(config, Meta(config))
    devices = placement.devices
    shards = Shards(folder)
    check(shards, config)
    dtype = compute_dtype(config, devices[0])
    chosen = _choose(config, placement, devices, dtype)
    placement.check_heeded(chosen)
    if chosen == "sharded":
        return Split(config, Sharded(config, shards.read, devices=devices, dtype=dtype))
    if chosen == "resident":
        return K2(config, Resident(config, shards.read, device=devices[0], dtype=dtype))
    slabs = Slabs(shards, config)
    return K2(config, Tiered(config, slabs, _offload(config, slabs, placement, devices[0])))


def _choose(
    config: K2Config, places: Places, devices: tuple[torch.device, ...], dtype: torch.dtype
) -> Placement:
    """The placement that was asked for, or the first that fits."""
    if places.placement != "auto":
        return places.placement
    whole = resident_bytes(config, dtype)
    if whole <= _budget(places, devices[0]):
        return "resident"
    rooms = [_budget(places, device) for device in devices]
    # An even split needs the smallest device to hold its part.
    if len(devices) > 1 and whole <= min(rooms) * len(devices):
        return "sharded"
    return "tiered"


def _offload(config: K2Config, slabs: Slabs, places: Places, device: torch.device) -> Offload:
    offload = Offload(
        device=device,
        dtype=compute_dtype(config, device),
        device_budget=_budget(places, device),
        host_budget=nbytes(places.host_budget),
        unit=places.unit,
        prefetch=places.prefetch,
        policies=by_name(places.policy),
    )
    if places.device_budget is not None:
        return offload
    # No more is asked of the device than the model can use.
    most = needs(config, slabs.layout, offload).most
    return replace(offload, device_budget=min(offload.device_budget, most))


def _budget(places: Places, device: torch.device) -> int:
    if places.device_budget is not None:
        return nbytes(places.device_budget)
    return int(free(device) * SHARE)


def _count(device: torch.device) -> int:
    return {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        store = ", or a weight store" if name == "placement" else ""
        raise InputError(
            f"{name} is {value!r}.",
            expected=f"one of {', '.join(allowed)}{store}.",
            mend="Leave it out to let the lab choose.",
        )
