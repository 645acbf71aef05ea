"""RouteLens' summary, table and static picture."""

import numpy as np

from k2lab.engine.events import Routed
from k2lab.trace.trace import About, Trace
from k2lab.widgets.lens import RouteLens, draw, table
from k2lab.widgets.store import Store


def test_summary_names_the_selected_token_or_the_last(finished):
    store = Store(finished())
    lens = RouteLens(store)
    assert repr(lens) == "RouteLens(token=38, layers=5, tokens=39, state=done)"
    store.playhead = 7
    assert lens.token == 7
    store.playhead = 999
    assert lens.token == 38


def test_table_has_experts_in_order_with_weights_and_margin(finished):
    trace = finished().trace
    rows = table(trace, 5)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0][1] == ", ".join(map(str, trace.experts[5, 0].tolist()))
    assert rows[0][2].split(", ")[0] == "0.13" and rows[0][3] == "0.0100"


def test_k2_size_is_drawn_small_and_its_table_stays_short():
    about = About("K2", layers=61, dense_layers=1, experts=384, slots=8, scaling=1.0, vocab=10)
    trace = Trace(about)
    experts = np.random.default_rng(0).integers(0, 384, (3, 60, 8)).astype(np.uint16)
    trace.append(
        Routed(0, experts, np.full((3, 60, 8), 32, np.uint8), np.zeros((3, 60), np.float16))
    )
    assert len(draw(trace, 2)) < 60_000
    assert len(table(trace, 2)) == 13


def test_no_routing_gives_no_picture():
    about = About("dense", layers=2, dense_layers=2, experts=0, slots=0, scaling=1.0, vocab=10)
    (picture,) = RouteLens(Trace(about)).pictures()
    assert picture.png is None and picture.rows == ()
