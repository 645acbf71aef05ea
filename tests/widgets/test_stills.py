"""What a notebook keeps of a live view."""

import time
from types import SimpleNamespace
from typing import Any

import IPython
import IPython.display
import pytest

from k2lab.errors import BusyError
from k2lab.widgets import stills
from k2lab.widgets.base import WIDGET_VIEW, Column
from k2lab.widgets.experts import ExpertMap
from k2lab.widgets.store import Store
from k2lab.widgets.thoughts import ThoughtStream

Shown = list[tuple[dict[str, Any], str | None]]


@pytest.fixture
def shown(monkeypatch) -> Shown:
    """What is displayed or displayed anew, by its display's id, as in a kernel."""
    seen: Shown = []

    def display(bundle, *, raw, display_id=None):
        assert raw
        seen.append((bundle, display_id))

    monkeypatch.delenv("K2LAB_STATIC", raising=False)
    monkeypatch.setattr(stills, "LULL", 0.05)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(IPython.display, "update_display", display)
    return seen


def waited(shown: Shown, count: int) -> int:
    until = time.monotonic() + 20
    while len(shown) < count and time.monotonic() < until:
        time.sleep(0.02)
    return len(shown)


def test_below_the_live_view_lies_a_picture_that_is_drawn_anew_after_each_run(run, finished, shown):
    run.grow(3)
    store = Store(run)
    ThoughtStream(store)._ipython_display_()
    (live, no_name), (words, name) = shown
    assert set(live) == {WIDGET_VIEW, "text/plain"} and no_name is None and name
    assert f'<div class="k2-still-{store.store_id}">' in words["text/html"]
    assert "going on" in words["text/html"] and "image/png" not in words
    run.end()
    assert waited(shown, 3) == 3
    assert shown[2][1] == name and "image/png" in shown[2][0]
    store.attach(finished())
    assert waited(shown, 4) == 4
    assert shown[3][1] == name and shown[3][0] != shown[2][0]


def test_what_has_ended_is_drawn_once(finished, shown):
    run = finished()
    Column([ThoughtStream(run), ExpertMap(run)])._ipython_display_()
    time.sleep(0.3)
    assert len(shown) == 2 and "image/png" in shown[1][0]


def test_a_run_that_begins_in_the_lull_is_not_drawn(run, finished, shown):
    store = Store(finished())
    ThoughtStream(store)._ipython_display_()
    store.attach(finished())
    store.attach(run)
    time.sleep(0.4)
    assert len(shown) == 2


class Busy(ThoughtStream):
    """Asks for something that a run keeps it from, so many times."""

    times = 0

    def pictures(self):
        self.times -= 1
        if self.times >= 0:
            raise BusyError("A run goes on.", expected="none.", mend="wait.")
        return super().pictures()


def test_a_picture_waits_for_the_engine_of_another_run(finished, shown):
    view = Busy(finished())
    view.times = 3
    view._ipython_display_()
    assert len(shown) == 2
    words, name = shown[1]
    assert "waiting for a run" in words["text/html"] and "image/png" not in words
    assert waited(shown, 3) == 3 and view.times == -1
    assert shown[2][1] == name and "image/png" in shown[2][0]


def test_a_picture_after_a_run_waits_for_the_engine_of_another_one(run, finished, shown):
    run.grow(3)
    view = Busy(run)
    view._ipython_display_()
    view.times = 2
    run.end()
    assert waited(shown, 3) == 3 and view.times == -1
    assert "image/png" in shown[2][0]


@pytest.mark.parametrize("where", ["static", "terminal", "script"])
def test_elsewhere_the_bundle_is_shown(where, finished, shown, monkeypatch):
    match where:
        case "static":
            monkeypatch.setenv("K2LAB_STATIC", "1")
        case "terminal":
            monkeypatch.setattr(IPython, "get_ipython", SimpleNamespace)
        case _:
            monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    for view in (ThoughtStream(finished()), Column([]), Column([ExpertMap(finished())])):
        with pytest.raises(NotImplementedError):
            view._ipython_display_()
    assert shown == []
