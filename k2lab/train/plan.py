"""The plan of a training: its hyperparameters, and the schedule of its learning rates.

A long training takes several stages. Each has a plan of its own and goes on from the mean with
which the stage before it ended.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

LOWEST = 0.02  # factor on the learning rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The hyperparameters of one stage. Steps are counted from the first one of the training."""

    seed: int = 1
    begin: int = 0  # step at which it takes over from the stage before
    steps: int = 1800  # step at which it ends
    batch_tokens: int = 2048  # of one forward
    batches_per_step: int = 2  # gradients added up before an update: mixes lengths, so families
    muon_rate: float = 0.005
    adam_rate: float = 0.003  # embeddings, head, norms, routers
    peak: float = 1.0  # factor on the rates before they fall
    warmup: int = 50  # steps
    decay: float = 0.4  # share of its steps to the first end in which the rates fall to 2 %
    ends: tuple[int, ...] = ()  # steps before the last one at which the rates have fallen, too
    again: float = 0.15  # factor on the rates to which they rise after such an end, to fall again
    balance_rate: float = 0.003  # of the selection bias, per step
    tau: float = 100.0  # largest attention logit before QK-clip acts
    reach: int = 0  # positions that a conversation may be spread over; 0: it stands in one piece
    chains_from: int = 0  # step from which texts longer than a batch are learned
    more: tuple[tuple[str, float], ...] = ()  # weights of families that come more often than usual
    save_seconds: float = 240.0

    @property
    def falls(self) -> tuple[int, ...]:
        """All steps at which the rates have fallen, the last one of the plan among them."""
        return (*(end for end in self.ends if end < self.steps), self.steps)

    @property
    def falling(self) -> int:
        """The first step of the first decay."""
        return math.ceil(self.falls[0] - self.decay * (self.falls[0] - self.begin))

    def rate(self, step: int) -> float:
        """Factor on the learning rates: linear warm-up to `peak`, constant, linear decay to 0.02.

        After each end but the last it rises once more, to `again`.
        """
        falls = self.falls
        passed = bisect_right(falls, step)
        if passed == 0:
            fall = self.decay * (falls[0] - self.begin)  # steps
            risen = (step + 1 - self.begin) / self.warmup
            return max(LOWEST, self.peak * min(risen, 1.0, (falls[0] - step) / fall))
        if passed == len(falls):
            return LOWEST
        start, stop = falls[passed - 1 : passed + 1]
        return max(LOWEST, self.again * (stop - step) / (stop - start))

    def learns_chains(self, step: int) -> bool:
        """Whether texts longer than a batch, long chains of calls, are among the data by now."""
        return step >= self.chains_from

    def quantised(self, step: int) -> bool:
        """Whether experts are seen as INT4: from the first decay on."""
        return step >= self.falling


def until(stages: Sequence[Plan], steps: int) -> tuple[Plan, ...]:
    """The stages up to a step, at which the last of them ends."""
    begun = [stage for stage in stages if stage.begin < steps]
    return (*begun[:-1], replace(begun[-1], steps=steps))
