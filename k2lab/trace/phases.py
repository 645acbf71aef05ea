"""Which experts are used more while thinking than in the answer (or in a call): with uncertainty.

Tokens of a text follow each other, so they are no independent draws: counting them as such would
find differences everywhere. What is shuffled here is therefore larger than a token:

- one trace: the labels of the kinds are turned round against the routing (all tokens keep their
  neighbours), as in `difference`;
- many traces: each trace's difference between its own phases keeps or changes its sign as a whole,
  as in `across`.

Both correct for looking at all (layer, expert) pairs at once: a pair counts as different if it
exceeds what the *largest* of all pairs reaches in 95 % of the shuffles.
Sources: P. H. Westfall and S. S. Young, Resampling-Based Multiple Testing (1993), single-step maxT;
for the turning, J. Besag and P. J. Diggle, Applied Statistics 26 (1977), 327–333.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import Kind, code_of
from k2lab.errors import TraceError
from k2lab.trace import routing
from k2lab.trace.trace import Trace

PRIOR = 1.0  # choices added to each expert's count, over both phases: log-ratios stay finite
LEVEL = 0.05  # of the corrected test, and outside the interval

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Use of each expert in one phase against another, all [MoE layer, expert]."""

    log_ratio: Numbers  # log2 of the shares' ratio; positive: used more in the first phase
    low: Numbers  # 95 % of shuffled log-ratios lie in low … high
    high: Numbers
    p: Numbers  # corrected for all pairs; the smallest possible is 1 / (shuffles + 1)

    @property
    def differs(self) -> NDArray[np.bool_]:
        """Which pairs differ, at 5 % for all of them together."""
        return np.asarray(self.p <= LEVEL)


def log_ratio(first: routing.Load, second: routing.Load) -> Numbers:
    """log2 of the ratio of load shares [MoE layer, expert], with one choice added to each expert.

    The phases get it in proportion to their totals: a share of PRIOR / (both totals) in either. An
    expert that neither phase used has 0.
    """
    totals = [counts.sum(axis=-1, keepdims=True) for counts in (first, second)]
    added = PRIOR / np.maximum(totals[0] + totals[1], 1)
    return np.asarray(np.log2((routing.shares(first) + added) / (routing.shares(second) + added)))


def difference(
    trace: Trace, first: Kind, second: Kind, *, shuffles: int = 999, seed: int = 0
) -> Difference:
    """One trace: the phases' labels turned round against the routing, `shuffles` times.

    A trace with one thought and one answer has few distinct turns that matter, so it rarely proves
    anything: that is the truth about one trace. TraceError where a phase has no routed tokens,
    InputError for a kind that is none.
    """
    kinds = trace.kinds[: trace.routed]
    codes = [code_of(kind) for kind in (first, second)]
    for kind, code in zip((first, second), codes, strict=True):
        if not (kinds == code).any():
            raise TraceError(
                f"This trace has no routed tokens of the kind '{kind}'.",
                expected=f"tokens of both kinds, '{first}' and '{second}'.",
                mend="choose two kinds that occur; `trace.spans()` lists them.",
            )
    where = np.flatnonzero(np.isin(kinds, codes))  # the phases' own tokens, in order
    labels, experts = kinds[where], trace.experts[where]
    shape = (trace.about.moe_layers, trace.about.experts)
    draw = np.random.default_rng(seed)
    turns = draw.permutation(np.arange(1, len(where)))[:shuffles]
    found = _log_ratio_of(experts, labels, codes, shape)
    shuffled = np.empty((len(turns), *shape))
    for place, turn in enumerate(turns):
        shuffled[place] = _log_ratio_of(experts, np.roll(labels, int(turn)), codes, shape)
    # The found ratios are in the scale as each shuffle's are: else they alone could exceed it.
    spread = np.sqrt(((shuffled**2).sum(axis=0) + found**2) / (len(turns) + 1))
    scale = np.maximum(spread, 1e-9)
    largest = np.abs(shuffled / scale).reshape(len(turns), -1).max(axis=1, initial=0)
    low, high = _interval(shuffled, shape)
    return Difference(found, low, high, _corrected(np.abs(found / scale), largest))


def across(
    firsts: Sequence[routing.Load], seconds: Sequence[routing.Load], *, shuffles: int = 1999,
    seed: int = 0,
) -> Difference:  # fmt: skip
    """Many traces: loads of both phases, one pair per trace, compared trace by trace.

    The statistic of a pair is Σ d / √Σ d², where d is the difference of load shares in one trace.
    """
    kept = [
        (a, b) for a, b in zip(firsts, seconds, strict=True) if a.sum() and b.sum()
    ]  # a trace without one of the phases has no difference
    if len(kept) < 2:
        raise TraceError(
            f"{len(kept)} traces have both phases.",
            expected="at least 2, better 30.",
            mend="record more runs.",
        )
    shape = kept[0][0].shape
    d = np.stack([(routing.shares(a) - routing.shares(b)).ravel() for a, b in kept])
    length = np.sqrt((d**2).sum(axis=0))
    unit = np.divide(d, length, out=np.zeros_like(d), where=length > 0)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(shuffles, len(d)))
    shuffled = signs @ unit
    # Shuffled log-ratios: what the phases' totals would have been with some traces exchanged.
    found = log_ratio(sum(a for a, _ in kept), sum(b for _, b in kept))  # type: ignore[arg-type]
    first, second = (np.stack([pair[k].ravel() for pair in kept]).astype(float) for k in (0, 1))
    stays = (signs[:RATIOS] + 1) / 2
    ratios = log_ratio(
        (stays @ first + (1 - stays) @ second).reshape(-1, *shape),  # type: ignore[arg-type]
        (stays @ second + (1 - stays) @ first).reshape(-1, *shape),  # type: ignore[arg-type]
    )
    low, high = _interval(ratios, shape)
    p = _corrected(np.abs(unit.sum(axis=0)), np.abs(shuffled).max(axis=1))
    return Difference(found, low, high, p.reshape(shape))


RATIOS = 400  # shuffles behind an interval; the p values use all


def _log_ratio_of(
    experts: NDArray[np.uint16], labels: NDArray[np.uint8], codes: Sequence[int],
    shape: tuple[int, ...],
) -> Numbers:  # fmt: skip
    loads = [routing.counted(experts[labels == code], shape[0], shape[1]) for code in codes]
    return log_ratio(loads[0], loads[1])


def _corrected(found: Numbers, largest: Numbers) -> Numbers:
    """Share of shuffles whose largest statistic reaches the found one, the finding included."""
    ordered = np.sort(largest)
    reached = len(ordered) - np.searchsorted(ordered, found - 1e-9)
    return np.asarray((reached + 1) / (len(ordered) + 1))


def _interval(shuffled: NDArray[np.floating], shape: tuple[int, ...]) -> tuple[Numbers, Numbers]:
    if not len(shuffled):
        return np.full(shape, -np.inf), np.full(shape, np.inf)
    low, high = np.quantile(shuffled, (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return low, high
