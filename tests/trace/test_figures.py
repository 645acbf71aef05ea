"""The numbers of a file, and the commands that show it."""

import json
from pathlib import Path

import pytest

from k2lab.cli import main
from k2lab.trace.figures import figures
from k2lab.trace.synthetic import K2_SIZE, synthetic
from k2lab.trace.trace import Trace


def test_figures_are_those_of_the_trace() -> None:
    trace = synthetic(200)
    found = figures(trace)
    assert (found["tokens"], found["moe_layers"], found["routed_experts"]) == (200, 60, 384)
    assert sum(found["by_kind"].values()) == 200
    assert found["calls"] == len(trace.calls) > 0
    assert found["largest_max_over_mean_load"] > 1
    empty = figures(Trace(K2_SIZE))
    assert (empty["tokens"], empty["never_chosen"], empty["end"]) == (0, None, "growing")


def test_the_same_seed_gives_the_same_synthetic_trace(tmp_path: Path) -> None:
    one, two = (synthetic(50, seed=3).save(tmp_path / name).read_bytes() for name in "ab")
    assert one == two
    assert synthetic(50, seed=4).save(tmp_path / "c").read_bytes() != one


def test_commands_show_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic(60).save(tmp_path / "x.k2trace")
    assert main(["trace", "info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 60
    page = tmp_path / "x.html"
    assert main(["trace", "html", str(path), str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["trace", "info", str(page)]) == 2
    assert "is not a trace" in capsys.readouterr().err
