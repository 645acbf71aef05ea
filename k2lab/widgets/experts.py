"""ExpertMap: layers × routed experts, live; and its static picture.

The live view is widgets/experts.js on a Store. The picture is the load of the whole run with an
axis in layer numbers, and beside it how even each layer's load is.
"""

import traitlets

from k2lab.trace import routing
from k2lab.trace.trace import Trace
from k2lab.widgets.base import Picture, png
from k2lab.widgets.view import View

MOST_ROWS = 8  # layers in the static table; the picture has them all


class ExpertMap(View):
    """Which experts computed which tokens, in every layer.

    `ExpertMap(store)`, or of a run or trace alone. `mode`: all, token, range (the selected
    tokens) or difference (thinking − answer); `sort`: id, load or affinity.
    """

    stem = "experts"

    mode = traitlets.Enum(["all", "token", "range", "difference"], "all").tag(sync=True)
    sort = traitlets.Enum(["id", "load", "affinity"], "id").tag(sync=True)

    def summary(self) -> str:
        """`ExpertMap(layers=5, experts=64, tokens=93, state=done)`."""
        about = self.store.source.trace.about
        return (
            f"ExpertMap(layers={about.moe_layers}, experts={about.experts}, {self.store.counts()})"
        )

    def pictures(self) -> tuple[Picture]:
        """The load as a heat map, and its evenness by layer."""
        trace = self.store.source.trace
        drawable = trace.routed > 0 and trace.about.moe_layers > 0
        return (
            Picture(
                title=f"ExpertMap: load of {trace.about.experts} experts, {trace.routed} tokens",
                png=draw(trace) if drawable else None,
                head=("layer", "load entropy", "Gini", "dormant", "busiest expert"),
                rows=tuple(table(trace)) if drawable else (),
            ),
        )


def table(trace: Trace) -> list[tuple[str, ...]]:
    """One row per layer: number, load entropy, Gini, dormant share, busiest expert."""
    load = routing.load(trace)
    entropy, gini, dormant = routing.entropy(load), routing.gini(load), routing.dormant(load)
    busiest = load.argmax(axis=1)
    rows: list[tuple[str, ...]] = [
        (
            str(trace.about.dense_layers + row),
            f"{entropy[row]:.3f}",
            f"{gini[row]:.3f}",
            f"{dormant[row]:.1%}",
            f"{busiest[row]} ({load[row, busiest[row]]}×)",
        )
        for row in range(len(load))
    ]
    if len(rows) <= MOST_ROWS:
        return rows
    half = MOST_ROWS // 2
    return [*rows[:half], ("…", "…", "…", "…", "…"), *rows[-half:]]


def draw(trace: Trace) -> bytes:
    """The picture as PNG; the same trace gives the same bytes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    load = routing.load(trace)
    share = load / max(1, trace.routed)
    layers, experts = load.shape
    first = trace.about.dense_layers
    figure = Figure(
        figsize=(8, min(5.2, 1.3 + 0.22 * layers)), facecolor="white", layout="constrained"
    )
    left, *bars = figure.subplots(1, 4, width_ratios=(11, 1, 1, 1), sharey=True)
    extent = (-0.5, experts - 0.5, first + layers - 0.5, first - 0.5)
    image = left.imshow(
        share, cmap="cividis", aspect="auto", interpolation="nearest", extent=extent
    )
    left.set_xlabel("expert", size=8)
    left.set_ylabel("layer", size=8)
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    scale = figure.colorbar(image, ax=left, location="top", aspect=60, shrink=0.5, pad=0.02)
    scale.set_label("share of tokens", size=8)
    scale.ax.tick_params(labelsize=7)
    numbers = range(first, first + layers)
    named = {
        "entropy": routing.entropy(load),
        "Gini": routing.gini(load),
        "dormant": routing.dormant(load),
    }
    for axes, (name, values) in zip(bars, named.items(), strict=True):
        axes.barh(numbers, values, height=0.8, color="#7b8fa8")
        axes.set(xlim=(0, 1), xticks=(0, 1))
        axes.set_title(name, size=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[:4]:
        axes.tick_params(labelsize=7)
    return png(figure)
