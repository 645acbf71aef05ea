"""The GPU's link without a GPU: what is recorded, what waits for what, and how memory is pinned."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import k2lab
from k2lab.engine.taps import untouched, watch
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.load import Places, load_model
from k2lab.paths import asset
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.spec.sites import Tap
from k2lab.tensors.shards import Shards
from k2lab.weights.budget import READERS, Offload, needs
from k2lab.weights.links import Cuda, Direct
from k2lab.weights.resident import Resident
from k2lab.weights.slab import Slabs, layout
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
        self.addresses: set[int] = set()  # pinned just now
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
                outer.addresses.add(address)
                return outer.code

            @staticmethod
            def cudaHostUnregister(address: int) -> int:  # noqa: N802
                outer.addresses.remove(address)
                return 0

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


def test_memory_is_unpinned_before_the_system_gets_it_back() -> None:
    cuda = FakeCuda()
    memory = Cuda(torch.device("cpu"), cuda).arena(2 * 4096)
    part = memory.view(2, 4096)[1]
    del memory
    assert len(cuda.addresses) == 1  # somebody still holds a part of it
    part.fill_(7)
    del part
    assert cuda.addresses == set()


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


# -------------------------------------------------------------------------------------- on a GPU

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = "cuda:0"


def outputs(model: K2, tap: Tap = untouched) -> list[Tensor]:
    """Logits of a prompt, of a few tokens, and of single ones."""
    cache, found = LatentCache(model.config), []
    with torch.inference_mode():
        for ids in (range(3, 80), range(5, 9), [1], [77]):
            step = model.step(len(ids), cache=cache, tap=tap)
            found.append(model(torch.tensor([list(ids)], device=model.device), step).cpu())
    return found


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@ON_GPU
@pytest.mark.parametrize("watched", [False, True], ids=["taps off", "taps on"])
def test_on_a_gpu_all_stores_give_the_same_bits(watched: bool) -> None:
    folder = asset("k2-nano")
    config = K2Config.from_json(folder)
    seen: list[str] = []
    tap = watch("*", config, lambda site, _: seen.append(site)) if watched else untouched
    expected = outputs(load_model(folder, Places(placement="resident", device=GPU)), tap)
    offload = Offload(device=torch.device(GPU), dtype=torch.bfloat16, device_budget=0)
    need = needs(config, layout(config), offload)
    one = len(config.moe_layers) * need.slot
    whole = need.dense + config.n_routed_experts * need.slot
    ways: list[dict[str, Any]] = [
        *({"device_budget": need.smallest + n * one} for n in (0, 1, 5, 24, 56)),
        {"device_budget": need.smallest, "prefetch": True},
        {"device_budget": need.smallest + one, "host_budget": "1MB", "prefetch": True},
        {"device_budget": whole, "unit": "layer"},
        {"device_budget": whole + config.n_routed_experts * need.slot, "unit": "layer",
         "prefetch": True},
    ]  # fmt: skip
    for way in ways:
        model = load_model(folder, Places(placement="tiered", device=GPU, **way))
        assert same(outputs(model, tap), expected), way
        assert same(outputs(model, tap), expected), f"{way}, again"
        model.store.close()
    several = load_model(folder, Places(placement="sharded", device=(GPU,) * 3))
    assert same(outputs(several, tap), expected)
    assert watched == ("layers.5.mlp.experts.rows" in seen)


@ON_GPU
def test_on_a_gpu_memory_stays_within_the_budget() -> None:
    folder, device = asset("k2-nano"), torch.device(GPU)
    config = K2Config.from_json(folder)
    offload = Offload(device=device, dtype=torch.bfloat16, device_budget=0)
    budget = needs(config, layout(config), offload).smallest + 10**6
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    model = load_model(folder, Places(placement="tiered", device=GPU, device_budget=budget))
    assert torch.cuda.memory_allocated(device) - before <= 1.05 * budget
    model.store.close()


@ON_GPU
def test_on_a_gpu_float32_is_near_the_cpu() -> None:
    folder = asset("k2-nano")
    config, read = K2Config.from_json(folder), Shards(folder).read
    there = K2(config, Resident(config, read, device=GPU))
    here = load_model(folder, Places(device="cpu"))
    for found, expected in zip(outputs(there), outputs(here), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


@ON_GPU
def test_on_a_gpu_a_run_answers() -> None:
    lab = k2lab.load(placement="tiered", device=GPU)
    run = lab.run("What do 3 x lamp and 2 x rope cost?").wait()
    assert run.trace.answer == "3 x lamp and 2 x rope cost 294 coins."
    assert run.trace.moved
