"""Plans: bytes and slots are those of the real stores, bounds are arithmetic, refusals name a way."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from k2lab.engine.taps import untouched
from k2lab.errors import BudgetError, ContextError, InputError
from k2lab.model.cache import LatentCache
from k2lab.model.load import Places, load_model
from k2lab.model.synthetic import write_synthetic
from k2lab.paths import asset
from k2lab.spec.config import K2_THINKING, Fp8, K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.weights.planner import DISK, LINK, MEMORY, Machine, Plan, Wish, plan
from k2lab.weights.slab import Slabs
from k2lab.weights.tiered import Tiered

Configs = Callable[..., K2Config]
GB = 10**9
H200 = Machine(
    name="8 × H200", gpus=8, device_bytes=141 * GB, memory_rate=4.8e12, expert_rate=4.8e12,
    link_rate=64e9, host_bytes=2000 * GB, disk_rate=7e9,
)  # fmt: skip
H100 = replace(
    H200, name="H100", gpus=1, device_bytes=80 * GB, memory_rate=3.35e12, expert_rate=3.35e12
)
CPU = Machine(
    name="CPU", gpus=0, device_bytes=64 * GB, memory_rate=20e9, expert_rate=20e9, link_rate=2e9,
    host_bytes=64 * GB, disk_rate=1e9,
)  # fmt: skip


def thinking(machine: Machine, **wish: Any) -> Plan:
    return plan(K2_THINKING, machine, Wish(**{"context": 1} | wish))


# ---------------------------------------------------------------------------------------- arithmetic


def test_k2_thinking_fits_eight_h200_and_memory_binds() -> None:
    found = thinking(H200)
    assert found.placement == "sharded"
    assert found.device_weights * found.devices >= bytes_on_disk(K2_THINKING) * 0.99
    assert found.device_weights < 141 * GB
    # 33.0 GB a token at 4.8 TB/s, one GPU at a time.
    assert found.tok_s == pytest.approx(145.5, abs=0.5)
    assert found.binding == MEMORY
    assert found.load_seconds == pytest.approx(594.2 / 7, rel=0.001)
    assert thinking(H200, context=32_768).tok_s == pytest.approx(136, abs=0.5)


@pytest.mark.parametrize(
    ("hits", "link", "tok_s"), [(0.0, 64e9, 5.11), (0.5, 55e9, 8.47), (0.9, 64e9, 35.2)]
)
def test_one_h100_waits_for_its_link(hits: float, link: float, tok_s: float) -> None:
    found = thinking(replace(H100, link_rate=link), hit_rate=hits)
    assert (found.placement, found.binding) == ("tiered", LINK)
    assert found.tok_s == pytest.approx(tok_s, rel=0.01)
    assert found.bytes_per_token[LINK] == pytest.approx(480 * 24_772_608 * (1 - hits))
    assert 34 <= found.slots_per_layer <= 38
    assert found.helps_most.startswith("a link to the device twice as fast")


def test_with_little_host_memory_the_disk_binds() -> None:
    found = thinking(replace(H100, host_bytes=128 * GB))
    assert found.binding == DISK
    assert found.host_bytes <= 126 * GB
    assert found.bytes_per_token[DISK] < found.bytes_per_token[LINK]
    assert found.tok_s < 1
    more = thinking(replace(H100, host_bytes=256 * GB))
    assert more.tok_s > found.tok_s


def test_whole_layers_cost_48_times_the_bytes() -> None:
    expert, layer = thinking(H100, hit_rate=0.0), thinking(H100, unit="layer")
    ratio = layer.bytes_per_token[LINK] / expert.bytes_per_token[LINK]
    assert ratio == pytest.approx(384 / 8)


def test_measured_hits_replace_those_of_even_routing() -> None:
    even = thinking(H100)
    assert even.hit_rate == even.slots_per_layer / 384
    assert thinking(H100, hit_rate=0.7).tok_s > even.tok_s


def test_fp8_weighs_more() -> None:
    config = replace(K2_THINKING, quantization_config=Fp8())
    found = plan(config, replace(H200, device_bytes=192 * GB), Wish(context=1))
    assert found.placement == "sharded"
    assert found.disk_bytes == 1_029_173_249_888


# ------------------------------------------------------------------------------------------ contexts


def test_the_largest_context_is_one_that_can_be_planned() -> None:
    for machine in (H200, H100):
        longest = thinking(machine).largest_context
        assert 1000 < longest < 262_144
        assert thinking(machine, context=longest).device_free >= 0
        if machine is H100:
            with pytest.raises(BudgetError, match=f"at most {longest} tokens"):
                thinking(machine, context=longest + 1)


def test_a_context_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ContextError, match="262144"):
        thinking(H200, context=262_145)
    with pytest.raises(InputError, match=r"0\.6"):
        thinking(H200, hit_rate=1.5)


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("size", [8 * GB, 24 * GB, 36 * GB])
def test_the_change_that_is_named_makes_it_possible(size: int) -> None:
    with pytest.raises(BudgetError) as caught:
        thinking(replace(H100, device_bytes=size), context=4096)
    named = re.search(r"give the device ([\d,]+) bytes", caught.value.mend, re.IGNORECASE)
    assert named
    enough = int(named[1].replace(",", ""))
    assert thinking(replace(H100, device_bytes=enough), context=4096).device_free >= 0
    with pytest.raises(BudgetError):
        thinking(replace(H100, device_bytes=enough - 1), context=4096)


def test_a_shorter_context_is_named_where_it_is_enough() -> None:
    tight = replace(H100, device_bytes=40 * GB)
    with pytest.raises(BudgetError, match=r"Plan a context of at most (\d+) tokens") as caught:
        thinking(tight, context=100_000)
    longest = int(re.search(r"at most (\d+)", caught.value.mend)[1])  # type: ignore[index]
    assert thinking(tight, context=longest).placement == "tiered"


def test_a_budget_for_weights_below_the_smallest_is_refused_with_it() -> None:
    with pytest.raises(BudgetError) as caught:
        thinking(H100, weights=10 * GB)
    least = int(re.search(r"of (\d+) bytes", caught.value.mend)[1])  # type: ignore[index]
    assert thinking(H100, weights=least).slots_per_layer == 8


def test_what_keeps_a_model_from_lying_on_all_gpus_is_told_to_the_byte() -> None:
    eight = replace(H100, gpus=8)
    found = thinking(eight, context=4096)
    assert (found.placement, found.devices) == ("tiered", 1)
    assert "on each of 8 GPUs; tiered placement uses one, so 7 would idle" in found.lacks
    more = int(found.lacks.split()[0].replace(",", ""))
    enough = replace(eight, device_bytes=eight.device_bytes + more)
    assert thinking(enough, context=4096).placement == "sharded"
    assert thinking(enough, context=4096).lacks == "nothing"
    less = replace(enough, device_bytes=enough.device_bytes - 1)
    assert thinking(less, context=4096).lacks.startswith("1 bytes")
    assert thinking(H100).lacks.endswith("bytes on the device")
    share = thinking(enough, context=4096).device_weights
    assert thinking(enough, weights=40 * GB).lacks.startswith(f"{share - 40 * GB:,} bytes")


# ------------------------------------------------------------------------------ against real stores


@pytest.mark.parametrize("unit", ["expert", "layer"])
@pytest.mark.parametrize("budget", [20_000_000, 26_000_000])
def test_bytes_and_slots_are_those_of_the_live_store(unit: Any, budget: int) -> None:
    folder = asset("k2-nano")
    config = K2Config.from_json(folder)
    found = plan(config, CPU, Wish(context=512, unit=unit, weights=budget))
    places = Places(placement="tiered", device="cpu", device_budget=budget, unit=unit)
    store = load_model(folder, places).store
    assert isinstance(store, Tiered)
    assert found.placement == "tiered"
    assert found.slots_per_layer == store.slots
    assert found.slot_bytes == store.needs.slot
    assert found.device_weights == store.offload.device_budget
    assert found.disk_bytes == bytes_on_disk(config)


def test_a_model_that_fits_is_planned_whole_as_it_would_be_loaded() -> None:
    folder = asset("k2-nano")
    found = plan(K2Config.from_json(folder), CPU, Wish(context=512))
    assert (found.placement, found.hit_rate) == ("resident", 1.0)
    assert load_model(folder).store.__class__.__name__ == "Resident"


def test_decoding_takes_what_was_planned_where_the_disk_alone_takes_time(
    tmp_path: Path, tiny_config: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes 10 ms an expert by a clock of its own, so that no other program counts."""
    scheme = {"quantization_config": K2_THINKING.quantization_config, "dtype": "bfloat16"}
    config = tiny_config(**scheme, n_routed_experts=32, num_experts_per_tok=8)
    folder, wait, reads = write_synthetic(config, tmp_path / "slow"), 0.01, []
    real = Slabs.read_into

    def counted(slabs: Slabs, layer: int, expert: int, slab: Any) -> int:
        reads.append(expert)
        return real(slabs, layer, expert, slab)

    monkeypatch.setattr(Slabs, "read_into", counted)
    least = load_model(folder, "tiered").store.needs  # type: ignore[attr-defined]
    budget = least.smallest + 2 * 8 * least.slot  # 16 of 32 slots
    model = load_model(folder, Places(placement="tiered", device_budget=budget))
    cache, tokens, draw = LatentCache(config), 150, torch.Generator().manual_seed(0)
    for place in range(tokens + 10):
        if place == 10:
            reads.clear()
        ids = torch.randint(0, 640, (1, 1), generator=draw)
        with torch.inference_mode():
            model(ids, model.step(1, cache=cache, tap=untouched))
    measured = tokens / (len(reads) * wait)
    slab = model.store.slab_bytes  # type: ignore[attr-defined]
    machine = replace(CPU, host_bytes=0, disk_rate=slab / wait, memory_rate=1e15, expert_rate=1e15)
    planned = plan(config, machine, Wish(context=64, weights=budget))
    assert (planned.binding, planned.slots_per_layer) == (DISK, 16)
    assert planned.tok_s == pytest.approx(measured, rel=0.25)  # even routing is assumed
    hits = 1 - len(reads) / (tokens * 8 * 2)
    known = plan(config, machine, Wish(context=64, weights=budget, hit_rate=hits))
    assert known.tok_s == pytest.approx(measured, rel=0.01)


def test_experts_come_from_the_disk_no_faster_than_they_are_put_into_slots() -> None:
    wish, cold = Wish(context=64), replace(CPU, host_bytes=0)
    slow = plan(K2_THINKING, replace(cold, fetch_rate=cold.disk_rate / 2), wish)
    plain = plan(K2_THINKING, cold, wish)
    assert slow.seconds_per_token["disk"] == pytest.approx(2 * plain.seconds_per_token["disk"])
    assert slow.load_seconds == plain.load_seconds  # what is no expert is only read
    quick = plan(K2_THINKING, replace(cold, fetch_rate=2 * cold.disk_rate), wish)
    assert quick.tok_s == plain.tok_s
