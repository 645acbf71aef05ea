"""The plan of a training: its hyperparameters, and the schedule of its learning rates."""

from bisect import bisect_right
from dataclasses import dataclass

LOWEST = 0.02  # factor on the learning rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The hyperparameters of one run."""

    seed: int = 1
    steps: int = 1800
    batch_tokens: int = 2048  # of one forward
    batches_per_step: int = 2  # gradients added up before an update: mixes lengths, so families
    muon_rate: float = 0.005
    adam_rate: float = 0.003  # embeddings, head, norms, routers
    warmup: int = 50  # steps
    decay: float = 0.4  # share of the steps to the first end in which the rates fall to 2 %
    ends: tuple[int, ...] = ()  # steps before the last one at which the rates have fallen, too
    again: float = 0.15  # factor on the rates to which they rise after such an end, to fall again
    balance_rate: float = 0.003  # of the selection bias, per step
    tau: float = 100.0  # largest attention logit before QK-clip acts
    reach: int = 0  # positions that a conversation may be spread over; 0: it stands in one piece
    reach_from: float = 0.5  # share of the steps before a conversation is spread
    chains_from: float = 0.0  # share of the steps before texts longer than a batch are learned
    save_seconds: float = 240.0

    @property
    def falls(self) -> tuple[int, ...]:
        """All steps at which the rates have fallen, the last one of the plan among them."""
        return (*(end for end in self.ends if end < self.steps), self.steps)

    def rate(self, step: int) -> float:
        """Factor on the learning rates: linear warm-up, constant, linear decay to 0.02.

        After each end but the last it rises once more, to `again`.
        """
        falls = self.falls
        passed = bisect_right(falls, step)
        if passed == 0:
            falling = self.decay * falls[0]
            return min((step + 1) / self.warmup, 1.0, max(LOWEST, (falls[0] - step) / falling))
        if passed == len(falls):
            return LOWEST
        start, stop = falls[passed - 1 : passed + 1]
        return max(LOWEST, self.again * (stop - step) / (stop - start))

    def learns_chains(self, step: int) -> bool:
        """Whether texts longer than a batch, long chains of calls, are among the data by now."""
        return step >= self.chains_from * self.steps

    def quantised(self, step: int) -> bool:
        """Whether experts are seen as INT4: from the first decay on."""
        return step >= self.falls[0] * (1 - self.decay)
