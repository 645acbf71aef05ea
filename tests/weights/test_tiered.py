"""Offloaded experts: the same bits at every budget, exact counts, and errors that pass."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import k2lab
from k2lab.engine.events import ExpertsMoved, Routed
from k2lab.engine.taps import untouched, watch
from k2lab.errors import BudgetError, CheckpointError
from k2lab.lab import Lab
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.load import Places, load_model
from k2lab.model.synthetic import write_synthetic
from k2lab.paths import asset
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.tensors import int4cpu
from k2lab.tensors.shards import Shards
from k2lab.weights import forms, resident, stacks, tiered
from k2lab.weights.budget import Offload, needs
from k2lab.weights.host import Host
from k2lab.weights.links import Direct, Event, Past
from k2lab.weights.residency import by_name, simulate
from k2lab.weights.resident import Resident
from k2lab.weights.slab import Slabs
from k2lab.weights.tiered import DISK, HOST, Tiered

Configs = Callable[..., K2Config]
Write = Callable[..., Path]
INT4: dict[str, Any] = {"quantization_config": K2_NANO.quantization_config, "dtype": "bfloat16"}
CPU = torch.device("cpu")
QUESTION = "What do 3 x lamp and 2 x rope cost?"


def outputs(model: K2) -> list[Tensor]:
    """Logits of a prefill and of four single tokens after it."""
    cache = LatentCache(model.config)
    found = []
    with torch.inference_mode():
        for ids in (range(3, 40), [1], [77]):
            step = model.step(len(ids), cache=cache, tap=untouched)
            found.append(model(torch.tensor([list(ids)]), step))
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


class Checkpoint:
    """A folder, and tiered networks of it that are closed after the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, K2Config.from_json(folder)
        self.slabs = Slabs(Shards(folder), self.config)
        self.stores: list[Tiered] = []

    def resident(self, dtype: torch.dtype = torch.float32, **options: Any) -> K2:
        read = Shards(self.folder).read
        return K2(self.config, Resident(self.config, read, dtype=dtype, **options))

    def offload(self, slots: int, **options: Any) -> Offload:
        """Options with the budget that gives so many slots per layer (or so many layers)."""
        plain = Offload(**{"device": CPU, "dtype": torch.float32, "device_budget": 0} | options)
        need = needs(self.config, self.slabs.layout, plain)
        each = (
            self.config.n_routed_experts if plain.unit == "layer" else len(self.config.moe_layers)
        )
        room = need.dense + need.staging + slots * each * need.slot
        return replace(plain, device_budget=room)

    def tiered(self, slots: int, link: Any = None, **options: Any) -> K2:
        store = Tiered(self.config, self.slabs, self.offload(slots, **options), link)
        self.stores.append(store)
        return K2(self.config, store)


def closing(folder: Path) -> Iterator[Checkpoint]:
    checkpoint = Checkpoint(folder)
    yield checkpoint
    for store in checkpoint.stores:
        store.close()


@pytest.fixture
def nano() -> Iterator[Checkpoint]:
    yield from closing(asset("k2-nano"))


@pytest.fixture
def tiny(tmp_path: Path, tiny_config: Configs, random_checkpoint: Write) -> Iterator[Checkpoint]:
    """16 experts, 4 a token, INT4."""
    yield from closing(random_checkpoint(tmp_path / "tiny", tiny_config(**INT4), 3))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of any size count as large."""
    for module in (stacks, forms, resident):
        monkeypatch.setattr(module, "LARGE", 0)


# ----------------------------------------------------------------------------------- equal numbers


@pytest.mark.parametrize("watched", [False, True], ids=["taps off", "taps on"])
def test_k2_nano_gives_the_same_logits_at_every_budget(
    watched: bool, nano: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    tap = watch("*", nano.config, lambda site, _: seen.append(site)) if watched else untouched
    resident = nano.resident()
    leases = nano.tiered(8).store._leases  # the same at every budget, and slow to read
    monkeypatch.setattr(tiered, "read_dense", lambda *_: leases)
    ids = torch.tensor([list(range(3, 15))])

    def logits(model: K2) -> list[Tensor]:
        with torch.inference_mode():
            cache = LatentCache(model.config)
            steps = [ids, ids[:, 4:5]]
            return [model(i, model.step(i.shape[1], cache=cache, tap=tap)) for i in steps]

    expected = logits(resident)
    for slots in range(8, 65):
        assert same(logits(nano.tiered(slots)), expected), f"{slots} slots"
    for layers in range(1, 6):
        assert same(logits(nano.tiered(layers, unit="layer")), expected), f"{layers} layers"
    places = Places(placement="sharded", device=("cpu", "cpu"))
    assert same(logits(load_model(nano.folder, places)), expected)
    assert watched == ("layers.5.mlp.experts.rows" in seen)


def test_all_stores_agree_on_k2_nano() -> None:
    folder = asset("k2-nano")
    models = [
        load_model(folder, places)
        for places in (
            "resident",
            Places(placement="sharded", device=("cpu", "cpu", "cpu")),
            "tiered",
            Places(placement="tiered", device_budget="12MB"),
            Places(placement="tiered", device_budget="20MB", unit="layer"),
        )
    ]
    expected = outputs(models[0])
    assert all(same(outputs(model), expected) for model in models[1:])
    shapes = load_model(folder, "meta")
    ids = torch.zeros(1, 5, dtype=torch.long, device="meta")
    blank = shapes(ids, shapes.step(5, cache=None, tap=untouched))
    assert (*blank.shape[:2], blank.shape[2]) == (1, 5, expected[0].shape[2])


@pytest.mark.parametrize("form", ["packed", "expanded"])
@pytest.mark.parametrize("host_slots", [0, 1, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_and_host_tiers_change_no_bit(
    form: str, host_slots: int, dtype: torch.dtype, tiny: Checkpoint
) -> None:
    expected = outputs(tiny.resident(dtype))
    budget = host_slots * 2 * tiny.slabs.layout.nbytes
    for slots in (4, 5, 9, 16):
        model = tiny.tiered(slots, form=form, dtype=dtype, host_budget=budget)
        assert same(outputs(model), expected), f"{slots} slots"


@pytest.mark.parametrize("many", [0, 1, 3, 128], ids=lambda many: f"codes up to {many} rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_experts_are_read_as_codes_and_change_no_bit(
    many: int, dtype: torch.dtype, tiny: Checkpoint, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int4cpu, "MANY", many)
    expected = outputs(tiny.resident(dtype))
    exact = outputs(tiny.resident(dtype, keeping="expanded"))
    if dtype == torch.float32:  # bfloat16 is rounded after each product: as far off as two stores
        for one, other in zip(expected, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for slots, host_slots in ((4, 0), (5, 3), (9, 16), (16, 0)):
        budget = host_slots * 2 * tiny.slabs.layout.nbytes
        model = tiny.tiered(slots, dtype=dtype, host_budget=budget)
        assert isinstance(model.store, Tiered)
        assert model.store.form == "packed"
        assert same(outputs(model), expected), f"{slots} slots"
        assert same(outputs(model), expected), f"{slots} slots, once more"
    whole = tiny.tiered(1, dtype=dtype, unit="layer")
    assert same(outputs(whole), expected)


def test_each_large_expert_is_computed_when_it_has_come(
    tiny: Checkpoint, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "JOB_BYTES", 0)
    model = tiny.tiered(4, readers=4)
    gates = {expert: threading.Event() for expert in (1, 4, 9, 12)}
    real, computed = Slabs.read_into, threading.Semaphore(0)
    swiglu = int4cpu.swiglu

    def held(self: Slabs, layer: int, expert: int, slab: Any) -> int:
        assert gates[expert].wait(10)
        return real(self, layer, expert, slab)

    def noted(*given: Any) -> Tensor:
        computed.release()
        return swiglu(*given)

    monkeypatch.setattr(Slabs, "read_into", held)
    monkeypatch.setattr(int4cpu, "swiglu", noted)
    batch = model.store.experts(1, torch.tensor([list(gates)]))
    with ThreadPoolExecutor(1) as other:
        rows = other.submit(batch.rows, torch.ones(1, 64))
        for gate in gates.values():
            assert not computed.acquire(timeout=0.02)
            gate.set()
            assert computed.acquire(timeout=10)  # before the next one has come
        assert rows.result().shape == (1, 4, 64)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("prefetch", [False, True])
def test_whole_layers_change_no_bit(layers: int, prefetch: bool, tiny: Checkpoint) -> None:
    model = tiny.tiered(layers, unit="layer", prefetch=prefetch)
    assert same(outputs(model), outputs(tiny.resident()))
    ledger = model.store.ledger()
    if layers == 2:  # all there is
        assert ledger.bytes_moved[DISK] < 2 * 16 * (tiny.slabs.layout.nbytes + 17)
    else:
        assert ledger.misses > 0


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"num_experts_per_tok": 1}])
def test_plain_checkpoints_too(
    changes: dict[str, Any], tmp_path: Path, tiny_config: Configs, random_checkpoint: Write
) -> None:
    for checkpoint in closing(random_checkpoint(tmp_path / "plain", tiny_config(**changes), 3)):
        expected = outputs(checkpoint.resident())
        for form in ("expanded", "packed"):
            for slots in (checkpoint.config.num_experts_per_tok, 7):
                assert same(outputs(checkpoint.tiered(slots, form=form)), expected)


def test_prefetching_changes_no_bit_and_counts_what_it_wastes(tiny: Checkpoint) -> None:
    model, whole = tiny.tiered(5, prefetch=True), tiny.resident()
    assert same(outputs(model), outputs(whole))
    with torch.inference_mode():
        for token in range(40, 60):
            first, second = (
                each(torch.tensor([[token]]), each.step(1, cache=None, tap=untouched))
                for each in (model, whole)
            )
            assert torch.equal(first, second)
    ledger = model.store.ledger()
    assert ledger.prefetched_bytes > 0
    assert 0 <= ledger.wasted_bytes <= ledger.prefetched_bytes


def test_whom_the_next_router_is_surest_of_is_fetched_ahead(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, inputs = tiny.tiered(5, prefetch=True), [], []
    assert isinstance(model.store, Tiered)
    real = model.store.hint

    def noted(layer: int, ids: Tensor, confidence: float) -> None:
        asked.append((layer, ids.flatten().tolist()))
        real(layer, ids, confidence)

    def tap(site: str, value: Tensor) -> Tensor:
        if site == "layers.1.middle":
            inputs.append(value)
        return value

    monkeypatch.setattr(model.store, "hint", noted)
    with torch.inference_mode():
        model(torch.tensor([[9]]), model.step(1, cache=None, tap=tap))
        with model.store.dense(1, "norms") as w:
            x = model.layers[1].norm(inputs[0], w.post_attention_layernorm)
        with model.store.dense(2, "mlp.gate") as w:
            scores = (x @ w.weight.T).sigmoid() + w.e_score_correction_bias
    assert asked == [(2, [int(scores.argmax())])]


def test_taps_see_the_same_arrays_and_edit_the_same(nano: Checkpoint) -> None:
    def seen(model: K2) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        tap = watch(
            "layers.*", model.config, lambda site, v: values.update({site: v.numpy().copy()})
        )
        with torch.inference_mode():
            ids = torch.tensor([list(range(9))])
            values["logits"] = model(ids, model.step(9, cache=None, tap=tap)).numpy()
        return values

    first, second = seen(nano.resident()), seen(nano.tiered(8))
    assert first.keys() == second.keys()
    assert "layers.3.mlp.experts.rows" in first
    for site, value in first.items():
        assert np.array_equal(value, second[site]), site


def test_a_whole_run_is_the_same_with_route_capture(nano: Checkpoint) -> None:
    whole, few = k2lab.load(), k2lab.load(placement="tiered", device_budget="12MB")
    first = whole.run(QUESTION, max_tokens=40).wait().trace
    second = few.run(QUESTION, max_tokens=40).wait().trace
    assert first.ids.tolist() == second.ids.tolist()
    assert np.array_equal(first.experts, second.experts)
    assert np.array_equal(first.weights, second.weights)
    assert not first.moved
    assert [each.start for each in second.moved][:2] == [0, second.moved[0].tokens]


# ------------------------------------------------------------------------------------ exact counts


@pytest.mark.parametrize("policy", ["lru", "lfu", "belady"])
@pytest.mark.parametrize("slots", [8, 13, 40])
def test_the_replay_counts_what_the_store_counted(
    policy: str, slots: int, nano: Checkpoint
) -> None:
    tokenizer = k2lab.load().tokenizer
    ids = tokenizer.encode("3 x lamp and 2 x rope. " * 4)

    def events(model: K2) -> list[Any]:
        lab = Lab("nano", model, tokenizer, tuple)
        return list(lab.generate(ids, max_tokens=12))

    prompt, *later = [each.experts for each in events(nano.resident()) if isinstance(each, Routed)]
    routes = [prompt, *(token[None] for each in later for token in each)]  # some at a time
    model = nano.tiered(slots, policies=by_name(policy, routes))
    moved = [each for each in events(model) if isinstance(each, ExpertsMoved)]
    replay = simulate(routes, slots=slots, policy=policy)  # type: ignore[arg-type]
    assert np.array_equal(np.array([each.hits for each in moved]), replay.hits)
    assert np.array_equal(np.array([each.misses for each in moved]), replay.misses)
    loads = [(number, *row) for number, each in enumerate(moved) for row in each.loads.tolist()]
    told = [
        (number, layer, load.slot, load.expert, -1 if load.evicted is None else load.evicted)
        for number, layer, load in replay.loads
    ]
    assert sorted(loads) == sorted(told)
    ledger = model.store.ledger()
    assert (ledger.hits, ledger.misses) == (replay.hits.sum(), replay.misses.sum())
    assert all(each.slots == slots for each in moved)


def test_the_ledger_counts_every_byte(tiny: Checkpoint) -> None:
    model = tiny.tiered(16)
    outputs(model)
    ledger = model.store.ledger()
    slab = tiny.slabs.layout.nbytes
    # Beyond the slab two shapes are read along, 8 bytes each.
    assert ledger.bytes_moved == {DISK: ledger.misses * (slab + 16)}
    outputs(model)
    assert ledger.bytes_moved == {DISK: ledger.misses * (slab + 16)}
    assert ledger.misses == len(model.store._held[0].slot_of) + len(model.store._held[1].slot_of)
    assert ledger.stall_seconds > 0


def test_the_host_tier_saves_the_disk(tiny: Checkpoint) -> None:
    few = tiny.tiered(4, host_budget=2 * 16 * tiny.slabs.layout.nbytes)
    outputs(few)
    ledger = few.store.ledger()
    slab = tiny.slabs.layout.nbytes
    assert ledger.bytes_moved[HOST] == ledger.misses * slab
    distinct_experts = len(few.store._host._held[0].slot_of) + len(few.store._host._held[1].slot_of)
    assert ledger.bytes_moved[DISK] == distinct_experts * (slab + 16)
    assert ledger.bytes_moved[DISK] < ledger.bytes_moved[HOST]


def test_what_is_read_straight_into_its_slot_counts_as_no_copy(
    tiny: Checkpoint, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "JOB_BYTES", 0)
    filled, real, read = 0, forms.Packed.fill, Slabs.read_into
    counting = threading.Lock()

    def noted(self: forms.Packed, *given: Any) -> Event:
        nonlocal filled
        with counting:
            filled += 1
        return real(self, *given)

    def slow(self: Slabs, layer: int, expert: int, slab: Any) -> int:
        time.sleep(0.002)  # several at a time, of which host memory holds one
        return read(self, layer, expert, slab)

    monkeypatch.setattr(forms.Packed, "fill", noted)
    monkeypatch.setattr(Slabs, "read_into", slow)
    model = tiny.tiered(4, host_budget=2 * tiny.slabs.layout.nbytes)
    outputs(model)
    ledger = model.store.ledger()
    assert 0 < filled < ledger.misses
    assert ledger.bytes_moved[HOST] == filled * tiny.slabs.layout.nbytes


def test_moves_are_told_once(tiny: Checkpoint) -> None:
    model = tiny.tiered(6)
    outputs(model)
    moves = model.store.take_moves()
    ledger = model.store.ledger()
    assert sum(moves.misses) == ledger.misses == len(moves.loads)
    assert sum(moves.hits) == ledger.hits
    assert moves.bytes_moved == ledger.bytes_moved
    assert sum(moves.stall_seconds) == pytest.approx(ledger.stall_seconds)
    empty = model.store.take_moves()
    assert (sum(empty.hits), sum(empty.misses), empty.loads, empty.bytes_moved) == (0, 0, (), {})


# ----------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("unit", ["expert", "layer"])
def test_a_budget_too_small_is_refused_with_the_number_that_works(
    unit: str, nano: Checkpoint
) -> None:
    least = nano.offload(8 if unit == "expert" else 1, unit=unit)
    with pytest.raises(BudgetError) as caught:
        Tiered(nano.config, nano.slabs, replace(least, device_budget=least.device_budget - 1))
    assert f"device_budget={least.device_budget} " in caught.value.mend
    store = Tiered(nano.config, nano.slabs, least)
    assert store.room == ((5, 8) if unit == "expert" else (1, 64))
    store.close()
    with pytest.raises(BudgetError, match=f"{least.device_budget:,}"):
        k2lab.load(placement="tiered", unit=unit, device_budget="1MB")  # type: ignore[arg-type]


def test_a_larger_budget_is_used(nano: Checkpoint) -> None:
    rooms = [nano.tiered(slots).store.room.slots for slots in (8, 9, 33, 64, 80)]
    assert rooms == [8, 9, 33, 64, 64]


MEASURE = """
import ctypes, gc, sys, torch
from pathlib import Path
import k2lab
from k2lab.engine.taps import untouched
from k2lab.tensors import int4cpu  # and its compiler, which are no weights

def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024

folder, budget = sys.argv[1], int(sys.argv[2])
warm = k2lab.load(); warm.logits(torch.tensor([[1, 2, 3]])); del warm; gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # else what the first model took is used again, uncounted
before = resident()
lab = k2lab.load(folder, placement="tiered", device_budget=budget)
model = lab.model
most = 0
for number in range(60):
    with torch.inference_mode():
        ids = torch.tensor([[number * 19 % 640]])
        model(ids, model.step(1, cache=None, tap=untouched))
    most = max(most, resident() - before)
print(model.store.form, model.store.slots, most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc to measure with")
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_memory_stays_within_the_budget(share: float, tmp_path: Path, tiny_config: Configs) -> None:
    """Large enough that a twentieth of the budget is more than what Python itself takes."""
    config = tiny_config(
        **INT4, num_hidden_layers=2, hidden_size=1024, moe_intermediate_size=1024,
        n_routed_experts=160, num_experts_per_tok=8,
    )  # fmt: skip
    folder = write_synthetic(config, tmp_path / "wide")
    slabs = Slabs(Shards(folder), config)
    plain = Offload(device=CPU, dtype=torch.float32, device_budget=0)
    need = needs(config, slabs.layout, plain)
    budget = need.smallest + int((need.most - need.smallest) * share)
    given = [sys.executable, "-c", MEASURE, str(folder), str(budget)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(given, capture_output=True, text=True, check=True, env=environment)
    form, slots, most = done.stdout.split()
    assert int(slots) < 160 or share == 1.0
    assert budget * 0.6 <= int(most) <= budget * 1.05, f"{form}: {int(most):,} of {budget:,} bytes"


# ------------------------------------------------------------------------------------------ errors


def lose(file: Path) -> None:
    file.rename(file.with_suffix(".away"))


def shrink(file: Path) -> None:
    file.with_suffix(".away").write_bytes(file.read_bytes())
    os.truncate(file, 60_000)


def forbid(file: Path) -> None:
    lose(file)
    file.mkdir()


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("unit", ["expert", "layer"])
@pytest.mark.parametrize("damage", [lose, shrink, forbid])
def test_a_lost_shard_stops_the_run_and_the_session_goes_on(
    damage: Callable[[Path], None], unit: str, size: str, tmp_path: Path, small_checkpoint: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if size == "large":  # read straight into their slots
        request.getfixturevalue("large")
    folder = tmp_path / "copy"
    folder.mkdir()
    for each in small_checkpoint.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    file = folder / "model.safetensors"
    whole = k2lab.load(small_checkpoint)
    probe = k2lab.load(folder, placement="tiered", unit=unit)  # type: ignore[arg-type]
    need = probe.model.store.needs
    lab = k2lab.load(folder, placement="tiered", unit=unit, device_budget=need.smallest)  # type: ignore[arg-type]
    calls = 0

    def tap(site: str, value: Any) -> Any:
        nonlocal calls
        calls += site == "layers.2.input"
        if calls == 4 and site == "layers.2.input":
            damage(file)
        return value

    run = lab.run("Hello", max_tokens=20, tap=tap).wait()
    assert run.state == "error"
    assert run.trace.stopped.reason == "error"
    detail = run.trace.stopped.detail
    assert "model.safetensors" in detail
    assert ".mlp.experts." in detail
    assert 3 <= len(run.trace) - len(run.trace.ids[: run.trace.moved[0].tokens]) <= 5
    again = lab.run("Hello", max_tokens=20).wait()
    assert again.state == "error"
    if file.is_dir():
        file.rmdir()
    file.with_suffix(".away").replace(file)
    after = lab.run("Hello", max_tokens=20).wait()
    assert after.state == "done", after.error
    assert after.trace.ids.tolist() == whole.run("Hello", max_tokens=20).wait().trace.ids.tolist()


def test_a_stopped_run_leaves_a_store_that_works(tiny: Checkpoint) -> None:
    model = tiny.tiered(4)

    def stop(site: str, value: Any) -> Any:
        if site == "layers.2.mlp.shared_experts.output":  # experts are on their way
            raise KeyboardInterrupt
        return value

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), torch.inference_mode():
            model(torch.tensor([[9, 8, 7]]), model.step(3, cache=None, tap=stop))
    assert same(outputs(model), outputs(tiny.resident()))


def test_an_interrupted_wait_for_an_expert_that_cannot_come_is_not_forgotten(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.tiered(4)
    with monkeypatch.context() as damaged:

        def fail(*_: object) -> int:
            raise CheckpointError("The disk is gone.", expected="a disk.", mend="Bring it back.")

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        damaged.setattr(Slabs, "read_into", fail)
        damaged.setattr(Future, "exception", interrupt)  # where ^C finds whoever waits
        with pytest.raises(KeyboardInterrupt):
            outputs(model)
    assert same(outputs(model), outputs(tiny.resident()))


def test_an_expert_that_is_still_being_read_is_given_to_nobody(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tiny.config, tiny.slabs, tiny.offload(4, host_budget=2**20), Direct())
    real, begun, gate, got = Slabs.read_into, threading.Event(), threading.Event(), {}

    def read(self: Slabs, layer: int, expert: int, slab: Any) -> int:
        if not begun.is_set():  # the first reads until the others have come and gone
            begun.set()
            assert gate.wait(10)
        return real(self, layer, expert, slab)

    class Slots:
        def place(self, frame: int, slot: int) -> None: ...

        def fill(self, frame: int, slot: int, slab: Tensor, after: Event) -> Event:
            got[slot] = slab.clone()
            return Past()

    def bring(slot: int) -> None:
        host.bring(0, 5, Slots(), 0, slot, Past())  # type: ignore[arg-type]

    monkeypatch.setattr(Slabs, "read_into", read)
    first = threading.Thread(target=bring, args=(0,))
    first.start()
    assert begun.wait(10)
    bring(1)
    bring(2)
    gate.set()
    first.join()
    assert torch.equal(got[1], got[0])
    assert torch.equal(got[2], got[0])


LOAD = """
import sys, k2lab
from k2lab.weights import slab
real = slab.Slabs.read
def slow(self, key):
    print("reading", flush=True)
    import time; time.sleep(0.05)
    return real(self, key)
slab.Slabs.read = slow
k2lab.load(sys.argv[1], placement="tiered")
print("loaded", flush=True)
"""


def test_killed_during_load_leaves_no_half_state(tmp_path: Path, small_checkpoint: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for each in small_checkpoint.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    before = {each.name: each.read_bytes() for each in folder.rglob("*")}
    given = [sys.executable, "-c", LOAD, str(folder)]
    with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        assert process.stdout.readline() == "reading\n"
        process.kill()
        assert "loaded" not in process.stdout.read()
    assert {each.name: each.read_bytes() for each in folder.rglob("*")} == before
    lab, whole = k2lab.load(folder, placement="tiered"), k2lab.load(small_checkpoint)
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(lab.logits(ids), whole.logits(ids))


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="the system does not count reads")
def test_two_loads_share_the_page_cache(tiny: Checkpoint) -> None:
    """The second store asks the disk for nothing: its reads come from the pages of the first."""

    def from_disk() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])

    outputs(tiny.tiered(16))
    before = from_disk()
    outputs(tiny.tiered(16))
    moved = tiny.stores[1].ledger().bytes_moved[DISK]
    assert moved > 80_000
    assert from_disk() - before < moved / 10


# -------------------------------------------------------------------------------------------- time


class Late(Direct):
    """A link whose copies are made later, by a thread, and read their source only then."""

    apart = True

    class Done:
        def __init__(self) -> None:
            self.happened = threading.Event()

        def synchronize(self) -> None:
            assert self.happened.wait(10)

    def copy(self, source: Tensor, target: Tensor, after: Event) -> Event:
        done = Late.Done()

        def work() -> None:
            after.synchronize()
            time.sleep(0.002)
            target.copy_(source)
            done.happened.set()

        threading.Thread(target=work, daemon=True).start()
        return done


def test_the_network_waits_for_copies_that_come_late(tiny: Checkpoint) -> None:
    expected = outputs(tiny.resident())
    for host_slots in (0, 4):
        budget = host_slots * 2 * tiny.slabs.layout.nbytes
        model = tiny.tiered(4, Late(), form="packed", host_budget=budget)
        assert same(outputs(model), expected)


def test_all_misses_of_a_layer_are_begun_before_anything_is_computed(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "JOB_BYTES", 0)
    model = tiny.tiered(4, readers=8)
    gate, begun = threading.Event(), threading.Semaphore(0)
    real = Slabs.read_into

    def held(self: Slabs, layer: int, expert: int, slab: Any) -> int:
        begun.release()
        assert gate.wait(10)
        return real(self, layer, expert, slab)

    monkeypatch.setattr(Slabs, "read_into", held)
    batch = model.store.experts(1, torch.tensor([[1, 4, 9, 12]]))
    assert all(begun.acquire(timeout=10) for _ in range(4))
    gate.set()
    assert batch.rows(torch.ones(1, 64)).shape == (1, 4, 64)


def test_half_of_the_readers_read_while_the_others_fill_slots(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "JOB_BYTES", 0)
    model, real = tiny.tiered(4, readers=4), Slabs.read_into
    reading, most, counting = 0, 0, threading.Lock()

    def counted(self: Slabs, layer: int, expert: int, slab: Any) -> int:
        nonlocal reading, most
        with counting:
            reading += 1
            most = max(most, reading)
        time.sleep(0.01)
        try:
            return real(self, layer, expert, slab)
        finally:
            with counting:
                reading -= 1

    monkeypatch.setattr(Slabs, "read_into", counted)
    assert same(outputs(model), outputs(tiny.resident()))
    assert most == 2
