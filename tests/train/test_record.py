"""The record of a training reads back as it was written, and another sitting goes on from it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from k2lab.errors import InputError, MissingError
from k2lab.model.export import write_checkpoint
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data
from k2lab.train.plan import Plan
from k2lab.train.record import go_on, record, write_record
from k2lab.train.sft import Training

PLAN = Plan(seed=3, steps=2, batch_tokens=800, batches_per_step=1, warmup=1)


@pytest.fixture
def finished(
    tiny_config: Callable[..., K2Config],
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Training, Path]:
    monkeypatch.setattr(data, "POOL", 16)
    config = tiny_config(
        num_hidden_layers=2, quantization_config=K2_NANO.quantization_config, dtype="bfloat16"
    )
    training = Training(config, tiny_tokenizer, PLAN)
    training.run(tmp_path / "work", lambda progress: None)
    training.notes.append("A note for the reader.")
    folder = tmp_path / "out"
    write_checkpoint(folder, config, training.store.export())
    write_record(training, folder)
    return training, folder


def test_the_record_reads_back(finished: tuple[Training, Path]) -> None:
    training, folder = finished
    kept = record(folder)
    assert kept.notes == training.notes
    assert kept.sittings == training.sittings
    assert [entry.loss for entry in kept.history] == [entry.loss for entry in training.history]
    assert len(kept.history[-1].heads) == training.config.num_hidden_layers
    assert kept.place == training.place != (0, 0)


def test_another_sitting_goes_on_from_the_finished_weights(
    finished: tuple[Training, Path], tmp_path: Path
) -> None:
    first, folder = finished
    second = Training(first.config, first.tokenizer, replace(PLAN, steps=3, seed=9))
    go_on(second, folder)
    for (key, mine), (_, theirs) in zip(first.store.export(), second.store.export(), strict=True):
        if not key.endswith("weight_scale"):  # the largest of rounded weights may round lower
            assert torch.equal(mine, theirs), key
    assert (second.step, second.tokens, second.place) == (2, first.tokens, first.place)
    second.run(tmp_path / "again", lambda progress: None)
    assert [entry.step for entry in second.history] == [2, 3]
    assert [sitting["step"] for sitting in second.sittings] == [0, 2]
    assert "went on from the finished weights" in second.notes[-1]


def test_a_plan_that_ends_before_it_begins_is_refused(finished: tuple[Training, Path]) -> None:
    first, folder = finished
    with pytest.raises(InputError, match="ends at step 2"):
        go_on(Training(first.config, first.tokenizer, PLAN), folder)


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no training"):
        record(tmp_path)
