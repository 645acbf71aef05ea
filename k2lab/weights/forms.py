"""How an expert lies in its slot: as in the file, or expanded.

    packed    the slab as it is, read or expanded each time  GPUs, and large experts on a CPU
    expanded  matrices of the compute dtype, made once       small experts on a CPU

Both give the same bits as the resident store. Experts are expanded by the thread that fetched them,
beside the network. On a CPU a slab is read straight into its slot, and large INT4 experts are
computed one by one as they come, while the disk is at work on the next.
Not here: who lies where (`residency.py`), fetching (`tiered.py`).
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.spec.costs import expert_parameters
from k2lab.tensors.linear import laid
from k2lab.weights.links import Event, Link, Past
from k2lab.weights.slab import Layout
from k2lab.weights.stacks import LARGE, Stack, subset_rows

FormName = Literal["packed", "expanded"]


class Room(NamedTuple):
    """How many experts there is room for."""

    frames: int  # one per layer with slots of its own, or as many whole layers as fit
    slots: int  # per frame


class Ask(NamedTuple):
    """Experts of one frame that are asked for at once."""

    frame: int
    slots: Sequence[int]  # those that lie there first, then those that come, in their order
    places: Tensor  # slot of each request [token, slot]; −1: not among these
    arrive: Callable[[int], None]  # waits until this slot is filled


class Form(Protocol):
    """The slots on the device."""

    def place(self, frame: int, slot: int) -> Tensor | None:
        """The slot itself, if a file can be read straight into it."""
        ...

    def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
        """Bring a slab from host memory into a slot once `after` has happened."""
        ...

    def rows(self, ask: Ask, x: Tensor, out: Tensor | None) -> Tensor:
        """[token, slot, hidden], written into `out` if given (which holds other experts' rows)."""
        ...


def choose(config: K2Config, device: torch.device) -> FormName:
    """The form that suits the size of the experts and the device."""
    small = config.quantization_config is None or expert_parameters(config) < LARGE
    return "expanded" if device.type == "cpu" and small else "packed"


def slot_bytes(form: FormName, config: K2Config, layout: Layout, dtype: torch.dtype) -> int:
    """Bytes of one slot."""
    count = expert_parameters(config)
    if form == "packed":
        return layout.nbytes
    return count * dtype.itemsize


def build(
    form: FormName, config: K2Config, layout: Layout, dtype: torch.dtype, room: Room, link: Link,
    device: torch.device,
) -> Form:  # fmt: skip
    """Empty slots of this form."""
    if form == "packed":
        return Packed(config, layout, room, link, device)
    return Expanded(config, layout, dtype, room)


class Packed:
    """Slabs on the device; codes are read there, or expanded on each use, `at_once` at a time."""

    def __init__(
        self, config: K2Config, layout: Layout, room: Room, link: Link, device: torch.device
    ) -> None:
        self._layout, self._link = layout, link
        self._at_once = config.num_experts_per_tok
        size = (*room, layout.nbytes)
        self._slabs = torch.empty(size, dtype=torch.uint8, device=device)

    def place(self, frame: int, slot: int) -> Tensor | None:
        """The slot on a CPU, which needs no copy."""
        return None if self._link.apart else self._slabs[frame, slot]

    def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
        """One copy of the whole slab."""
        return self._link.copy(slab, self._slabs[frame, slot], after)

    def rows(self, ask: Ask, x: Tensor, out: Tensor | None) -> Tensor:
        """Rows of experts as they lie there, or expanded for this use."""
        stack = Stack.of(self._slabs[ask.frame], self._layout)
        if not stack.apart:
            for slot in ask.slots:
                ask.arrive(slot)
            return stack.rows(x, ask.places, at_once=self._at_once, out=out)
        for slot in ask.slots:
            ask.arrive(slot)
            out = stack.rows(x, torch.where(ask.places == slot, slot, -1), at_once=1, out=out)
        assert out is not None, "asked for no expert"
        return out


class Expanded:
    """Stacked matrices of the compute dtype in CPU memory."""

    def __init__(self, config: K2Config, layout: Layout, dtype: torch.dtype, room: Room) -> None:
        self._layout, self._dtype = layout, dtype
        inner, width = config.moe_intermediate_size, config.hidden_size
        self._gate_up = laid(torch.empty(*room, 2 * inner, width, dtype=dtype))
        self._down = laid(torch.empty(*room, width, inner, dtype=dtype))

    def place(self, frame: int, slot: int) -> Tensor | None:
        """None: matrices lie there, not slabs."""

    def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
        """Expand the slab into its slot."""
        after.synchronize()
        gate_up, down = Stack.of(slab[None], self._layout).expand(self._dtype)
        self._gate_up[frame, slot], self._down[frame, slot] = gate_up[0], down[0]
        return Past()

    def rows(self, ask: Ask, x: Tensor, out: Tensor | None) -> Tensor:
        """Rows of experts as they lie there."""
        for slot in ask.slots:
            ask.arrive(slot)
        return subset_rows(x, ask.places, (self._gate_up[ask.frame], self._down[ask.frame]), out)
