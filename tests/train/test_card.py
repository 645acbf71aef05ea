"""The card: what was measured stands in it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import k2lab
from k2lab.evals.experts import ExpertReport, PhaseUse
from k2lab.evals.limits import BEYOND, KNOWN, answers
from k2lab.evals.microworld import Report
from k2lab.evals.stats import share
from k2lab.model.export import SUMS, write_checkpoint
from k2lab.paths import asset
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data
from k2lab.train.card import CARD, PICTURE, Measured, card, write_card
from k2lab.train.plan import Plan
from k2lab.train.sft import Training

REPORT = Report(
    seed=7,
    overall=share(9, 12),
    families={"sum": share(3, 6), "queue": share(6, 6)},
    tool_calls=share(11, 11),
    tokens=400,
    recovered=share(2, 4),
    injected=share(0, 0),
)

PARENT = replace(REPORT, overall=share(10, 12))

EXPERTS = ExpertReport(
    seed=7,
    tasks=12,
    right=share(9, 12),
    tokens=4321,
    pairs=128,
    dead=1,
    max_over_mean=2.5,
    layers={},
    phases={"thinking − call": PhaseUse(12, 64, 0.5, 1.2)},
    differing_in_any=0.625,
)


ANSWERS = {question: f"an answer | {k}" for k, question in enumerate(BEYOND)}
ANSWERS |= {each.question: f"known {each.family}" for each in KNOWN}


@pytest.fixture
def written(
    tiny_config: Callable[..., K2Config],
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Training, Path]:
    monkeypatch.setattr(data, "POOL", 16)
    config = tiny_config(
        num_hidden_layers=2,
        quantization_config=K2_NANO.quantization_config,
        dtype="bfloat16",
        max_position_embeddings=4096,
    )
    plan = Plan(seed=3, steps=2, batch_tokens=800, batches_per_step=1, warmup=1)
    training = Training(config, tiny_tokenizer, plan)
    training.run(tmp_path / "work", lambda progress: None)
    training.notes.append("A note for the reader.")
    folder = tmp_path / "out"
    folder.mkdir()
    write_checkpoint(folder, config, training.store.export())
    write_card(training, Measured(REPORT, REPORT, 300, EXPERTS, PARENT, ANSWERS), folder)
    return training, folder


def test_the_card_says_what_was_measured(written: tuple[Training, Path]) -> None:
    training, folder = written
    text = (folder / CARD).read_text()
    assert "| **overall** | 75.0% | 12 |" in text
    assert "| sum | 50.0% | 6 |" in text
    assert "| the right total after 300 calls | 75.0% | 12 |" in text
    assert "| all tasks, had experts stayed in bfloat16 | 83.3% | 12 |" in text
    assert "| thinking − call, 12 tasks | 50.0% |" in text
    assert "comparisons below | 62.5% |" in text
    assert "A note for the reader." in text
    assert f"{training.history[-1].tokens:,} tokens" in text
    assert (folder / PICTURE).read_text().startswith("<?xml")
    sums = (folder / SUMS).read_text()
    assert all(name in sums for name in (CARD, PICTURE, "training.json", "model.safetensors"))


def test_a_logit_that_nobody_saw_is_not_zero(written: tuple[Training, Path]) -> None:
    training, folder = written
    training.history[-1] = replace(training.history[-1], largest_logit=0.0)
    rows = card(training, Measured(REPORT), folder).splitlines()
    assert sum(row.endswith("| – |") for row in rows) == 1
    assert not any(row.endswith("| 0.0 |") for row in rows)


def test_the_card_says_where_the_model_ends(written: tuple[Training, Path]) -> None:
    training, folder = written
    text = (folder / CARD).read_text()
    for each in KNOWN:
        assert f"| {each.question} | known {each.family} |" in text
    for k, (question, never) in enumerate(BEYOND.items()):
        assert f"| {question} | {never} | an answer \\| {k} |" in text
    silent = card(training, Measured(REPORT), folder)
    assert all(each.shown in silent for each in KNOWN)
    assert "does not notice" not in silent  # nobody asked


def test_the_shipped_card_quotes_what_k2_nano_says(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = asset("k2-nano")
    if not list(folder.glob("model*.safetensors")):
        pytest.skip("K2-nano's weights are not in this checkout")
    text = (folder / CARD).read_text()
    asked = dict(list(BEYOND.items())[:2])
    monkeypatch.setattr("k2lab.evals.limits.KNOWN", KNOWN[:2])
    monkeypatch.setattr("k2lab.evals.limits.BEYOND", asked)
    for question, answer in answers(k2lab.load()).items():
        assert f"| {question} |" in text
        assert f"| {answer} |" in text
