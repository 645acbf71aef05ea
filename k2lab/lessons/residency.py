"""Who lies in the slots, and what it costs to bring them: a picture over the tokens of a run.

Three rows over the same tokens: experts that had to be brought in each layer, the slots of one
layer (a change of colour is a newcomer), and below them bytes and waiting. `follow` draws it again
and again while a run goes on. Not here: the replay under another policy (`weights/residency.py`).
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import ExpertsMoved
from k2lab.errors import TraceError
from k2lab.lessons.chart import WIDTH, Chart
from k2lab.trace.trace import Trace
from k2lab.widgets.base import Freezable, Picture, png
from k2lab.widgets.source import RunLike

ROWS = 5.2  # inches of all three
EVERY = 0.5  # seconds between two drawings of a run that goes on
EMPTY = -1
Moves = Sequence[ExpertsMoved]
BLANK = b"\x89PNG\r\n\x1a\n"  # until there is something to draw


@dataclass(frozen=True, slots=True)
class Residency(Chart):
    """The moves of a trace; `layer` is the one whose slots are shown (None: the busiest)."""

    trace: Trace
    layer: int | None = None

    def __repr__(self) -> str:
        slots = self.trace.moved[0].slots if self.trace.moved else 0
        return f"Residency(slots={slots}, layer={self.layer or 'busiest'})"

    @property
    def shown(self) -> int:
        """The place among the MoE layers of the layer whose slots are shown."""
        if self.layer is not None:
            return self.layer - self.trace.about.dense_layers
        return int(misses(self.trace.moved).sum(1).argmax())

    def plotly(self) -> Any:
        """The same rows with their values on hover."""
        from plotly.graph_objects import Bar, Heatmap
        from plotly.subplots import make_subplots

        moves, first = self._checked(), self.trace.about.dense_layers
        shared: dict[str, Any] = {"shared_xaxes": True, "vertical_spacing": 0.06}
        figure = make_subplots(
            rows=3, cols=1, specs=[[{}], [{}], [{"secondary_y": True}]], **shared
        )
        layers = list(range(first, first + self.trace.about.moe_layers))
        brought = misses(moves).tolist()
        scale = {"colorscale": "Cividis", "showscale": False}
        figure.add_trace(Heatmap(z=brought, y=layers, name="brought", **scale), row=1, col=1)
        held = np.where(slots(moves, self.shown) == EMPTY, np.nan, slots(moves, self.shown))
        lying = [[None if np.isnan(each) else int(each) for each in row] for row in held]
        scale["colorscale"] = "Turbo"
        figure.add_trace(Heatmap(z=lying, name="expert", **scale), row=2, col=1)
        figure.add_trace(Bar(y=megabytes(moves).tolist(), name="MB brought"), row=3, col=1)
        waited = {"name": "ms waited", "mode": "lines", "type": "scatter"}
        figure.add_trace({"y": stalls(moves).tolist(), **waited}, row=3, col=1, secondary_y=True)
        figure.update_layout(template="none", height=round(ROWS * 100), showlegend=False)
        figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", font={"color": "#808080"})
        names = ("layer", f"slot of layer {first + self.shown}", "MB brought")
        for row, name in enumerate(names, 1):
            figure.update_yaxes(title=name, row=row, col=1)
        figure.update_xaxes(title="token", row=3, col=1)
        return figure

    def picture(self) -> bytes:
        """The same rows, drawn."""
        from matplotlib.figure import Figure

        moves, first = self._checked(), self.trace.about.dense_layers
        figure = Figure(figsize=(WIDTH, ROWS), facecolor="white", layout="constrained")
        top, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 2))
        brought = misses(moves)
        layers, tokens = brought.shape
        whole = (-0.5, tokens - 0.5, first + layers - 0.5, first - 0.5)
        style: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
        image = top.imshow(brought, cmap="cividis", extent=whole, **style)
        top.set_ylabel("layer")
        top.set_yticks(
            range(first, first + layers) if layers <= 12 else [first, first + layers - 1]
        )
        hits, told = sum(int(each.hits.sum()) for each in moves), round(brought.sum())
        top.set_title(f"experts brought per token: {told:,} in all; {hits:,} were there", size=9)
        figure.colorbar(image, ax=top)
        held = slots(moves, self.shown)
        middle.imshow(np.ma.masked_equal(held, EMPTY), cmap="turbo", **style)
        middle.set_ylabel("slot")
        named = f"who lies in the slots of layer {first + self.shown} (colour: the expert's number)"
        middle.set_title(named, size=9)
        below.bar(np.arange(tokens), megabytes(moves), color="#56b4e9", width=1.0)
        below.set(xlabel="token", ylabel="MB brought")
        waiting = below.twinx()
        waiting.plot(np.arange(tokens), stalls(moves), color="#d55e00", lw=0.8)
        waiting.set_ylabel("ms waited", color="#d55e00")
        return png(figure)

    def _checked(self) -> Moves:
        trace, moves = self.trace, tuple(self.trace.moved)  # the trace may grow meanwhile
        if not moves:
            raise TraceError(
                "No expert was moved in this run.",
                expected="a run of a model whose experts are offloaded.",
                mend="Load with placement='tiered' and a device_budget, then run again.",
            )
        if not 0 <= self.shown < trace.about.moe_layers:
            first = trace.about.dense_layers
            last = first + trace.about.moe_layers - 1
            raise TraceError(
                f"Layer {self.layer} has no slots.",
                expected=f"a layer with experts, {first} to {last}.",
                mend="Leave it out to see the busiest.",
            )
        return moves


class Following(Freezable, ipywidgets.Image):  # type: ignore[misc]
    """The picture of a run, drawn anew while it goes on; the finished one where nobody watches."""

    def __init__(self, run: RunLike, layer: int | None = None) -> None:
        self.run, self.layer = run, layer
        super().__init__(value=BLANK, format="png")
        threading.Thread(target=self._redraw, daemon=True, name="k2lab-residency").start()

    def summary(self) -> str:
        """`Residency(slots=17, layer=3)`."""
        return repr(self._chart())

    def pictures(self) -> tuple[Picture]:
        """The picture; a saved notebook compares its text, which no weights and no clock change."""
        chart = self._chart()
        png = chart.picture() if chart.trace.moved else None
        return (Picture(title=repr(chart), png=png, head=(), rows=()),)

    def finish(self) -> None:
        """Waits for the run."""
        self.run.wait()

    def _chart(self) -> Residency:
        return Residency(self.run.trace, self.layer)

    def _redraw(self) -> None:
        done = False
        while not done:
            done = self.run.done  # asked before drawing: the last picture has everything
            if self.run.trace.moved:
                self.value = self._chart().picture()
            if not done:
                time.sleep(EVERY)


def follow(run: RunLike, layer: int | None = None) -> Following:
    """The picture of this run, live; as a cell's last value it is shown at once."""
    return Following(run, layer)


def misses(moves: Moves) -> NDArray[np.float64]:
    """Experts brought per token, [MoE layer, token]; a forward's are spread over its tokens."""
    return _spread(moves, np.array([each.misses for each in moves], float))


def megabytes(moves: Moves) -> NDArray[np.float64]:
    """Bytes brought over all links per token, in 10⁶ [token]."""
    moved = [[sum(each.bytes_moved.values()) / 1e6] for each in moves]
    return _spread(moves, np.array(moved, float))[0]


def stalls(moves: Moves) -> NDArray[np.float64]:
    """Milliseconds that the network waited for experts per token, [token]."""
    return _spread(moves, np.array([[each.stall.sum() * 1e3] for each in moves]))[0]


def slots(moves: Moves, layer: int) -> NDArray[np.int64]:
    """Which expert lies in each slot after each token's forward, −1 for none: [slot, token].

    `layer` is its place among the MoE layers. The loads of the run are replayed.
    """
    held = np.full(moves[0].slots if moves else 0, EMPTY)
    after = []
    for each in moves:
        _replay(held, each, layer)
        after.append(held.copy())
    return _spread(moves, np.array(after, float).reshape(len(after), -1), share=False).astype(int)


def _replay(held: NDArray[np.int64], moved: ExpertsMoved, layer: int) -> None:
    for _, slot, expert, _ in moved.loads[moved.loads[:, 0] == layer].tolist():
        held[slot] = expert


def _spread(moves: Moves, values: NDArray[Any], *, share: bool = True) -> NDArray[np.float64]:
    """[forward, …] as […, token], shared out over the tokens of each forward."""
    counts = np.array([each.tokens for each in moves], int)
    even = values / counts[:, None] if share else values
    return np.repeat(even, counts, axis=0).T
