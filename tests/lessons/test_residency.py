"""The picture of residency: exact replays of what moved, drawn and followed."""

import time
from pathlib import Path

import numpy as np
import pytest

import k2lab
from k2lab.engine.events import ExpertsMoved
from k2lab.errors import TraceError
from k2lab.lessons.chart import PLOTLY
from k2lab.lessons.residency import Residency, follow, megabytes, misses, slots, stalls
from k2lab.run import LabRun
from k2lab.trace.trace import Trace


@pytest.fixture(scope="module")
def run(small_checkpoint: Path) -> LabRun:
    probe = k2lab.load(small_checkpoint, placement="tiered")
    need = probe.model.store.needs  # type: ignore[attr-defined]
    budget = need.smallest + 2 * need.slot
    lab = k2lab.load(small_checkpoint, placement="tiered", device_budget=budget)
    return lab.run("Hello", max_tokens=12).wait()


def test_sums_over_tokens_are_the_sums_of_the_moves(run: LabRun) -> None:
    moved = run.trace.moved
    assert misses(moved).shape == (2, sum(each.tokens for each in moved))
    assert misses(moved).sum() == pytest.approx(sum(each.misses.sum() for each in moved))
    brought = sum(sum(each.bytes_moved.values()) for each in moved)
    assert megabytes(moved).sum() * 1e6 == pytest.approx(brought)
    assert stalls(moved).sum() / 1e3 == pytest.approx(sum(each.stall.sum() for each in moved))


def test_slots_replayed_are_those_of_the_store(run: LabRun) -> None:
    store = run.lab.model.store
    for layer, held in enumerate(store._held):  # type: ignore[attr-defined]
        last = slots(run.trace.moved, layer)[:, -1]
        assert {
            int(last[slot]): slot for slot in range(len(last)) if last[slot] >= 0
        } == held.slot_of


def test_every_chosen_expert_lies_in_a_slot_after_its_forward(run: LabRun) -> None:
    trace = run.trace
    for layer in range(2):
        held = slots(trace.moved, layer)
        for each in trace.moved:
            if each.tokens == 1:
                asked = set(trace.experts[each.start, layer].tolist())
                assert asked <= set(held[:, each.start].tolist())


def test_the_chart_is_drawn_in_both_ways(run: LabRun, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Residency(run.trace, layer=2)._repr_mimebundle_()
    assert bundle["text/plain"].startswith("Residency(slots=3, layer=2)")
    assert len(bundle[PLOTLY]["data"]) == 4
    monkeypatch.setenv("K2LAB_STATIC", "1")
    assert PLOTLY not in Residency(run.trace)._repr_mimebundle_()


def test_a_run_is_followed_to_its_end(run: LabRun) -> None:
    again = run.lab.run("Hello", max_tokens=8)
    shown = follow(again)
    again.wait()
    for _ in range(100):
        if bytes(shown.value) == Residency(again.trace).picture():
            break
        time.sleep(0.1)
    assert bytes(shown.value) == Residency(again.trace).picture()
    picture = shown.pictures()[0]
    assert picture.png == Residency(again.trace).picture()
    assert repr(shown) == picture.title == "Residency(slots=3, layer=busiest)"


def test_a_run_without_moves_says_how_to_get_some(small_checkpoint: Path) -> None:
    whole = k2lab.load(small_checkpoint).run("Hello", max_tokens=2).wait()
    with pytest.raises(TraceError, match="placement='tiered'"):
        Residency(whole.trace).picture()
    assert follow(whole).pictures()[0].png is None


def test_a_layer_without_slots_is_refused(run: LabRun) -> None:
    with pytest.raises(TraceError, match="1 to 2"):
        Residency(run.trace, layer=0).picture()


def test_more_layers_and_tokens_than_fit_are_drawn(run: LabRun) -> None:
    about = run.trace.about
    trace = Trace(about)
    empty = np.zeros(about.moe_layers)
    for token in range(300):
        loads = np.array([[0, 0, token % 8, -1]], np.int32)
        moved = ExpertsMoved(token, 1, 3, empty, empty, empty, loads, {"disk→host": token})
        trace.moved.append(moved)
    assert slots(trace.moved, 0)[0].tolist() == [token % 8 for token in range(300)]
    assert Residency(trace, layer=1).picture().startswith(b"\x89PNG")
