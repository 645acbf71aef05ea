"""ExpertMap's summary, table and static picture."""

import numpy as np

from k2lab.engine.events import Routed
from k2lab.trace.trace import About, Trace
from k2lab.widgets.experts import ExpertMap, draw, table


def test_summary_tells_the_sizes(finished):
    expected = "ExpertMap(layers=5, experts=64, tokens=39, state=done)"
    assert repr(ExpertMap(finished())) == expected


def test_table_has_a_row_per_layer_with_its_number(finished):
    rows = table(finished().trace)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert all(0 <= float(row[1]) <= 1 for row in rows)


def test_k2_size_is_drawn_small_and_its_table_stays_short():
    about = About("K2", layers=61, dense_layers=1, experts=384, slots=8, scaling=1.0, vocab=10)
    trace = Trace(about)
    experts = np.random.default_rng(0).integers(0, 384, (200, 60, 8)).astype(np.uint16)
    margin = np.zeros((200, 60), np.float16)
    trace.append(Routed(0, experts, np.zeros((200, 60, 8), np.uint8), margin))
    assert len(draw(trace)) < 60_000
    assert [row[0] for row in table(trace)] == ["1", "2", "3", "4", "…", "57", "58", "59", "60"]


def test_no_routing_gives_no_picture():
    about = About("dense", layers=2, dense_layers=2, experts=0, slots=0, scaling=1.0, vocab=10)
    (picture,) = ExpertMap(Trace(about)).pictures()
    assert picture.png is None and picture.rows == ()
