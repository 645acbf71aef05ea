"""Fine-tuning: the loss falls, a killed run goes on exactly, experts become INT4 in the decay."""

import random
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.errors import CheckpointError
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data, sft
from k2lab.train.data import Batch
from k2lab.train.plan import Plan, until
from k2lab.train.sft import Progress, Training
from k2lab.world.tasks import generate

Configs = Callable[..., K2Config]
PLAN = Plan(seed=3, steps=6, batch_tokens=1200, batches_per_step=2, warmup=2, decay=0.5, tau=100.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POOL", 16)  # several pools in six steps
    monkeypatch.setattr(sft, "LOG", 2)


@pytest.fixture
def config(tiny_config: Configs) -> K2Config:
    return tiny_config(
        num_hidden_layers=2,
        quantization_config=K2_NANO.quantization_config,
        dtype="bfloat16",
        max_position_embeddings=4096,
    )


def nothing(progress: Progress) -> None:
    """A report that nobody reads."""


def trained(config: K2Config, tokenizer: Tokenizer, plan: Plan, folder: Path) -> Training:
    training = Training(config, tokenizer, plan)
    training.run(folder, nothing)
    return training


def same(one: Training, two: Training) -> bool:
    pairs = [
        *zip(one.store.parameters.values(), two.store.parameters.values(), strict=True),
        *zip(one.store.biases.values(), two.store.biases.values(), strict=True),
        *zip(one.muon.moments.values(), two.muon.moments.values(), strict=True),
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_few_steps_lower_the_loss(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plan = replace(PLAN, steps=14, muon_rate=0.02, adam_rate=0.01)
    training = trained(config, tiny_tokenizer, plan, tmp_path)
    losses = [entry.loss for entry in training.history]
    assert [entry.step for entry in training.history] == [2, 4, 6, 8, 10, 12, 14]
    assert losses[0] > 5.0  # near ln 640 at first
    assert losses[-1] < losses[0] - 1.5


@pytest.mark.parametrize("ends", [(), (2, 3)])
@pytest.mark.parametrize("kept", [1, 4])
def test_a_killed_run_goes_on_bit_for_bit(
    kept: int,
    ends: tuple[int, ...],
    config: K2Config,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_chains(monkeypatch)
    plan = replace(PLAN, ends=ends, chains_from=3)
    whole = trained(config, tiny_tokenizer, plan, tmp_path / "whole")

    cut = Training(config, tiny_tokenizer, plan)
    update = cut.update

    def until_killed(stream: object) -> object:
        if cut.step == kept:
            cut.save(tmp_path / "cut")
            raise InterruptedError
        return update(stream)  # type: ignore[arg-type]

    monkeypatch.setattr(cut, "update", until_killed)
    with pytest.raises(InterruptedError):
        cut.run(tmp_path / "cut", nothing)

    again = Training(config, tiny_tokenizer, plan)
    assert again.resume(tmp_path / "cut")
    assert again.step == kept
    again.run(tmp_path / "cut", nothing)
    assert same(again, whole)
    assert (again.step, again.tokens, again.place) == (6, whole.tokens, whole.place)


def test_an_interrupt_is_saved_at_the_end_of_its_step(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(config, tiny_tokenizer, PLAN, tmp_path / "whole")
    cut = Training(config, tiny_tokenizer, PLAN)
    update = cut.update

    def interrupted(stream: object) -> object:
        if cut.step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(stream)  # type: ignore[arg-type]

    monkeypatch.setattr(cut, "update", interrupted)
    with pytest.raises(KeyboardInterrupt, match="Saved at step 3"):
        cut.run(tmp_path / "cut", nothing)
    assert same(trained_on(config, tiny_tokenizer, tmp_path / "cut"), whole)


def trained_on(config: K2Config, tokenizer: Tokenizer, folder: Path) -> Training:
    training = Training(config, tokenizer, PLAN)
    assert training.resume(folder) and training.step == 3
    training.run(folder, nothing)
    return training


def few_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHAIN_EVERY", 8)
    monkeypatch.setattr(data, "CHAIN", (24, 26))


def test_long_chains_come_once_their_time_has_come(
    config: K2Config, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_chains(monkeypatch)
    training = Training(config, tiny_tokenizer, replace(PLAN, chains_from=3))

    def longest(step: int) -> int:
        training.step = step
        training.first_pool()
        return max(batch.tokens for batch in islice(training.data(), 60))

    assert longest(0) <= longest(2) <= PLAN.batch_tokens < longest(3)


def test_a_finished_run_gives_the_mean_of_the_ends_of_its_decays(
    config: K2Config,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    average, ends = Training._average, []

    def seen(training: Training) -> None:
        ends.append(training.store.snapshot())
        average(training)

    monkeypatch.setattr(Training, "_average", seen)
    plan = replace(PLAN, steps=7, ends=(2, 4))
    training = trained(config, tiny_tokenizer, plan, tmp_path)
    assert len(ends) == 3
    for key, value in training.store.parameters.items():
        torch.testing.assert_close(value, torch.stack([each[key] for each in ends]).mean(0))
        assert not torch.equal(value, ends[-1][key])
    again = Training(config, tiny_tokenizer, plan)
    assert again.resume(tmp_path)
    assert same(again, training)


def test_rates_rise_again_after_an_end() -> None:
    plan = Plan(steps=150, warmup=10, decay=0.3, ends=(100, 130, 400), again=0.2)
    rates = [plan.rate(step) for step in range(151)]
    assert plan.falls == (100, 130, 150)  # what lies beyond the last step is not reached
    assert rates[:100] == [Plan(steps=100, warmup=10, decay=0.3).rate(step) for step in range(100)]
    assert rates[100] == rates[130] == 0.2
    assert rates[115] == pytest.approx(0.1)
    assert rates[129] == rates[149] == rates[150] == 0.02
    assert [plan.quantised(step) for step in (69, 70, 100, 149)] == [False, True, True, True]


@pytest.mark.parametrize("damage", ["garbage", "half", "of another network"])
def test_a_checkpoint_that_cannot_be_gone_on_from_is_named(
    damage: str,
    config: K2Config,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    Training(config, tiny_tokenizer, PLAN).save(tmp_path)
    file = tmp_path / "training.pt"
    whole = file.read_bytes()
    match damage:
        case "garbage":
            file.write_text("garbage")
        case "half":
            file.write_bytes(whole[: len(whole) // 2])
        case _:
            config = replace(config, kv_lora_rank=config.kv_lora_rank * 2)
    with pytest.raises(CheckpointError, match=r"training\.pt cannot be gone on from"):
        Training(config, tiny_tokenizer, PLAN).resume(tmp_path)


def test_nothing_to_resume_is_told(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert not Training(config, tiny_tokenizer, PLAN).resume(tmp_path)


def test_a_finished_run_does_nothing_more(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plan = replace(PLAN, steps=2)
    first = trained(config, tiny_tokenizer, plan, tmp_path)
    again = Training(config, tiny_tokenizer, plan)
    again.resume(tmp_path)
    again.run(tmp_path, nothing)
    assert same(first, again)


def test_an_update_is_the_mean_over_all_tokens_said(
    config: K2Config, tiny_tokenizer: Tokenizer
) -> None:
    training = Training(config, tiny_tokenizer, PLAN)
    stream = training.data()
    parts = [next(stream), next(stream)]
    said = sum(int(part.said[:, 1:].sum()) for part in parts)
    learned = [training.learn(part, said) for part in parts]
    total = torch.tensor(0.0)
    for part in parts:
        inputs = part.ids[:, :-1]
        step = training.model.step(inputs.shape[1], cache=None, tap=untouched)
        with torch.no_grad():
            logits = training.model(inputs, step)
        losses = F.cross_entropy(logits.flatten(0, 1), part.ids[:, 1:].flatten(), reduction="none")
        total = total + (losses * part.said[:, 1:].flatten()).sum()
    assert sum(each.loss for each in learned) == pytest.approx(float(total) / said, rel=1e-5)


def test_words_of_others_are_not_learned(config: K2Config, tiny_tokenizer: Tokenizer) -> None:
    training = Training(config, tiny_tokenizer, PLAN)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    said = torch.tensor([[False, False, False, True, True, False]])
    plain = training.learn(Batch(ids, said), 2)
    other = ids.clone()
    other[0, 5] = 99  # after the last word said: neither read for it nor learned
    changed = training.learn(Batch(other, said), 2)
    assert plain.loss == changed.loss
    pairs = zip(plain.gradients, changed.gradients, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def _queue(tokenizer: Tokenizer) -> Batch:
    """One conversation of nine calls."""
    (task,) = generate(4, 1, split="train", families=["queue"], queue_length=8)
    return data.padded([data.document(task, tokenizer)], 0)


def test_what_is_only_read_changes_no_loss_and_gives_no_gradients_of_its_own(
    config: K2Config, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, batch = Training(config, tiny_tokenizer, PLAN), _queue(tiny_tokenizer)
    size = batch.ids.shape[1]
    batch.said[:, : size - 60] = False
    said = int(batch.said.sum())
    head = list(training.store.parameters).index("lm_head.weight")
    for places in (None, torch.arange(size - 1)[None] + 100):
        monkeypatch.setattr(sft, "LONG", 10**6)
        whole = training.learn(batch, said, places)
        monkeypatch.setattr(sft, "LONG", 50)
        part = training.learn(batch, said, places)
        assert part.loss == pytest.approx(whole.loss, rel=1e-5)
        assert all(gradient.isfinite().all() for gradient in part.gradients)
        heads = [each.gradients[head] for each in (part, whole)]  # no way through the cache
        torch.testing.assert_close(*heads, rtol=1e-4, atol=1e-6)
        counted = sum(int(each.sum()) for each in part.load.values())
        assert counted < 0.5 * sum(int(each.sum()) for each in whole.load.values())


def test_stretches_far_apart_are_each_learned_after_all_that_stands_before(
    config: K2Config, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, batch = Training(config, tiny_tokenizer, PLAN), _queue(tiny_tokenizer)
    size = batch.ids.shape[1]
    batch.said[:, 120 : size - 60] = False
    said = int(batch.said.sum())
    whole = training.learn(batch, said)
    monkeypatch.setattr(sft, "LONG", 60)
    first, second = sft.stretches(batch.said[:, 1:].any(0))
    assert first.start == 0 and first.stop < 120 and second.start >= size - 61
    assert sft.stretches(torch.zeros(9, dtype=torch.bool)) == []
    parts = training.learn(batch, said)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    head = list(training.store.parameters).index("lm_head.weight")  # no way through the cache
    torch.testing.assert_close(parts.gradients[head], whole.gradients[head], rtol=1e-4, atol=1e-6)
    tokens = (first.stop - first.start) + (second.stop - second.start)
    assert int(parts.load[1].sum()) == tokens * config.num_experts_per_tok
    assert parts.largest[0].eq(0).all()  # both are fused: nobody sees their logits


def test_logits_are_watched_in_texts_that_are_not_long(
    config: K2Config, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, batch = Training(config, tiny_tokenizer, PLAN), _queue(tiny_tokenizer)
    size = batch.ids.shape[1]
    batch.said[:, 120 : size - 60] = False
    monkeypatch.setattr(sft, "LONG", 10**6)
    whole = training.learn(batch, 1)
    monkeypatch.setattr(sft, "LONG", 120)
    first, second = sft.stretches(batch.said[:, 1:].any(0))
    assert first.stop <= 120 < second.start
    parts = training.learn(batch, 1)
    assert parts.largest[0].gt(0).all()  # of the first stretch: the second is fused
    assert (parts.largest[0] <= whole.largest[0] + 1e-4).all()


def test_a_long_text_is_learned_as_a_short_one(
    config: K2Config, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, batch = Training(config, tiny_tokenizer, PLAN), _queue(tiny_tokenizer)
    said = int(batch.said.sum())
    places = torch.arange(batch.ids.shape[1] - 1)[None] * 3
    monkeypatch.setattr(sft, "LONG", 10**6)
    plain = training.learn(batch, said, places)
    monkeypatch.setattr(sft, "LONG", batch.ids.shape[1] - 2)
    fused = training.learn(batch, said, places)
    assert fused.loss == pytest.approx(plain.loss, rel=1e-5)
    assert fused.largest[0].eq(0).all() and plain.largest[0].gt(0).all()
    for mine, other in zip(fused.gradients, plain.gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_experts_are_int4_in_the_decay(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(config, tiny_tokenizer, PLAN)
    seen: list[bool] = []
    learn = training.learn

    def look(batch: Batch, said: int, places: Tensor | None) -> object:
        seen.append(training.store.quantised)
        return learn(batch, said, places)

    monkeypatch.setattr(training, "learn", look)
    training.run(tmp_path, nothing)
    assert seen == [False] * 6 + [True] * 6  # two batches per step, the last three steps


def test_a_low_tau_engages_the_clip_and_holds_logits_down(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    free = trained(config, tiny_tokenizer, PLAN, tmp_path / "free")
    held = trained(config, tiny_tokenizer, replace(PLAN, tau=1.0), tmp_path / "held")
    assert sum(entry.clipped for entry in free.history) == 0
    assert sum(entry.clipped for entry in held.history) > 0
    assert held.history[-1].largest_logit < free.history[-1].largest_logit


def test_rates_warm_up_stay_and_fall() -> None:
    plan = Plan(steps=100, warmup=10, decay=0.4)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:60] == [1.0] * 50
    assert rates[80] == pytest.approx(0.5)
    assert min(rates) == pytest.approx(0.025)
    assert [plan.quantised(step) for step in (59, 60)] == [False, True]
    assert plan.falling == 60


def test_a_later_stage_rises_to_its_own_peak() -> None:
    plan = Plan(begin=100, steps=300, peak=0.5, warmup=10, decay=0.25, ends=(260,), again=0.1)
    rates = [plan.rate(step) for step in range(100, 301)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[10:121] == pytest.approx([0.5] * 111)
    assert plan.falling == 220
    assert rates[140] == pytest.approx(0.25)
    assert (rates[159], rates[160], rates[200]) == (0.02, 0.1, 0.02)


def test_stages_end_where_they_are_told_to() -> None:
    stages = (Plan(steps=100), Plan(begin=100, steps=300, peak=0.5))
    assert until(stages, 60) == (replace(stages[0], steps=60),)
    assert until(stages, 100) == stages[:1]
    assert until(stages, 400) == (stages[0], replace(stages[1], steps=400))


def test_a_checkpoint_replaces_the_old_one_at_once(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(config, tiny_tokenizer, PLAN)
    training.save(tmp_path)
    old = (tmp_path / "training.pt").read_bytes()

    def broken(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="full"):
        training.save(tmp_path)
    assert (tmp_path / "training.pt").read_bytes() == old


def test_load_counts_tokens_per_expert(config: K2Config, tiny_tokenizer: Tokenizer) -> None:
    training = Training(config, tiny_tokenizer, PLAN)
    batch = next(training.data())
    learned = training.learn(batch, 1)
    load: Tensor = learned.load[1]
    assert load.shape == (16,)
    assert int(load.sum()) == batch.ids[:, 1:].numel() * config.num_experts_per_tok
    assert learned.largest[0].shape == (4,)


def test_spread_positions_keep_turns_together_and_stay_in_reach() -> None:
    ids = torch.zeros(200, 50, dtype=torch.int64)
    ids[:, 0], ids[:, 20], ids[:, 33] = 7, 8, 7
    places = sft.spread(ids, torch.tensor([7, 8]), 4000, random.Random(1))
    assert places is not None
    steps = places.diff(dim=1)
    assert (steps >= 1).all()
    assert set((steps > 1).any(0).nonzero().flatten().tolist()) == {19, 32}
    assert 50 < int((steps > 1).any(1).sum()) < 150  # about half stand in one piece
    assert 2000 < int(places.max()) < 4000
    assert sft.spread(ids, torch.tensor([7]), 0, random.Random(1)) is None


def test_spreading_changes_what_is_learned_and_nothing_when_off(
    config: K2Config, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plan = replace(PLAN, steps=3)
    off = trained(config, tiny_tokenizer, plan, tmp_path / "off")
    again = trained(config, tiny_tokenizer, plan, tmp_path / "again")
    far = trained(config, tiny_tokenizer, replace(plan, reach=4000), tmp_path / "far")
    assert same(off, again)
    assert not same(off, far)
