"""The GPU's link without a GPU: what is recorded, what waits for what, and how memory is pinned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.errors import InputError
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.tensors.shards import Shards
from k2lab.weights.budget import READERS, Offload
from k2lab.weights.links import Cuda, Direct
from k2lab.weights.resident import Resident
from k2lab.weights.slab import Slabs
from k2lab.weights.tiered import Tiered


class FakeEvent:
    def __init__(self, log: list[str]) -> None:
        self.log, self.stream = log, None

    def record(self, stream: Any) -> None:
        self.stream = stream
        self.log.append(f"record on {stream.name}")

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.stream.name}")


class FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(f"{self.name} waits for {event.stream.name}")


class FakeCuda:
    """As much of torch.cuda as a link uses; everything happens at once, and is written down."""

    def __init__(self, code: int = 0) -> None:
        self.log: list[str] = []
        self.pinned: list[int] = []
        self.compute = FakeStream("compute", self.log)
        self.code = code

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        return FakeStream("copy", self.log)

    def Event(self) -> FakeEvent:  # noqa: N802
        return FakeEvent(self.log)

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.compute

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    def cudart(self) -> Any:
        outer = self

        class Runtime:
            @staticmethod
            def cudaHostRegister(address: int, nbytes: int, flags: int) -> int:  # noqa: N802
                outer.pinned.append(nbytes)
                return outer.code

        return Runtime


def test_a_copy_waits_for_the_network_and_the_network_for_the_copy() -> None:
    cuda = FakeCuda()
    link = Cuda(torch.device("cpu"), cuda)
    source, target = torch.arange(8, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    used = link.used()
    copied = link.copy(source, target, used)
    link.wait(copied)
    assert torch.equal(source, target)
    assert cuda.log == [
        "record on compute",
        "on copy",
        "copy waits for compute",
        "record on copy",
        "off copy",
        "compute waits for copy",
    ]


def test_memory_is_pinned_in_its_exact_size() -> None:
    cuda = FakeCuda()
    memory = Cuda(torch.device("cpu"), cuda).arena(24_772_608)
    assert memory.shape == (24_772_608,)
    assert cuda.pinned == [24_772_608]  # pin_memory would take 32 MiB


def test_memory_that_cannot_be_pinned_is_an_error_with_a_way_out() -> None:
    with pytest.raises(InputError, match=r"CUDA error 2.*host_budget"):
        Cuda(torch.device("cpu"), FakeCuda(code=2)).arena(4096)


@pytest.mark.parametrize("host_slots", [0, 3])
def test_a_store_on_this_link_computes_the_same(
    host_slots: int,
    tmp_path: Path,
    tiny_config: Callable[..., K2Config],
    random_checkpoint: Callable[..., Path],
) -> None:
    config = tiny_config(quantization_config=K2_NANO.quantization_config, dtype="bfloat16")
    folder = random_checkpoint(tmp_path, config, 3)
    slabs = Slabs(Shards(folder), config)
    cuda = FakeCuda()
    offload = Offload(
        device=torch.device("cpu"),
        dtype=torch.float32,
        device_budget=2 * 10**6,
        host_budget=host_slots * 2 * slabs.layout.nbytes,
        form="packed",
    )
    store = Tiered(config, slabs, offload, Cuda(torch.device("cpu"), cuda))
    model, whole = K2(config, store), K2(config, Resident(config, Shards(folder).read))

    def logits(network: K2) -> Tensor:
        with torch.inference_mode():
            ids = torch.tensor([[5, 600, 7]])
            return network(ids, network.step(3, cache=None, tap=untouched))

    assert torch.equal(logits(model), logits(whole))
    assert torch.equal(logits(model), logits(whole))
    store.close()
    assert cuda.log.count("compute waits for copy") >= 2
    assert sum(cuda.pinned) == (READERS + 2 * host_slots) * slabs.layout.nbytes


def test_on_a_cpu_a_copy_is_made_at_once() -> None:
    link = Direct()
    target = link.arena(4)
    link.copy(torch.arange(4, dtype=torch.uint8), target, link.used()).synchronize()
    assert target.tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_numbers_are_those_of_a_resident_model(
    tmp_path: Path, tiny_config: Callable[..., K2Config], random_checkpoint: Callable[..., Path]
) -> None:
    config = tiny_config(quantization_config=K2_NANO.quantization_config, dtype="bfloat16")
    folder, device = random_checkpoint(tmp_path, config, 3), torch.device("cuda")
    slabs = Slabs(Shards(folder), config)
    offload = Offload(device=device, dtype=torch.bfloat16, device_budget=2 * 10**6)
    store = Tiered(config, slabs, offload)
    read = Shards(folder).read
    whole = Resident(config, read, device=device, dtype=torch.bfloat16, keeping="packed")
    ids = torch.tensor([[5]], device=device)
    with torch.inference_mode():
        found, expected = (
            network(ids, network.step(1, cache=None, tap=untouched))
            for network in (K2(config, store), K2(config, whole))
        )
    assert torch.equal(found, expected)
