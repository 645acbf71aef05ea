"""RouteLens: one token through all routers, live; and its static picture.

The live view is widgets/lens.js on a Store; scores and bias come on demand (details.py). The
picture has what every trace has: chosen experts in order, mixing weights, margins.
"""

import numpy as np
import traitlets

from k2lab.trace.trace import Trace
from k2lab.widgets.base import Picture, png
from k2lab.widgets.view import View

MOST_ROWS = 12  # layers in the static table; the picture has them all
CHOSEN = 1.2  # weight, in even shares, at which a chip has the end of the colour scale × 2


class RouteLens(View):
    """Why one token went to its experts: rank, margin, score, bias and weight by layer.

    `RouteLens(store)`, or of a run or trace alone. `lens`: all layers in order, or ties first.
    The token is the selection's (`store.playhead`), else the last.
    """

    stem = "lens"

    lens = traitlets.Enum(["all", "ties"], "all").tag(sync=True)

    def summary(self) -> str:
        """`RouteLens(token=92, layers=5, tokens=93, state=done)`."""
        layers = self.store.source.trace.about.moe_layers
        return f"RouteLens(token={self.token}, layers={layers}, {self.store.counts()})"

    @property
    def token(self) -> int:
        """The token that is shown; −1 where nothing was routed."""
        head, routed = self.store.playhead, self.store.source.trace.routed
        return head if 0 <= head < routed else routed - 1

    def pictures(self) -> tuple[Picture]:
        """The token's chips, layer by layer."""
        trace, token = self.store.source.trace, self.token
        drawable = token >= 0 and trace.about.moe_layers > 0
        return (
            Picture(
                title=f"RouteLens: token {token}, {trace.texts[token]!r}"
                if drawable
                else "RouteLens: no routed token",
                png=draw(trace, token) if drawable else None,
                head=("layer", "chosen experts", "weights", "margin"),
                rows=tuple(table(trace, token)) if drawable else (),
            ),
        )


def table(trace: Trace, token: int) -> list[tuple[str, ...]]:
    """One row per layer: number, experts in order, weights, margin."""
    rows: list[tuple[str, ...]] = [
        (
            str(trace.about.dense_layers + row),
            ", ".join(map(str, trace.experts[token, row].tolist())),
            ", ".join(f"{weight / 255:.2f}" for weight in trace.weights[token, row].tolist()),
            f"{float(trace.margin[token, row]):.4f}",
        )
        for row in range(trace.about.moe_layers)
    ]
    if len(rows) <= MOST_ROWS:
        return rows
    half = MOST_ROWS // 2
    return [*rows[:half], ("…", "…", "…", "…"), *rows[-half:]]


def draw(trace: Trace, token: int) -> bytes:
    """The picture as PNG; the same trace gives the same bytes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    experts, weights = trace.experts[token], trace.weights[token].astype(np.float64) / 255
    margin = trace.margin[token].astype(np.float64)
    layers, slots = experts.shape
    first = trace.about.dense_layers
    figure = Figure(
        figsize=(8, min(5.6, 0.8 + 0.24 * layers)), facecolor="white", layout="constrained"
    )
    chips, path, ties = figure.subplots(1, 3, width_ratios=(6, 3, 2), sharey=True)
    extent = (-0.5, slots - 0.5, first + layers - 0.5, first - 0.5)
    chips.imshow(
        weights, cmap="cividis", aspect="auto", interpolation="nearest", extent=extent,
        vmin=0, vmax=2 * CHOSEN / slots,
    )  # fmt: skip
    if layers <= 24:
        for row in range(layers):
            for slot in range(slots):
                light = weights[row, slot] * slots > CHOSEN
                chips.text(slot, first + row, str(experts[row, slot]), ha="center", va="center",
                           size=7, color="black" if light else "white")  # fmt: skip
    chips.set_xlabel("rank of the chosen expert (colour: mixing weight)", size=8)
    chips.set_ylabel("layer", size=8)
    chips.yaxis.set_major_locator(MaxNLocator(integer=True))
    numbers = np.arange(first, first + layers)
    path.plot(experts[:, 0], numbers, color="#0072b2", lw=1, marker="s", ms=3)
    for slot in range(1, slots):
        path.plot(experts[:, slot], numbers, "s", color="#999999", ms=1.5)
    path.set_xlim(-1, trace.about.experts)
    path.set_xlabel("path: first choice (line), others", size=8)
    ties.barh(numbers, np.maximum(margin, 1e-6), color="#d55e00", height=0.7)
    ties.set_xscale("log")
    ties.set_xlabel("margin", size=8)
    for axes in (chips, path, ties):
        axes.tick_params(labelsize=7)
    return png(figure)
