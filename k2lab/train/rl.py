"""Reflective reinforcement learning: answers are sampled, graded by code, and learned from.

For each task K answers are drawn through the real loop with the real tools. With the rewards r,
their mean r̄ over the K, and y all that the model said in a run, an update lowers

    mean (r − r̄ − τ · log π(y) / π_old(y))²  +  λ · loss of fine-tuning on a fresh batch (PTX)

so that what went better than its siblings becomes likelier, and fine-tuning is not forgotten. A run
that says more than its budget loses a part of its reward. The temperature of sampling falls over
the steps. A task whose K rewards are all alike teaches nothing and is left out.

Not here: rewards by judgement; all of them are exact.
Source: Kimi K2 technical report (arXiv 2507.20534), section on reinforcement learning.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from k2lab.agent.loop import converse
from k2lab.agent.tools import Tool
from k2lab.agent.turns import Mind
from k2lab.engine.capture import OFF
from k2lab.engine.events import Event, PromptRead, TokenChosen
from k2lab.engine.generate import Settings
from k2lab.engine.sampling import Sampler, sampled
from k2lab.engine.taps import untouched
from k2lab.evals.microworld import attempt
from k2lab.train.data import Document, documents, padded
from k2lab.train.sft import Training
from k2lab.world.tasks import TRAINING_MIX, Task, generate

STAGE = "rl"
"""The name of this stage in a training's record."""

STRIDE = 1_000_003  # keeps the task seeds of neighbouring steps apart


@dataclass(frozen=True, slots=True, kw_only=True)
class RLPlan:
    """The hyperparameters of the stage."""

    seed: int = 500_000_000  # of tasks that fine-tuning has not seen
    steps: int = 20
    tasks: int = 8  # of one step
    samples: int = 6  # K, answers to a task
    tau: float = 0.05  # how much a change of the log-probability weighs against a reward
    ptx: float = 1.0  # λ
    muon_rate: float = 0.0002
    adam_rate: float = 0.0001
    hot: float = 1.0  # temperature of the first step
    cold: float = 0.5  # and of the last
    budget: float = 2.0  # tokens a run may say, in times of what the teacher says
    penalty: float = 0.5  # part of the reward that is lost beyond

    def temperature(self, step: int) -> float:
        """Of sampling, falling evenly."""
        return self.hot + (self.cold - self.hot) * step / max(1, self.steps - 1)


@dataclass(frozen=True, slots=True)
class Gain:
    """What one step saw."""

    step: int
    reward: float  # mean over all runs
    solved: float  # share of runs with the right answer
    taught: int  # tasks whose rewards differed
    loss: float  # squared part
    ptx_loss: float  # nats per token said


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: what was read and said, how likely it was, and what it was worth."""

    documents: tuple[Document, ...]  # one for each time the user spoke
    logprobs: tuple[float, ...]  # log π_old of what was said in each
    reward: float
    right: bool


class Listener:
    """A speaker for `attempt` that samples, and keeps what it read and said."""

    def __init__(self, mind: Mind, sampler: Sampler) -> None:
        self.mind, self.sampler = mind, sampler
        self.documents: list[Document] = []
        self.logprobs: list[float] = []

    def events(
        self,
        conversation: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Tool],
        sampler: Sampler,
        max_tokens: int,
    ) -> Iterator[Event]:
        """The events of one run, drawn with the listener's own sampler."""
        ids, said, logprob = list[int](), list[bool](), 0.0
        settings = Settings(sampler=self.sampler, max_tokens=max_tokens, capture=OFF)
        for event in converse(self.mind, conversation, tools, settings):
            match event:
                case PromptRead():
                    ids += event.ids
                    said += [False] * len(event.ids)
                case TokenChosen():
                    ids.append(event.id)
                    said.append(True)
                    logprob += event.logprob
            yield event
        self.documents.append(Document(tuple(ids), tuple(said)))
        self.logprobs.append(logprob)


def reinforce(training: Training, plan: RLPlan, report: Callable[[Gain], None]) -> None:
    """Take the steps of the plan that `training.stages` does not list yet."""
    training.store.quantised = True  # what is sampled, and shipped, is INT4
    done = training.stages.setdefault(STAGE, [])
    for group in training.adam.param_groups:
        group["lr"] = plan.adam_rate
    data = training.data()
    for step in range(len(done), plan.steps):
        seed = plan.seed + step * STRIDE
        tasks = generate(seed, plan.tasks, split="train", weights=TRAINING_MIX)
        with training.store.still():
            trials = [
                [_trial(training, task, plan, step, k) for k in range(plan.samples)]
                for task in tasks
            ]
        gain = _update(training, plan, step, trials, data)
        done.append(asdict(gain))
        report(gain)


def _trial(training: Training, task: Task, plan: RLPlan, step: int, number: int) -> Trial:
    """One sampled answer to a task."""
    seed = (plan.seed + step) * plan.samples + number
    mind = Mind(training.model, training.tokenizer)
    listener = Listener(mind, sampled(temperature=plan.temperature(step), seed=seed))
    result = attempt(listener, task)
    teacher = sum(sum(each.said) for each in documents(task, training.tokenizer))
    reward = float(result.right)
    if result.tokens > plan.budget * teacher:
        reward -= plan.penalty * reward
    return Trial(tuple(listener.documents), tuple(listener.logprobs), reward, result.right)


def _update(
    training: Training, plan: RLPlan, step: int, trials: list[list[Trial]], data: Iterator[Any]
) -> Gain:
    """One step from the trials of its tasks."""
    flat = [trial for group in trials for trial in group]
    mixed = [group for group in trials if len({trial.reward for trial in group}) > 1]
    parameters = list(training.store.parameters.values())
    total = [torch.zeros_like(each) for each in parameters]
    squared = 0.0
    count = sum(len(trial.documents) for group in mixed for trial in group)
    for group in mixed:
        mean = sum(trial.reward for trial in group) / len(group)
        for trial in group:
            for made, old in zip(trial.documents, trial.logprobs, strict=True):
                change = log_probability(training, made) - old
                loss = (trial.reward - mean - plan.tau * change).square() / count
                _add(total, torch.autograd.grad(loss, parameters))
                squared += loss.item()
    (batch,) = islice(data, 1)
    learned = training.learn(batch, int(batch.said[:, 1:].sum()))
    _add(total, learned.gradients, plan.ptx)
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient
    training.muon.step(plan.muon_rate)
    training.adam.step()
    training.adam.zero_grad(set_to_none=True)
    return Gain(
        step + 1,
        sum(trial.reward for trial in flat) / len(flat),
        sum(trial.right for trial in flat) / len(flat),
        len(mixed),
        squared,
        learned.loss,
    )


def log_probability(training: Training, made: Document) -> Tensor:
    """log π of all that was said in a document, given what was read."""
    batch = padded([made], 0)
    inputs, targets, mask = batch.ids[:, :-1], batch.ids[:, 1:], batch.said[:, 1:]
    step = training.model.step(inputs.shape[1], cache=None, tap=untouched)
    logits = training.model.logits(training.model.hidden(inputs, step)[mask], step)
    return -F.cross_entropy(logits, targets[mask], reduction="sum")


def _add(total: list[Tensor], gradients: Sequence[Tensor], weight: float = 1.0) -> None:
    for held, gradient in zip(total, gradients, strict=True):
        held.add_(gradient, alpha=weight)
