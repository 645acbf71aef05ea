"""A recorded trace in numbers, for a glance at a file: of what, how long, how evenly routed."""

from typing import Any

import numpy as np

from k2lab.engine.events import KINDS
from k2lab.trace import routing
from k2lab.trace.trace import Trace


def figures(trace: Trace) -> dict[str, Any]:
    """Nested figures, ready for JSON."""
    about, kinds, entropy, chosen = trace.about, trace.kinds, trace.entropy, trace.experts
    counts = routing.counted(chosen, about.moe_layers, about.experts)
    known = entropy[~np.isnan(entropy)]
    mean = np.maximum(counts.mean(axis=1), 1e-9)
    return {
        "model": about.model,
        "layers": about.layers,
        "moe_layers": about.moe_layers,
        "routed_experts": about.experts,
        "experts_per_token": about.slots,
        "tokens": len(kinds),
        "routed": len(chosen),
        "by_kind": {KINDS[code]: n for code, n in enumerate(np.bincount(kinds).tolist()) if n},
        "calls": len(trace.calls),
        "end": trace.stopped.reason if trace.stopped else "growing",
        "redacted": trace.redacted,
        "mean_entropy_nats": float(known.mean()) if len(known) else None,
        "never_chosen": int((counts == 0).sum()) if len(chosen) else None,
        "largest_max_over_mean_load": float((counts.max(axis=1) / mean).max(initial=0.0)),
        "captured": {name: list(trace.captured.layers(name)) for name in trace.captured.names},
        "captured_bytes": trace.captured.nbytes,
    }
