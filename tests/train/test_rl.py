"""Reinforcement: what went better than its siblings becomes likelier, and a stopped stage goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from k2lab.agent.turns import Mind
from k2lab.engine.sampling import sampled
from k2lab.evals.microworld import attempt
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data, rl
from k2lab.train.plan import Plan
from k2lab.train.rl import STAGE, Gain, Listener, RLPlan, Trial, log_probability, reinforce
from k2lab.train.sft import Training
from k2lab.world.tasks import Task, generate

PLAN = RLPlan(steps=2, tasks=1, samples=2)


@pytest.fixture
def training(
    tiny_config: Callable[..., K2Config],
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> Training:
    monkeypatch.setattr(data, "POOL", 16)
    monkeypatch.setattr("k2lab.evals.microworld.MAX_TOKENS", 12)
    config = tiny_config(
        num_hidden_layers=2, quantization_config=K2_NANO.quantization_config, dtype="bfloat16"
    )
    plan = Plan(seed=3, steps=1, batch_tokens=800, batches_per_step=1)
    return Training(config, tiny_tokenizer, plan)


def nothing(gain: Gain) -> None:
    """Nobody listens."""


def rewarded_for_short(
    training: Training, task: Task, plan: RLPlan, step: int, number: int
) -> Trial:
    """The first sample is always right, the others never."""
    listener = Listener(Mind(training.model, training.tokenizer), sampled(seed=number))
    attempt(listener, task)
    right = number == 0
    return Trial(tuple(listener.documents), tuple(listener.logprobs), float(right), right)


def test_a_listener_hears_what_the_network_finds_likely(training: Training) -> None:
    training.store.quantised = True
    listener = Listener(Mind(training.model, training.tokenizer), sampled(seed=5))
    (task,) = generate(1, 1, split="train", families=["sum"])
    result = attempt(listener, task)
    ((heard,), (logprob,)) = listener.documents, listener.logprobs
    assert sum(heard.said) == result.tokens == 12
    assert not heard.said[0]
    again = float(log_probability(training, heard).detach())
    assert again == pytest.approx(logprob, abs=1e-3)


def test_the_better_answer_becomes_likelier(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, steps=1, ptx=0.0, muon_rate=0.002, adam_rate=0.002)
    trials: list[Trial] = []

    def kept(*args: object) -> Trial:
        trials.append(rewarded_for_short(*args))  # type: ignore[arg-type]
        return trials[-1]

    monkeypatch.setattr(rl, "_trial", kept)
    reinforce(training, plan, nothing)
    with torch.no_grad():
        better, worse = (
            float(log_probability(training, trial.documents[-1])) - trial.logprobs[-1]
            for trial in trials
        )
    assert better > worse
    assert training.stages[STAGE][0]["taught"] == 1


def test_alike_rewards_teach_nothing_but_fine_tuning_goes_on(training: Training) -> None:
    before = training.store.parameters["lm_head.weight"].detach().clone()
    reinforce(training, replace(PLAN, steps=1), nothing)
    (gain,) = training.stages[STAGE]
    assert (gain["taught"], gain["loss"], gain["solved"]) == (0, 0.0, 0.0)
    assert gain["ptx_loss"] > 5
    assert not torch.equal(training.store.parameters["lm_head.weight"], before)


def test_a_stopped_stage_goes_on_where_it_was_saved(training: Training, tmp_path: Path) -> None:
    reinforce(training, replace(PLAN, steps=1), nothing)
    training.save(tmp_path)
    again = Training(training.config, training.tokenizer, training.plan)
    again.resume(tmp_path)
    seen: list[int] = []
    reinforce(again, PLAN, lambda gain: seen.append(gain.step))
    assert seen == [2]
    reinforce(again, PLAN, lambda gain: seen.append(gain.step))
    assert seen == [2]


def test_the_temperature_falls_to_its_end() -> None:
    plan = RLPlan(steps=5, hot=1.0, cold=0.5)
    assert [plan.temperature(step) for step in range(5)] == [1.0, 0.875, 0.75, 0.625, 0.5]
