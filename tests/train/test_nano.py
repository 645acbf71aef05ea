"""K2-nano from nothing: stages follow each other as if one had been trained after the other."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from k2lab.paths import asset
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data, nano
from k2lab.train.data import Batch
from k2lab.train.nano import train
from k2lab.train.plan import Plan
from k2lab.train.record import planned, record
from k2lab.train.sft import Progress, Training, Update

STAGES = (
    Plan(seed=3, steps=4, batch_tokens=800, batches_per_step=1, warmup=1, ends=(2, 3)),
    Plan(seed=3, begin=4, steps=7, peak=0.5, batch_tokens=800, batches_per_step=1, ends=(5, 6)),
)
MORE = replace(STAGES[1], more=(("reflect", 99.0),))


def nothing(progress: Progress) -> None:
    """A report that nobody reads."""


@pytest.fixture
def work(
    tiny_config: Callable[..., K2Config],
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.setattr(data, "POOL", 16)
    config = tiny_config(
        num_hidden_layers=2, quantization_config=K2_NANO.quantization_config, dtype="bfloat16"
    )
    monkeypatch.setattr(nano, "K2_NANO", config)
    tiny_tokenizer.save(tmp_path / "work" / "tokenizer")
    return tmp_path / "work"


def same(one: Training, two: Training) -> bool:
    pairs = zip(one.store.parameters.values(), two.store.parameters.values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_stages_follow_each_other(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "parts")
    whole = train(work, STAGES, nothing)
    first = train(tmp_path / "parts", STAGES[:1], nothing)
    parts = train(tmp_path / "parts", STAGES, nothing)
    assert same(whole, parts) and not same(first, parts)
    assert [sitting["step"] for sitting in whole.sittings] == [0, 4]
    assert parts.sittings == whole.sittings
    assert (whole.step, whole.tokens, whole.place) == (7, parts.tokens, parts.place)


def test_a_stage_begins_at_the_mean_of_the_one_before(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average, update = Training._average, Training.update
    ends, begins = dict[int, dict[str, torch.Tensor]](), dict[int, dict[str, torch.Tensor]]()

    def ending(training: Training) -> None:
        ends[training.step] = training.store.snapshot()
        average(training)

    def beginning(training: Training, batches: Iterator[Batch]) -> Update:
        begins[training.step] = training.store.snapshot()
        return update(training, batches)

    monkeypatch.setattr(Training, "_average", ending)
    monkeypatch.setattr(Training, "update", beginning)
    training = train(work, STAGES, nothing)
    for stage, found in zip(STAGES, (begins[4], training.store.snapshot()), strict=True):
        for key, value in found.items():
            mean = torch.stack([ends[end][key] for end in stage.falls]).mean(0)
            torch.testing.assert_close(value, mean)
            assert not torch.equal(value, ends[stage.steps][key])


def test_a_stage_may_show_some_families_more_often(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "parts")
    usual = train(work, STAGES, nothing)
    train(tmp_path / "parts", STAGES[:1], nothing)
    other = train(tmp_path / "parts", (STAGES[0], MORE), nothing)
    assert usual.history[0] == replace(other.history[0], seconds=usual.history[0].seconds)
    assert usual.history[1].loss != other.history[1].loss
    assert planned(other.sittings[1]).falls == MORE.falls
    assert other.sittings[1]["more"] == [["reflect", 99.0]]


def test_a_finished_training_is_left_as_it_is(work: Path) -> None:
    finished = train(work, STAGES, nothing)
    written = (work / "training.pt").stat().st_mtime_ns
    again = train(work, STAGES, nothing)
    assert same(again, finished) and again.sittings == finished.sittings
    assert (work / "training.pt").stat().st_mtime_ns == written


def test_the_shipped_weights_are_those_of_the_stages() -> None:
    kept = record(asset("k2-nano"))
    assert all(one.steps == two.begin for one, two in pairwise(nano.STAGES))
    assert kept.history[-1].step == nano.STAGES[-1].steps
    last = {plan.begin: asdict(plan) for plan in map(planned, kept.sittings)}  # of each stage
    stages = {plan.begin: json.loads(json.dumps(asdict(plan))) for plan in nano.STAGES}
    assert last == stages
