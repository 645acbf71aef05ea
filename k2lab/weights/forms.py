"""How an expert lies in its slot: as in the file, expanded, or in the order of a CPU kernel.

    packed    the slab as it is, read or expanded each time  any device; the exact numbers
    expanded  matrices of the compute dtype, made once       small experts; the exact numbers
    int4pack  codes in the kernel's order, made once         CPU, large experts; bfloat16 inside

`packed` and `expanded` give the same bits as the resident store. Work that is done once per stay is
done by the thread that fetched the expert, beside the network.
Not here: who lies where (`residency.py`), fetching (`tiered.py`).
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from k2lab.spec.config import K2Config, Quantization
from k2lab.spec.costs import expert_parameters
from k2lab.tensors import int4pack
from k2lab.tensors.int4 import GROUP
from k2lab.tensors.linear import laid
from k2lab.weights.links import Event, Link, Past
from k2lab.weights.slab import Layout
from k2lab.weights.stacks import Stack, subset_rows

FormName = Literal["packed", "expanded", "int4pack"]

EXPAND_LIMIT = 2**20  # bytes of one expanded expert up to which `expanded` is chosen


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

    def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
        """Bring a slab from host memory into a slot once `after` has happened."""
        ...

    def rows(self, ask: Ask, x: Tensor, out: Tensor | None) -> Tensor:
        """[token, slot, hidden], written into `out` if given (which holds other experts' rows)."""
        ...


def choose(config: K2Config, device: torch.device, dtype: torch.dtype) -> FormName:
    """The form that suits the size of the experts and the device."""
    if config.quantization_config is None:
        return "expanded" if device.type == "cpu" else "packed"
    if device.type != "cpu":
        return "packed"
    if expert_parameters(config) * dtype.itemsize <= EXPAND_LIMIT:
        return "expanded"
    if not isinstance(config.quantization_config, Quantization):
        return "packed"
    inner, width = config.moe_intermediate_size, config.hidden_size
    kernel = int4pack.available(2 * inner, width) and int4pack.available(width, inner)
    return "int4pack" if kernel else "packed"


def slot_bytes(form: FormName, config: K2Config, layout: Layout, dtype: torch.dtype) -> int:
    """Bytes of one slot."""
    count = expert_parameters(config)
    if form == "packed":
        return layout.nbytes
    return count * dtype.itemsize if form == "expanded" else count // 2 + count // GROUP * 4


def build(
    form: FormName, config: K2Config, layout: Layout, dtype: torch.dtype, room: Room, link: Link,
    device: torch.device,
) -> Form:  # fmt: skip
    """Empty slots of this form."""
    if form == "packed":
        return Packed(config, layout, room, link, device)
    return Expanded(config, layout, dtype, room) if form == "expanded" else Int4(layout, room)


class Packed:
    """Slabs on the device; the chosen ones are expanded on each use, `at_once` at a time."""

    def __init__(
        self, config: K2Config, layout: Layout, room: Room, link: Link, device: torch.device
    ) -> None:
        self._layout, self._link = layout, link
        self._at_once = config.num_experts_per_tok
        size = (*room, layout.nbytes)
        self._slabs = torch.empty(size, dtype=torch.uint8, device=device)

    def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
        """One copy of the whole slab."""
        return self._link.copy(slab, self._slabs[frame, slot], after)

    def rows(self, ask: Ask, x: Tensor, out: Tensor | None) -> Tensor:
        """Rows of experts as they lie there, or expanded for this use."""
        for slot in ask.slots:
            ask.arrive(slot)
        stack = Stack.of(self._slabs[ask.frame], self._layout)
        return stack.rows(x, ask.places, at_once=self._at_once, out=out)


class Expanded:
    """Stacked matrices of the compute dtype in CPU memory."""

    def __init__(self, config: K2Config, layout: Layout, dtype: torch.dtype, room: Room) -> None:
        self._layout, self._dtype = layout, dtype
        inner, width = config.moe_intermediate_size, config.hidden_size
        self._gate_up = laid(torch.empty(*room, 2 * inner, width, dtype=dtype))
        self._down = laid(torch.empty(*room, width, inner, dtype=dtype))

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


class Int4:
    """Codes in the order of the CPU's INT4 kernel; each expert is computed when it has come."""

    def __init__(self, layout: Layout, room: Room) -> None:
        self._layout = layout
        codes, scales = {}, {}
        for name, matrices in (("gate_up", ("gate_proj", "up_proj")), ("down", ("down_proj",))):
            words = [layout.part(f"{matrix}.weight_packed").shape for matrix in matrices]
            rows, columns = sum(shape[0] for shape in words), words[0][1] * 8
            codes[name] = torch.empty(*room, rows * columns // 2, dtype=torch.uint8)
            size = (*room, columns // GROUP, rows, 2)
            scales[name] = torch.empty(size, dtype=torch.bfloat16)
        self._codes, self._scales = codes, scales

    def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
        """Write codes and scales in the kernel's order."""
        after.synchronize()
        for name, of in (("gate_up", self._layout.gate_up), ("down", self._layout.down)):
            words: np.ndarray = of(slab, "weight_packed").flatten(0, -2).numpy()
            int4pack.pack_into(words, self._codes[name][frame, slot].numpy())
            int4pack.scales_into(
                of(slab, "weight_scale").flatten(0, -2), self._scales[name][frame, slot]
            )
        return Past()

    def rows(self, ask: Ask, x: Tensor, out: Tensor | None) -> Tensor:
        """Rows of one expert after the other."""
        if out is None:
            out = x.new_empty(*ask.places.shape, x.shape[-1])
        for slot in ask.slots:
            ask.arrive(slot)
            tokens, requests = (ask.places == slot).nonzero(as_tuple=True)
            gate_up, down = (
                (self._codes[name][ask.frame, slot], self._scales[name][ask.frame, slot])
                for name in ("gate_up", "down")
            )
            out[tokens, requests] = int4pack.swiglu(x[tokens], gate_up, down)
        return out
