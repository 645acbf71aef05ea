"""One description, two drawings with the same numbers in them."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from k2lab.engine.experiment import Effect, Experiment
from k2lab.lessons.chart import PLOTLY, Axis, Chart, Effects, Heat, Lines

LINES = Lines(
    x=np.arange(1, 4),
    lines={"plain": [1.0, 2.0, 3.0], "YaRN <b>": np.array([3.0, 2.0, 1.0])},
    across=Axis(title="distance", log=True),
    up=Axis(title="score"),
    marks=(1.0,),
)
HEAT = Heat(
    values=np.array([[0.0, 1.0, 2.0], [3.0, np.nan, 5.0]]),
    rows=(1, 2),
    columns=(0, 1, 2),
    across=Axis(title="head"),
    up=Axis(title="layer"),
    title="effect",
)


EFFECTS = Effects(
    Experiment(
        edits=(),
        controls=(),
        tokens=9,
        seed=0,
        effects=(
            Effect("logits", 2.0, 1.0, 1.0, -0.5, 1.5, 0.2),
            Effect("kl", 0.2, 0.1, 0.1, 0.05, 0.15, 0.01),
            Effect("tokens", 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        ),
    )
)
CHARTS = [LINES, HEAT, EFFECTS]
NAMES = ["lines", "heat", "effects"]


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_live_chart_has_a_figure_and_a_picture(chart: Chart) -> None:
    bundle = chart._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"])[1:4] == b"PNG"
    assert bundle["text/plain"] == repr(chart)
    json.dumps(bundle[PLOTLY], allow_nan=False)
    assert len(json.dumps(bundle)) < 60_000


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_static_chart_is_its_picture(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    live = chart._repr_mimebundle_()
    monkeypatch.setenv("K2LAB_STATIC", "1")
    bundle = chart._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    assert bundle["image/png"] == live["image/png"]  # the same bytes each time


def test_lines_carry_their_numbers_and_scales() -> None:
    figure: dict[str, Any] = LINES._repr_mimebundle_()[PLOTLY]
    plain, yarn = figure["data"]
    assert (plain["name"], plain["x"], plain["y"]) == ("plain", [1, 2, 3], [1.0, 2.0, 3.0])
    assert yarn["y"] == [3.0, 2.0, 1.0]
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["layout"]["yaxis"]["type"] == "linear"
    assert len(figure["layout"]["shapes"]) == 1
    assert repr(LINES) == "Lines(score over distance: plain, YaRN <b>)"


def test_a_heat_map_counts_its_rows_from_the_top() -> None:
    figure: dict[str, Any] = HEAT._repr_mimebundle_()[PLOTLY]
    (cells,) = figure["data"]
    assert cells["z"] == [[0.0, 1.0, 2.0], [3.0, None, 5.0]]
    assert cells["y"] == [1, 2]
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert repr(HEAT) == "Heat(effect: 2 × 3, layer × head)"


def test_many_lines_stay_apart() -> None:
    many = Lines(
        x=[0, 1],
        lines={str(number): [number, number] for number in range(14)},
        across=Axis(title="x"),
        up=Axis(title="y"),
    )
    looks = {
        (line["line"]["color"], line["line"]["dash"])
        for line in many._repr_mimebundle_()[PLOTLY]["data"]
    }
    assert len(looks) == 14


def test_effects_keep_both_measures_and_the_interval() -> None:
    assert repr(EFFECTS) == "Effects(logits, kl)"
    figure = EFFECTS.plotly()
    assert [list(bars.x) for bars in figure.data] == [[1.0, 2.0], [0.1, 0.2]]
    assert list(figure.data[0].error_x.array) == [0, 0.5]
    assert list(figure.data[0].error_x.arrayminus) == [0, 1.5]


def test_the_interval_is_to_be_compared_with_the_controls_value() -> None:
    figure = EFFECTS.plotly()
    dashed = [each for each in figure.layout.shapes if each.line.dash == "dash"]
    assert [(each.x0, each.x1, each.xref) for each in dashed] == [(1, 1, "x"), (0.1, 0.1, "x2")]
    for bars, line, zero_is_out in zip(figure.data, dashed, (False, True), strict=True):
        treatment, reach = bars.x[1], bars.error_x
        low, high = treatment - reach.arrayminus[1], treatment + reach.array[1]
        assert (not low <= line.x0 <= high) == zero_is_out
        assert reach.thickness == (3 if zero_is_out else 1)
