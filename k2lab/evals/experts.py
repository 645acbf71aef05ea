"""What a model's experts do in the microworld: idle ones, evenness, thinking against acting.

Tasks of the evaluation split run as in `microworld`, greedily, while routing is recorded. Load
counts every token that went through the network; phases count the tokens that the model chose:
thinking, tool calls, answer. Whether a (layer, expert) pair differs between two phases is tested
task by task, corrected for all pairs (`trace/phases.py`). Use is not cause: what an expert does to
an answer is asked with `run.experiment`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from k2lab.agent.tools import Tool
from k2lab.engine.events import Event, Kind
from k2lab.engine.sampling import Sampler
from k2lab.evals.microworld import Speaker, attempt
from k2lab.evals.stats import Share, share
from k2lab.trace import phases, routing
from k2lab.trace.trace import About, Trace
from k2lab.world.tasks import Task, generate

PHASES: tuple[Kind, ...] = ("thinking", "call", "answer")
IDLE = 0.1  # share of the even load below which an expert counts as dead


@dataclass(frozen=True, slots=True)
class LayerUse:
    """How evenly one layer's experts are used."""

    dead: int  # experts with less than a tenth of the even load
    max_over_mean: float  # load of the busiest expert / mean load; 1 is even
    entropy: float  # of the load, as share of the largest possible
    gini: float


@dataclass(frozen=True, slots=True)
class PhaseUse:
    """How many (layer, expert) pairs are used differently in two phases."""

    tasks: int  # with tokens in both phases
    differing: int  # pairs, at 5 % for all of them together
    share: float  # of all pairs
    strongest: float  # largest |log2 ratio| of a differing pair; 0: none differs


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """Experts over `tasks` tasks; `phases` by "first − second"."""

    seed: int
    tasks: int
    right: Share
    tokens: int  # that went through the network
    pairs: int  # MoE layers × experts
    dead: int
    max_over_mean: float  # of the layer where it is largest
    layers: dict[str, LayerUse]
    phases: dict[str, PhaseUse]
    differing_in_any: float  # share of pairs that differ in one of the comparisons, corrected for 3


@dataclass(frozen=True, slots=True)
class TaskUse:
    """What one task made of the experts; loads [MoE layer, expert]."""

    task: Task
    tokens: int
    load: routing.Load
    by_phase: dict[Kind, routing.Load]
    right: bool


class Recorder:
    """A speaker whose runs are recorded while they pass."""

    def __init__(self, speaker: Speaker, about: About) -> None:
        self._speaker, self._about = speaker, about
        self.traces: list[Trace] = []

    def events(
        self,
        conversation: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Tool],
        sampler: Sampler,
        max_tokens: int,
    ) -> Iterator[Event]:
        """The speaker's events; the trace of each run is kept until the task ends."""
        trace = Trace(self._about)
        self.traces.append(trace)
        events = self._speaker.events(
            conversation, tools=tools, sampler=sampler, max_tokens=max_tokens
        )
        for event in events:
            trace.append(event)
            yield event


def uses(speaker: Speaker, about: About, n: int, seed: int) -> Iterator[TaskUse]:
    """The use of experts in each of `n` tasks, one by one."""
    for task in generate(seed, n, split="eval"):
        recorder = Recorder(speaker, about)
        result = attempt(recorder, task)
        yield TaskUse(
            task,
            sum(trace.routed for trace in recorder.traces),
            _sum([routing.load(trace) for trace in recorder.traces], about),
            {
                kind: _sum([_chosen_load(trace, kind) for trace in recorder.traces], about)
                for kind in PHASES
            },
            result.right,
        )


def report(done: Iterator[TaskUse], about: About, seed: int) -> ExpertReport:
    """The figures over all tasks."""
    found = list(done)
    load = _sum([use.load for use in found], about)
    mean = np.maximum(load.mean(axis=1), 1e-9)
    uneven, entropy = load.max(axis=1) / mean, routing.entropy(load)
    gini, dead = routing.gini(load), (load < IDLE * mean[:, None]).sum(axis=1)
    layers = {
        str(about.dense_layers + row): LayerUse(
            int(dead[row]), round(float(uneven[row]), 3), round(float(entropy[row]), 4),
            round(float(gini[row]), 4),
        )
        for row in range(about.moe_layers)
    }  # fmt: skip
    pairs = about.moe_layers * about.experts
    by_pair: dict[str, PhaseUse] = {}
    smallest = np.ones((about.moe_layers, about.experts))
    for first, second in combinations(PHASES, 2):
        both = [
            (use.by_phase[first], use.by_phase[second])
            for use in found
            if use.by_phase[first].sum() and use.by_phase[second].sum()
        ]
        if len(both) < 2:
            by_pair[f"{first} − {second}"] = PhaseUse(len(both), 0, 0.0, 0.0)
            continue
        tested = phases.across([a for a, _ in both], [b for _, b in both], seed=seed)
        smallest = np.minimum(smallest, tested.p)
        ratios = np.abs(tested.log_ratio[tested.differs])
        by_pair[f"{first} − {second}"] = PhaseUse(
            len(both),
            int(tested.differs.sum()),
            round(float(tested.differs.mean()), 4),
            round(float(ratios.max(initial=0.0)), 3),
        )
    return ExpertReport(
        seed=seed,
        tasks=len(found),
        right=share(sum(use.right for use in found), len(found)),
        tokens=sum(use.tokens for use in found),
        pairs=pairs,
        dead=int(dead.sum()),
        max_over_mean=round(float(uneven.max(initial=0.0)), 3),
        layers=layers,
        phases=by_pair,
        differing_in_any=round(float((smallest <= phases.LEVEL / len(by_pair)).mean()), 4),
    )


def _chosen_load(trace: Trace, kind: Kind) -> routing.Load:
    """Load of the tokens of this kind that the model chose itself."""
    routed = trace.routed
    mine = trace.mask(kind)[:routed] & ~np.isnan(trace.entropy[:routed])
    return routing.load(trace, np.flatnonzero(mine))


def _sum(loads: Sequence[routing.Load], about: About) -> routing.Load:
    total = np.zeros((about.moe_layers, about.experts), np.int64)
    for load in loads:
        total += load
    return total
