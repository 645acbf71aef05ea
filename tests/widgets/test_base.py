"""Joined front ends, static bundles, stable summaries."""

import re
import shutil
import subprocess
import threading
from dataclasses import replace

import pytest

from k2lab import paths
from k2lab.engine.events import KINDS
from k2lab.errors import InputError
from k2lab.widgets.base import WIDGET_VIEW, Column, joined_script, joined_style
from k2lab.widgets.experts import ExpertMap
from k2lab.widgets.store import Store
from k2lab.widgets.thoughts import ThoughtStream
from k2lab.widgets.timeline import Timeline

STEMS = ["store", "thoughts", "experts", "lens", "timeline", "attention", "dashboard", "page"]


@pytest.mark.parametrize("stem", STEMS)
def test_joined_module_has_no_import_and_one_default_export(stem):
    script = joined_script(stem)
    assert not re.search(r"^import ", script, re.MULTILINE)
    assert len(re.findall(r"^export default ", script, re.MULTILINE)) == 1
    if stem != "page":  # which holds the store and the dashboard, and is no widget
        assert len((script + joined_style(stem)).encode()) < 150_000


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_joined_module_is_a_module(stem, tmp_path):
    file = tmp_path / f"{stem}.mjs"
    file.write_text(joined_script(stem), encoding="utf-8")
    checked = subprocess.run(["node", "--check", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_front_end_knows_the_kinds_in_their_order():
    kit = (paths.front() / "_numbers.js").read_text(encoding="utf-8")
    listed = re.search(r"KINDS = \[(.*?)\]", kit)
    assert listed is not None
    assert tuple(re.findall(r'"(\w+)"', listed[1])) == KINDS


def test_front_end_selection_is_the_stores():
    script = (paths.front() / "store.js").read_text(encoding="utf-8")
    listed = re.search(r"SELECTION = \[(.*?)\]", script)
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed[1])) <= set(Store.class_trait_names(sync=True))


def outermost(style: str) -> list[str]:
    """The selectors and at-rules that stand in no other."""
    found, depth, text = list[str](), 0, ""
    for one in style:
        if one == "{" and depth == 0:
            found.append(text.strip())
        depth += (one == "{") - (one == "}")
        text = "" if one in "{}" else text + one
    assert depth == 0
    return found


@pytest.mark.parametrize("stem", STEMS)
def test_style_takes_colours_from_the_theme_and_stays_within_the_widget(stem):
    style = joined_style(stem)
    assert "--jp-layout-color1" in style and "prefers-reduced-motion" in style
    for rule in outermost(style):
        assert re.fullmatch(r"\.k2lab\b[^,]*|@keyframes k2-\w+", rule), rule


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_front_end_tests_pass():
    done = subprocess.run(
        ["node", "--test"], cwd=paths.front(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_option_names_the_nearest(finished):
    with pytest.raises(InputError, match="write 'strip'"):
        ThoughtStream(finished(), stripe="time")
    with pytest.raises(InputError, match="write 'mode'"):
        ExpertMap(finished(), mod="all")


def test_bundle_has_the_live_view_and_a_static_one(finished, monkeypatch):
    monkeypatch.delenv("K2LAB_STATIC", raising=False)
    bundle = ThoughtStream(finished())._repr_mimebundle_()
    assert set(bundle) == {WIDGET_VIEW, "text/html", "image/png", "text/plain"}


def test_static_asks_for_the_picture_only_and_waits_for_the_end(run, monkeypatch):
    monkeypatch.setenv("K2LAB_STATIC", "1")
    run.grow(5)
    view = ExpertMap(run)
    timer = threading.Timer(0.3, lambda: (run.grow(4), run.end()))
    timer.start()
    bundle = view._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert bundle["text/plain"] == "ExpertMap(layers=5, experts=64, tokens=9, state=done)"


def test_freeze_gives_the_same_bytes_twice_and_nothing_that_changes(finished):
    bundles = [Column([ThoughtStream(f), ExpertMap(f)]).freeze()._repr_mimebundle_()
               for f in (finished(), finished())]  # fmt: skip
    assert bundles[0] == bundles[1] and WIDGET_VIEW not in bundles[0]
    assert "0x" not in bundles[0]["text/plain"]


def test_static_html_survives_a_sanitiser_and_shows_model_text_as_text(finished):
    run = finished()
    html = Column([ThoughtStream(run), ExpertMap(run)]).freeze()._repr_mimebundle_()["text/html"]
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {"p", "b", "img", "table", "tr", "th", "td"}
    assert set(re.findall(r'src="([^,]{0,22})', html)) == {"data:image/png;base64"}


def test_half_a_character_in_a_result_can_be_shown(finished):
    trace = finished().trace
    trace.calls[0] = replace(trace.calls[0], content="caf\ud800")
    assert "caf\ufffd" in Timeline(trace).freeze()._repr_mimebundle_()["text/html"]


def test_a_run_without_tokens_has_a_bundle_too(run):
    run.end()
    bundle = Column([ThoughtStream(run), ExpertMap(run)])._repr_mimebundle_()
    assert "image/png" not in bundle and "0 tokens" in bundle["text/html"]


def test_a_run_that_goes_on_is_shown_without_waiting_for_a_picture(run, monkeypatch):
    monkeypatch.delenv("K2LAB_STATIC", raising=False)
    run.grow(3)
    view = Column([ThoughtStream(run), ExpertMap(run)])
    bundle = view._repr_mimebundle_()
    assert WIDGET_VIEW in bundle and "image/png" not in bundle
    assert "going on" in bundle["text/html"] and "freeze" in bundle["text/html"]
    run.end()
    assert "image/png" in view._repr_mimebundle_()
