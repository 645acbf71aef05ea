"""How two traces differ: where the tokens part, and how far routing and certainty go apart after.

Tokens are aligned by their index: a branch shares the indices of its parent. Not here: why they
differ (`engine/experiment.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from k2lab.errors import TraceError
from k2lab.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two traces, index by index, up to the end of the shorter one."""

    diverges: int | None  # the first index with another token; None: one is the other's beginning
    shared: int  # tokens in common before that
    start: int  # the first compared row: `diverges`, or 0 where no token differs
    jaccard_tokens: NDArray[np.float32]  # |A ∩ B| / |A ∪ B| of chosen experts [token, MoE layer]
    entropy: NDArray[np.float32]  # second − first, nats [token]; NaN where one was given

    @property
    def jaccard(self) -> NDArray[np.float64]:
        """Mean routing overlap of the compared tokens [MoE layer]; NaN without tokens."""
        layers = self.jaccard_tokens.shape[1]
        if not len(self.jaccard_tokens):
            return np.full(layers, np.nan)
        return self.jaccard_tokens.mean(axis=0, dtype=np.float64)

    @property
    def entropy_difference(self) -> float:
        """Mean entropy of the second trace − of the first, in nats; NaN without chosen tokens."""
        known = self.entropy[~np.isnan(self.entropy)]
        return float(known.mean(dtype=np.float64)) if len(known) else float("nan")


def compare(first: Trace, second: Trace) -> Comparison:
    """Where the two part, and how their routing and entropy differ from there on.

    Two runs with the same tokens are compared from their beginning: edits change routing alone.
    TraceError for traces of two models, and for redacted ones: nobody knows where those part.
    """
    ours, theirs = first.about, second.about
    if (ours.moe_layers, ours.experts, ours.slots) != (
        theirs.moe_layers, theirs.experts, theirs.slots,
    ):  # fmt: skip
        raise TraceError(
            f"Traces of {ours.model!r} and {theirs.model!r}, whose experts are not the same.",
            expected="two traces of one model.",
            mend="compare runs of one lab, or branches of one run.",
        )
    if first.redacted or second.redacted:
        raise TraceError(
            "A trace that was saved with redact=True: its token ids were taken out.",
            expected="two traces with their ids, to see where the tokens part.",
            mend="compare the runs themselves, or traces that were saved whole.",
        )
    length = min(len(first), len(second))
    other = np.flatnonzero(first.ids[:length] != second.ids[:length])
    diverges = int(other[0]) if len(other) else None
    start = 0 if diverges is None else diverges
    stop = max(start, min(first.routed, second.routed, length))
    rows = slice(start, stop)
    return Comparison(
        diverges=diverges,
        shared=length if diverges is None else diverges,
        start=start,
        jaccard_tokens=overlap(first.experts[rows], second.experts[rows]),
        entropy=second.entropy[start:length] - first.entropy[start:length],
    )


def overlap(
    ours: NDArray[np.uint16], theirs: NDArray[np.uint16], *, block: int = 512
) -> NDArray[np.float32]:
    """|A ∩ B| / |A ∪ B| of two sets of chosen experts [token, layer] of [token, layer, slot]."""
    slots = ours.shape[-1]
    made = np.empty(ours.shape[:2], np.float32)
    for start in range(0, len(ours), block):  # slots² comparisons per token, a block at a time
        part = slice(start, start + block)
        equal = ours[part, :, :, None] == theirs[part, :, None, :]
        common = equal.any(-1).sum(-1)
        made[part] = common / (2 * slots - common)
    return made
