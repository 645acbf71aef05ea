"""What a trace's routing says: load per expert, how even it is, who works with whom.

All functions take and give numpy arrays; a *load* is [MoE layer, expert], the number of times an
expert was chosen. Load is use, not cause: a busy expert need not matter (see ablation).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import Kind
from k2lab.errors import TraceError
from k2lab.trace.trace import Trace

BLOCK = 4096  # tokens counted at once

Load = NDArray[np.int64]
Shares = NDArray[np.float64]


def load(trace: Trace, tokens: slice | NDArray[Any] | None = None) -> Load:
    """How often each expert was chosen [MoE layer, expert], by all or the given tokens."""
    chosen = trace.experts if tokens is None else trace.experts[tokens]
    return counted(chosen, trace.about.moe_layers, trace.about.experts)


def counted(chosen: NDArray[np.uint16], layers: int, experts: int) -> Load:
    """How often each expert is among the chosen [token, MoE layer, slot]: [MoE layer, expert]."""
    counts = np.zeros(layers * experts, np.int64)
    for start in range(0, len(chosen), BLOCK):
        flat = chosen[start : start + BLOCK].astype(np.int32)
        flat += np.arange(layers, dtype=np.int32)[:, None] * experts
        counts += np.bincount(flat.ravel(), minlength=layers * experts)
    return counts.reshape(layers, experts)


def load_of(trace: Trace, kind: Kind) -> Load:
    """The load [MoE layer, expert] by the tokens of one kind."""
    routed = trace.routed
    return load(trace, np.flatnonzero(trace.mask(kind)[:routed]))


def shares(counts: Load) -> Shares:
    """Each layer's load divided by its sum [MoE layer, expert]; zero where there is none."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(counts / np.maximum(total, 1))


def entropy(counts: Load) -> Shares:
    """Entropy of each layer's load as share of the largest possible, ln(experts) [MoE layer]."""
    share = shares(counts)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(-(share * logs).sum(axis=1) / np.log(counts.shape[1]) + 0.0)


def gini(counts: Load) -> Shares:
    """Gini coefficient of each layer's load [MoE layer]: 0 even, towards 1 all on one expert."""
    ordered = np.sort(shares(counts), axis=1)
    experts = counts.shape[1]
    rank = 2 * np.arange(1, experts + 1) - experts - 1
    return np.asarray((ordered * rank).sum(axis=1) / experts)


def dormant(counts: Load) -> Shares:
    """Share of each layer's experts that were never chosen [MoE layer]."""
    return np.asarray((counts == 0).mean(axis=1))


def thinking_minus_answer(trace: Trace) -> Shares:
    """Difference of load shares [MoE layer, expert]; positive: used more while thinking."""
    return shares(load_of(trace, "thinking")) - shares(load_of(trace, "answer"))


def margins(trace: Trace) -> NDArray[np.float32]:
    """Smallest margin over the layers of each routed token: how near a tie was. Inf: none chosen.

    A small one says that a slightly different number would have chosen another expert.
    """
    return trace.margin.min(axis=1, initial=np.inf).astype(np.float32)


def coactivation(trace: Trace, row: int) -> NDArray[np.int64]:
    """How often two experts of a MoE layer (row of the arrays) share a token [expert, expert].

    The diagonal is each expert's load.
    """
    used = _used(trace, row, trace.routed)
    return np.asarray(used.T @ used, np.int64)


def flow(trace: Trace, row: int) -> NDArray[np.int64]:
    """Tokens that used expert i of MoE layer `row` and j of the next one [expert i, expert j]."""
    length = trace.routed  # once: a run may go on in between
    return np.asarray(_used(trace, row, length).T @ _used(trace, row + 1, length), np.int64)


def surprise(counts: NDArray[np.int64]) -> Shares:
    """log2 of how much more often pairs occur than independent choices would [expert, expert].

    `counts` from `flow`; 0 where the pair never occurs, or one of the two.
    """
    first, second = counts.sum(axis=1, keepdims=True), counts.sum(axis=0, keepdims=True)
    total = max(1, counts.sum())
    expected = first * second / total
    seen = (expected > 0) & (counts > 0)
    ratio = np.divide(counts, expected, out=np.ones(counts.shape), where=seen)
    return np.asarray(np.log2(ratio))


def _used(trace: Trace, row: int, length: int) -> NDArray[np.float32]:
    """Which experts of a row each of the first tokens used [token, expert], as 0 and 1."""
    layers = trace.about.moe_layers
    if not 0 <= row < layers:
        raise TraceError(
            f"The row {row} of the routing.",
            expected=f"a MoE layer counted from 0, at most {layers - 1}; a flow needs a next one.",
            mend=f"subtract the {trace.about.dense_layers} dense layers from a layer's number.",
        )
    used = np.zeros((length, trace.about.experts), np.float32)
    np.put_along_axis(used, trace.experts[:length, row].astype(np.int64), 1, axis=1)
    return used
