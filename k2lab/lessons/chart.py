"""Finished charts of the lessons: Plotly where they can be touched, a picture everywhere else.

One description, two drawings: JupyterLab shows the Plotly figure (zoom, values on hover), GitHub
and printed notebooks the picture. With `K2LAB_STATIC` the picture stands alone. Not here: charts
that grow while a run goes on, which are widgets.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from k2lab.engine.experiment import Effect, Experiment
from k2lab.widgets.base import Bundle, png
from k2lab.widgets.stills import wants_static

PLOTLY = "application/vnd.plotly.v1+json"
WIDTH, HEIGHT = 8.0, 2.8  # inches, at 100 dots each
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
"""Okabe–Ito, told apart by all eyes; more lines repeat them with dashes."""


UNITS = {"logits": "logits, mean |Δ|", "kl": "KL divergence, nats"}
"""Measures of an experiment that a chart shows, with their units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis shows."""

    title: str
    log: bool = False


class Chart:
    """Shows itself; a subclass gives the two drawings."""

    __slots__ = ()

    def plotly(self) -> Any:
        """The figure as a `plotly.graph_objects.Figure`."""
        raise NotImplementedError

    def picture(self) -> bytes:
        """The figure as PNG."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        bundle: Bundle = {
            "text/plain": repr(self),
            "image/png": base64.b64encode(self.picture()).decode("ascii"),
        }
        if not wants_static():
            bundle[PLOTLY] = json.loads(self.plotly().to_json())
        return bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines(Chart):
    """One line per name over the same `x`."""

    x: ArrayLike
    lines: Mapping[str, ArrayLike]
    across: Axis
    up: Axis
    marks: Sequence[float] = field(default=())  # heights of dotted lines to compare with

    def __repr__(self) -> str:
        return f"Lines({self.up.title} over {self.across.title}: {', '.join(self.lines)})"

    def plotly(self) -> Any:
        """Lines with their values on hover."""
        from plotly.graph_objects import Figure, Scatter

        x = np.asarray(self.x).tolist()
        figure = Figure()
        for place, (name, values) in enumerate(self.lines.items()):
            colour, dash = _look(place)
            line = {"color": colour, "dash": dash}
            figure.add_trace(Scatter(x=x, y=np.asarray(values).tolist(), name=name, line=line))
        for height in self.marks:
            figure.add_hline(float(height), line_dash="dot", line_color="grey")
        return _framed(figure, self.across, self.up)

    def picture(self) -> bytes:
        """The same lines, drawn."""
        figure, axes = _paper(self.across, self.up)
        for place, (name, values) in enumerate(self.lines.items()):
            colour, dash = _look(place)
            style = "--" if dash == "dash" else "-"
            axes.plot(np.asarray(self.x), np.asarray(values), style, color=colour, label=name)
        for height in self.marks:
            axes.axhline(height, color="grey", linestyle=":")
        axes.legend(fontsize=8)
        return png(figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat(Chart):
    """A matrix [row, column] as colours, brighter for more."""

    values: ArrayLike
    rows: Sequence[float]  # numbers of the rows, from the top
    columns: Sequence[float]
    across: Axis
    up: Axis
    title: str

    def __repr__(self) -> str:
        shape = " × ".join(str(size) for size in np.shape(self.values))
        return f"Heat({self.title}: {shape}, {self.up.title} × {self.across.title})"

    def plotly(self) -> Any:
        """A heat map with its values on hover."""
        from plotly.graph_objects import Figure, Heatmap

        values = np.asarray(self.values).tolist()
        cells = Heatmap(z=values, x=list(self.columns), y=list(self.rows), colorscale="Cividis")
        figure = _framed(Figure(cells), self.across, self.up)
        figure.update_layout(title=self.title)
        figure.update_yaxes(autorange="reversed")
        return figure

    def picture(self) -> bytes:
        """The same map, drawn."""
        figure, axes = _paper(self.across, self.up)
        first, last = (self.columns[0], self.rows[0]), (self.columns[-1], self.rows[-1])
        extent = (first[0] - 0.5, last[0] + 0.5, last[1] + 0.5, first[1] - 0.5)
        values = np.asarray(self.values, float)
        image = axes.imshow(
            values, "cividis", aspect="auto", interpolation="nearest", extent=extent
        )
        axes.set_title(self.title, size=9)
        figure.colorbar(image)
        return png(figure)


@dataclass(frozen=True, slots=True)
class Effects(Chart):
    """Treatment and controls of an experiment, with the interval of their difference.

    The interval stands at the end of the treatment's bar, so a difference of zero is the control's
    value: the dashed line. It is thick where it leaves that out.
    """

    found: Experiment

    def __repr__(self) -> str:
        return f"Effects({', '.join(each.measure for each in self._shown)})"

    @property
    def _shown(self) -> tuple[Effect, ...]:
        return tuple(each for each in self.found.effects if each.measure in UNITS)

    def plotly(self) -> Any:
        """Bars beside each other, one pair per measure."""
        from plotly.graph_objects import Bar
        from plotly.subplots import make_subplots

        shown = self._shown
        titles = [f"{UNITS[each.measure]}: p = {each.p:.2f}" for each in shown]
        figure = make_subplots(cols=len(shown), subplot_titles=titles)
        for place, each in enumerate(shown, start=1):
            ends: dict[str, Any] = {"array": [0, each.high - each.difference]}
            ends |= {"arrayminus": [0, each.difference - each.low], "thickness": _weight(each)}
            bars = Bar(
                x=[each.control, each.treatment],
                y=["control", "treatment"],
                orientation="h",
                marker_color=COLOURS[:2],
                error_x={"type": "data", "symmetric": False, **ends},
            )
            figure.add_trace(bars, row=1, col=place)
            figure.add_vline(
                each.control, row=1, col=place, line_dash="dash", line_color=COLOURS[0]
            )
        figure = _framed(figure, Axis(title=""), Axis(title=""))
        figure.update_layout(height=220, showlegend=False)
        figure.update_yaxes(type="category")
        return figure

    def picture(self) -> bytes:
        """The same bars, drawn."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 1.8), facecolor="white", layout="constrained")
        for axes, each in zip(figure.subplots(1, len(self._shown)), self._shown, strict=True):
            values = [each.control, each.treatment]
            axes.barh(["control", "treatment"], values, color=COLOURS[:2])
            ends = [[each.difference - each.low], [each.high - each.difference]]
            axes.errorbar(each.treatment, 1, xerr=ends, color="black", capsize=4, lw=_weight(each))
            axes.axvline(each.control, color=COLOURS[0], linestyle="--")
            axes.locator_params(axis="x", nbins=5)
            axes.set_title(f"{UNITS[each.measure]}: p = {each.p:.2f}", size=9)
        return png(figure)


def _weight(effect: Effect) -> float:
    """Width of an interval's line: thick where it leaves out a difference of zero."""
    return 1.0 if effect.low <= 0 <= effect.high else 3.0


def _look(place: int) -> tuple[str, str]:
    """Colour and dash of the line at this place."""
    dashed = place // len(COLOURS) % 2
    return COLOURS[place % len(COLOURS)], "dash" if dashed else "solid"


def _framed(figure: Any, across: Axis, up: Axis) -> Any:
    """A Plotly figure with our axes and size, on the page's own background."""
    figure.update_layout(
        template="none",
        height=round(HEIGHT * 120),
        margin={"l": 60, "r": 20, "t": 30, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808080"},  # read on light and on dark
    )
    figure.update_xaxes(title=across.title, type="log" if across.log else "linear")
    figure.update_yaxes(title=up.title, type="log" if up.log else "linear")
    return figure


def _paper(across: Axis, up: Axis) -> tuple[Any, Any]:
    """An empty Matplotlib figure with our axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=across.title, ylabel=up.title)
    axes.set_xscale("log" if across.log else "linear")
    axes.set_yscale("log" if up.log else "linear")
    return figure, axes
