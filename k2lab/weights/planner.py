"""What a machine can do with a model, told before a byte of a weight is read.

From the config alone: where the weights go, bytes on every tier, slots per layer, seconds to load,
tokens per second when one token is decoded at a time, and which link those wait for. The time of a
token is the sum of what follows each other: reading all dense weights and the chosen experts from
the device's memory, reading the cache, the calls themselves, and the slower one of the two links
that bring missed experts. With the rates of a data sheet this is an upper bound; with measured ones
(`evals/machine.py`) a prediction. Misses are those of even routing unless a hit rate is given:
measure it by replaying a trace (`residency.simulate`).
What it is not: a measurement; it knows nothing of batches, of several requests, or of other
programs on the machine.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple, NoReturn

import torch

from k2lab.errors import BudgetError, ContextError, InputError
from k2lab.spec.config import K2Config
from k2lab.spec.costs import (
    bytes_on_disk,
    cache_bytes_per_token,
    expert_bytes,
    expert_parameters,
    parameters,
)
from k2lab.spec.keys import tensors
from k2lab.weights.budget import Needs, Offload, Unit, compute_dtype, needs, resident_bytes
from k2lab.weights.sharded import shares, split
from k2lab.weights.slab import layout

CHUNK = 512  # prompt tokens that go through the network at once (engine/generate.py)
SCORES = 3  # copies of attention scores that are alive at once: product, float32, softmax
HOST_RESERVE = 2 * 2**30  # bytes of host memory that are left to the system and to Python

Placed = Literal["resident", "sharded", "tiered"]
MEMORY, CALLS, LINK, DISK = "device memory", "calls", "host→device", "disk→host"
"""What a token may wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Sizes in bytes, rates in bytes per second."""

    name: str
    gpus: int  # 0: the CPU computes, and its memory is the device
    device_bytes: int  # of each GPU, or of the CPU's memory as far as it may be used
    memory_rate: float  # at which arithmetic reads dense weights
    expert_rate: float  # at which it reads experts in their slots
    link_rate: float  # from host memory into a slot
    host_bytes: int  # memory beside the device's; of a CPU, what may cache files
    disk_rate: float
    fetch_rate: float = math.inf  # from the disk into a slot, where that is known
    miss_seconds: float = 0.0  # more in a layer that misses anything, however little
    layer_seconds: float = 0.0  # of one layer's calls, however small its arithmetic
    tensor_seconds: float = 0.0  # of opening one tensor of a checkpoint
    load_rate: float = math.inf  # from the disk to tensors of the compute dtype that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the plan is for."""

    context: int
    unit: Unit = "expert"
    weights: int | None = None  # bytes of the device for weights; None: whatever is left
    hit_rate: float | None = None  # of requests served from a slot; None: that of even routing


class Seconds(NamedTuple):
    """One token, by what it waits for."""

    memory: float
    calls: float
    link: float
    disk: float

    @property
    def total(self) -> float:
        """Both links move at the same time; the rest follows each other."""
        return self.memory + self.calls + max(self.link, self.disk)

    @property
    def binding(self) -> str:
        """What takes longest."""
        return max(zip(self, (MEMORY, CALLS, LINK, DISK), strict=True))[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One placement of one model on one machine."""

    placement: Placed
    devices: int
    device_weights: int  # bytes on the fullest device that hold weights: the budget to load with
    device_cache: int  # bytes there for the context
    device_workspace: int  # bytes there for values that come and go
    device_free: int
    slots_per_layer: int
    slot_bytes: int
    host_slots_per_layer: int
    host_bytes: int
    disk_bytes: int
    hit_rate: float  # of requests served from the device
    bytes_per_token: dict[str, float]  # by link
    load_seconds: float
    tok_s: float
    binding: str
    seconds_per_token: dict[str, float]
    largest_context: int
    lacks: str = "nothing"  # of memory, to have everything on the devices
    helps_most: str = ""  # empty until other machines were planned too


def plan(config: K2Config, machine: Machine, wish: Wish) -> Plan:
    """The fastest placement that fits; BudgetError with the smallest change where none does."""
    _check(config, wish)
    found = _place(config, machine, wish)
    if found.placement == "tiered":
        found = replace(found, lacks=_lacks(config, machine, wish))
    return replace(found, helps_most=_helps(config, machine, wish))


def _check(config: K2Config, wish: Wish) -> None:
    if not 1 <= wish.context <= config.max_position_embeddings:
        raise ContextError(
            f"A plan for a context of {wish.context} tokens.",
            expected=f"1 to {config.max_position_embeddings} (max_position_embeddings).",
            mend=f"Plan for a context of {config.max_position_embeddings} tokens or fewer.",
        )
    if wish.hit_rate is not None and not 0 <= wish.hit_rate <= 1:
        raise InputError(
            f"A hit rate of {wish.hit_rate}.", expected="0 to 1.", mend="Give a share, such as 0.6."
        )


# ------------------------------------------------------------------------------------------ placing


def _place(config: K2Config, machine: Machine, wish: Wish) -> Plan:
    return _whole(config, machine, wish) or _tiered(config, machine, wish)


def _whole(config: K2Config, machine: Machine, wish: Wish) -> Plan | None:
    """Everything on the devices, as few of them as hold it; None where it does not fit."""
    dtype, most = _dtype(config, machine), _most(config, machine)
    limit = machine.device_bytes if wish.weights is None else wish.weights
    for devices in range(1, most + 1):
        room = _Room.of(config, dtype, devices)
        fixed = room.weights + room.workspace
        if room.weights > limit or fixed + wish.context * room.per_token > machine.device_bytes:
            continue
        seconds = _seconds(config, machine, wish, _Misses(0, 0, 1.0), room.slot)
        disk = bytes_on_disk(config)
        return Plan(
            placement="resident" if devices == 1 else "sharded",
            devices=devices,
            device_weights=room.weights,
            device_cache=wish.context * room.cache,
            device_workspace=room.workspace + wish.context * (room.per_token - room.cache),
            device_free=machine.device_bytes - fixed - wish.context * room.per_token,
            slots_per_layer=config.n_routed_experts if config.moe_layers else 0,
            slot_bytes=room.slot,
            host_slots_per_layer=0,
            host_bytes=0,
            disk_bytes=disk,
            hit_rate=1.0,
            bytes_per_token={LINK: 0.0, DISK: 0.0},
            load_seconds=_load_seconds(config, machine, disk),
            tok_s=1 / seconds.total,
            binding=seconds.binding,
            seconds_per_token=seconds._asdict(),
            largest_context=_largest(config, machine, range(devices, most + 1)),
        )
    return None


def _most(config: K2Config, machine: Machine) -> int:
    """The devices that can share a model: each holds a layer at least."""
    return min(max(machine.gpus, 1), config.num_hidden_layers)


def _lacks(config: K2Config, machine: Machine, wish: Wish) -> str:
    """The bytes for want of which experts come and go, and how many GPUs that leaves idle."""
    devices = _most(config, machine)
    room = _Room.of(config, _dtype(config, machine), devices)
    more = room.weights + room.workspace + wish.context * room.per_token - machine.device_bytes
    if wish.weights is not None:
        more = max(more, room.weights - wish.weights)
    if machine.gpus < 2:
        return f"{more:,} bytes on the device"
    return (
        f"{more:,} bytes on each of {devices} GPUs; "
        f"tiered placement uses one, so {machine.gpus - 1} would idle"
    )


def _largest(config: K2Config, machine: Machine, counts: range) -> int:
    """The longest context of so many devices, over all of these numbers."""
    rooms = [_Room.of(config, _dtype(config, machine), count) for count in counts]
    fixed = [(machine.device_bytes - each.weights - each.workspace, each) for each in rooms]
    return max(_fits(config, left, each.per_token) for left, each in fixed)


def _tiered(config: K2Config, machine: Machine, wish: Wish) -> Plan:
    """Experts in slots of one device, the others in host memory and on disk."""
    dtype = _dtype(config, machine)
    device = torch.device("cuda" if machine.gpus else "cpu")
    offload = Offload(device=device, dtype=dtype, device_budget=0, unit=wish.unit)
    need = needs(config, layout(config), offload)
    room = _Room.of(config, dtype, 1)
    spare = machine.device_bytes - room.workspace - wish.context * room.per_token
    budget = min(spare, need.most if wish.weights is None else wish.weights)
    if budget < need.smallest:
        _refuse(config, machine, wish, need)
    layers, experts = len(config.moe_layers), config.n_routed_experts
    held = (budget - need.dense - need.staging) // max(1, need.slot)
    frames = min(layers, held // experts) if wish.unit == "layer" else layers
    slots = experts if wish.unit == "layer" else min(experts, held // layers)
    slab = expert_bytes(config)
    beside = max(0, machine.host_bytes - (HOST_RESERVE if machine.gpus else 0))
    if not machine.gpus:  # what the weights leave caches the files
        beside = max(0, beside - budget)
    host = min(experts, beside // (layers * slab))
    miss = _misses(config, wish, (slots, host, frames))
    seconds = _seconds(config, machine, wish, miss, need.slot)
    plain = bytes_on_disk(config) - layers * experts * slab  # `weight_shape` among it: not read
    read = _load_seconds(config, machine, plain)
    return Plan(
        placement="tiered",
        devices=1,
        device_weights=budget,
        device_cache=wish.context * room.cache,
        device_workspace=room.workspace + wish.context * (room.per_token - room.cache),
        device_free=spare - budget,
        slots_per_layer=slots,
        slot_bytes=need.slot,
        host_slots_per_layer=host,
        host_bytes=host * layers * slab,
        disk_bytes=bytes_on_disk(config),
        hit_rate=miss.hit_rate,
        bytes_per_token={LINK: miss.device * slab, DISK: miss.disk * slab},
        load_seconds=read,
        tok_s=1 / seconds.total,
        binding=seconds.binding,
        seconds_per_token=seconds._asdict(),
        largest_context=_fits(
            config, machine.device_bytes - room.workspace - need.smallest, room.per_token
        ),
    )


class _Room(NamedTuple):
    """Bytes on the fullest device."""

    weights: int
    cache: int  # per token of context
    per_token: int  # of context, the cache and what a prompt's chunk needs beside it
    workspace: int  # whatever the context
    slot: int  # of one expert

    @staticmethod
    def of(config: K2Config, dtype: torch.dtype, devices: int) -> "_Room":
        item, heads, counts = dtype.itemsize, config.num_attention_heads, parameters(config)
        whole, layers = resident_bytes(config, dtype), config.num_hidden_layers
        weights, most = whole, layers
        if devices > 1:  # the largest share of the files, at the bytes that lie on a device
            weights = math.ceil(max(shares(config, devices)) / bytes_on_disk(config) * whole)
            most = max(map(len, split(config, devices)))
        cache = cache_bytes_per_token(config, item_bytes=item) * most // layers
        expanded = heads * (config.qk_nope_head_dim + config.v_head_dim) * item
        scores = CHUNK * heads * 4 * SCORES
        count = expert_parameters(config) if config.moe_layers else 0
        # Of a chunk's logits only the last row is asked for; experts expand a few at a time.
        opened = config.num_experts_per_tok * count * item + CHUNK * config.hidden_size * 8
        routed = len(config.moe_layers) * config.n_routed_experts
        slot = (whole - (counts.total - counts.routed) * item) // routed if routed else 0
        return _Room(weights, cache, cache + expanded + scores, opened, slot)


def _fits(config: K2Config, room: int, per_token: int) -> int:
    return max(0, min(config.max_position_embeddings, room // per_token))


# ------------------------------------------------------------------------------------------- timing


class _Misses(NamedTuple):
    device: float  # experts brought to the device for one token
    disk: float  # of these, from the disk
    hit_rate: float
    waits: float = 0.0  # layers that miss anything


def _misses(config: K2Config, wish: Wish, room: tuple[int, int, int]) -> _Misses:
    """Of one decoded token; `room` is slots and host slots per layer, and whole layers."""
    slots, host, frames = room
    layers, experts, chosen = (
        len(config.moe_layers), config.n_routed_experts, config.num_experts_per_tok,
    )  # fmt: skip
    if wish.unit == "layer":
        # Layers are asked for in turn, so one that left comes back before it is asked for again.
        device = 0 if frames == layers else layers * experts
        return _Misses(device, device * (1 - host / experts), 1.0 if not device else 0.0)
    rate = slots / experts if wish.hit_rate is None else wish.hit_rate
    missed = layers * chosen * (1 - rate)
    # Whoever lies on the device was in host memory before: only what host holds beyond that helps.
    beyond = max(0, host - slots) / max(1, experts - slots)
    return _Misses(missed, missed * (1 - beyond), rate, layers * (1 - rate**chosen))


def _seconds(config: K2Config, machine: Machine, wish: Wish, miss: _Misses, slot: int) -> Seconds:
    counts, dtype = parameters(config), _dtype(config, machine)
    dense = (counts.total - counts.routed - counts.embedding) * dtype.itemsize
    cache = wish.context * cache_bytes_per_token(config, item_bytes=dtype.itemsize)
    chosen = len(config.moe_layers) * config.num_experts_per_tok * slot
    slab = expert_bytes(config)
    return Seconds(
        memory=(dense + cache) / machine.memory_rate + chosen / machine.expert_rate,
        calls=config.num_hidden_layers * machine.layer_seconds,
        link=miss.device * slab / machine.link_rate + miss.waits * machine.miss_seconds,
        disk=miss.disk * slab / min(machine.disk_rate, machine.fetch_rate),
    )


def _dtype(config: K2Config, machine: Machine) -> torch.dtype:
    return compute_dtype(config, torch.device("cuda" if machine.gpus else "cpu"))


def _load_seconds(config: K2Config, machine: Machine, read: int) -> float:
    """Every tensor's header is looked at, `read` bytes of them are brought."""
    bring = read / min(machine.disk_rate, machine.load_rate)
    return _count(config) * machine.tensor_seconds + bring


@cache
def _count(config: K2Config) -> int:
    return sum(1 for _ in tensors(config))


def _helps(config: K2Config, machine: Machine, wish: Wish) -> str:
    """The one doubling that makes tokens fastest."""

    def twice(**changes: float) -> Machine:
        return replace(machine, **changes)  # type: ignore[arg-type]

    free = replace(wish, weights=None)
    memory, experts = 2 * machine.memory_rate, 2 * machine.expert_rate
    disk, fetch = 2 * machine.disk_rate, 2 * machine.fetch_rate
    doubled = {
        "device memory twice as large": (twice(device_bytes=2 * machine.device_bytes), free),
        "device memory twice as fast": (twice(memory_rate=memory, expert_rate=experts), wish),
        "host memory twice as large": (twice(host_bytes=2 * machine.host_bytes), wish),
        "a link to the device twice as fast": (twice(link_rate=2 * machine.link_rate), wish),
        "a disk twice as fast": (twice(disk_rate=disk, fetch_rate=fetch), wish),
        "calls twice as fast": (twice(layer_seconds=machine.layer_seconds / 2), wish),
    }
    rates = {name: _place(config, *each).tok_s for name, each in doubled.items()}
    best = max(rates, key=rates.__getitem__)
    return f"{best}: {rates[best]:.3g} tokens/s"


# ---------------------------------------------------------------------------------------- refusing


def _refuse(config: K2Config, machine: Machine, wish: Wish, need: Needs) -> NoReturn:
    """Names the smallest change, of the context where a shorter one will do."""
    room = _Room.of(config, _dtype(config, machine), 1)
    if wish.weights is not None and wish.weights < need.smallest:
        raise BudgetError(
            f"A device budget of {wish.weights:,} bytes for weights.",
            expected=f"at least {need.smallest:,}.",
            mend=f"Plan with a device budget of {need.smallest} bytes or more.",
        )
    whole = need.smallest + room.workspace + wish.context * room.per_token
    smaller = replace(wish, unit="expert")
    ways = [f"Give the device {whole:,} bytes ({whole / 2**30:.1f} GiB)"]
    fits = _fits(config, machine.device_bytes - room.workspace - need.smallest, room.per_token)
    if fits:
        ways.insert(0, f"Plan a context of at most {fits} tokens")
    if wish.unit == "layer" and _possible(config, machine, smaller):
        ways.insert(0, "Offload by expert (--unit expert)")
    raise BudgetError(
        f"{machine.device_bytes:,} bytes on the device ({machine.name}).",
        expected=f"at least {whole:,}: {need.smallest:,} for weights, "
        f"{wish.context * room.cache:,} for a context of {wish.context} tokens, "
        f"{room.workspace + wish.context * (room.per_token - room.cache):,} to compute in.",
        mend=f"{'; or: '.join(ways)}.",
    )


def _possible(config: K2Config, machine: Machine, wish: Wish) -> bool:
    try:
        _place(config, machine, wish)
    except BudgetError:
        return False
    return True
