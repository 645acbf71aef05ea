"""CompareBranch: two runs side by side, live; and their static picture.

The live view is widgets/compare.js on a Store whose `runs` name the others. The picture has what
two traces say without a model: where they part, how far their routing agrees, how their entropies
differ.
"""

from typing import Any

import numpy as np

from k2lab.trace.compare import Comparison, compare
from k2lab.trace.trace import Trace
from k2lab.widgets.base import Picture, png
from k2lab.widgets.source import RunLike
from k2lab.widgets.store import Store, store_of
from k2lab.widgets.view import View

AROUND = 6  # tokens of each run quoted in the static table


class CompareBranch(View):
    """The tree of a run's branches; any two of them side by side.

    `CompareBranch(run, other)` of runs or traces, or `CompareBranch(store)` of a live lab, where
    branches join as they are made.
    """

    stem = "compare"

    def __init__(
        self,
        source: Store | RunLike | Trace,
        other: Store | RunLike | Trace | None = None,
        **values: Any,
    ) -> None:
        super().__init__(source, **values)
        self.other = None if other is None else store_of(other)
        if self.other is not None:
            self.store.runs = [
                _entry(self.store, "left", ""),
                _entry(self.other, "right", self.store.store_id),
            ]

    def summary(self) -> str:
        """`CompareBranch(shared=17, tokens=93, state=done)`, or without `shared` for one run."""
        if self.other is None:
            return f"CompareBranch({self.store.counts()})"
        shared = compare(self.store.source.trace, self.other.source.trace).shared
        return f"CompareBranch(shared={shared}, {self.store.counts()})"

    def finish(self) -> None:
        """Waits for both runs."""
        super().finish()
        if self.other is not None:
            self.other.finish()

    def pictures(self) -> tuple[Picture, ...]:
        """Agreement by layer and difference by token; nothing for one run."""
        if self.other is None:
            return ()
        left, right = self.store.source.trace, self.other.source.trace
        found = compare(left, right)
        part = found.shared
        head = ("", "left", "right")
        rows = (
            ("tokens", str(len(left)), str(len(right))),
            (f"from token {part}", _quote(left, part), _quote(right, part)),
        )
        drawable = found.jaccard_tokens.size > 0
        return (
            Picture(
                title=f"CompareBranch: {part} tokens shared",
                png=draw(found, left.about.dense_layers) if drawable else None,
                head=head,
                rows=rows,
            ),
        )


def draw(found: Comparison, first: int) -> bytes:
    """The picture as PNG, layers numbered from `first`; the same traces give the same bytes."""
    from matplotlib.figure import Figure

    values, part, difference = found.jaccard, found.start, found.entropy
    figure = Figure(figsize=(8, 2.4), facecolor="white", layout="constrained")
    layers, tokens = figure.subplots(1, 2, width_ratios=(1, 2))
    layers.barh(np.arange(first, first + len(values)), values, color="#0072b2", height=0.8)
    layers.set(xlim=(0, 1), ylim=(first + len(values) - 0.5, first - 0.5))
    layers.set_xlabel("same experts (Jaccard)", size=8)
    layers.set_ylabel("layer", size=8)
    known = np.flatnonzero(~np.isnan(difference))
    colours = np.where(difference[known] > 0, "#d98a3d", "#5b9bd5")
    tokens.bar(part + known, difference[known], width=1.0, color=colours, lw=0)
    tokens.axhline(0, color="#999999", lw=0.8)
    tokens.set_xlabel("token", size=8)
    tokens.set_ylabel("entropy, right − left (nats)", size=8)
    for axes in (layers, tokens):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _entry(store: Store, name: str, parent: str) -> dict[str, Any]:
    return {"id": store.store_id, "name": name, "parent": parent, "at": -1, "edits": []}


def _quote(trace: Trace, start: int) -> str:
    return "".join(trace.texts[start : min(len(trace), start + AROUND)])
