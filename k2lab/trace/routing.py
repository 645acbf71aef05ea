"""What a trace's routing says: load per expert, how even it is, thinking against answer.

All functions take and give numpy arrays; a *load* is [MoE layer, expert], the number of times an
expert was chosen. Load is use, not cause: a busy expert need not matter (see ablation).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import Kind
from k2lab.trace.trace import Trace

Load = NDArray[np.int64]
Shares = NDArray[np.float64]


def load(trace: Trace, tokens: slice | NDArray[Any] | None = None) -> Load:
    """How often each expert was chosen [MoE layer, expert], by all or the given tokens."""
    chosen = trace.experts if tokens is None else trace.experts[tokens]
    layers, experts = trace.about.moe_layers, trace.about.experts
    flat = chosen.astype(np.int64) + np.arange(layers)[:, None] * experts
    return np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts)


def load_of(trace: Trace, kind: Kind) -> Load:
    """The load [MoE layer, expert] by the tokens of one kind."""
    routed = trace.routed
    return load(trace, np.flatnonzero(trace.mask(kind)[:routed]))


def shares(counts: Load) -> Shares:
    """Each layer's load divided by its sum [MoE layer, expert]; zero where there is none."""
    total = counts.sum(axis=1, keepdims=True)
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
