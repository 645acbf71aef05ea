"""Runs of one tree in one page: what they share is compared and written once."""

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import k2lab
from k2lab.engine.edits import ZeroExperts
from k2lab.engine.events import PromptRead, Routed, Stopped, TokenChosen
from k2lab.errors import InputError
from k2lab.trace.synthetic import synthetic
from k2lab.trace.trace import Trace
from k2lab.widgets import wire
from k2lab.widgets.dashboard import Dashboard
from k2lab.widgets.page import write, write_tree
from k2lab.widgets.source import Recorded
from k2lab.widgets.store import Store
from k2lab.widgets.tree import PageRun, Shared, shared, tree_of, tree_of_traces


def grown(trace: Trace, count: int, text: str) -> Trace:
    """The trace with more tokens, the first of them given."""
    for step in range(count):
        index = len(trace)
        if step:
            trace.append(TokenChosen(index, 7, text, "answer", -0.5, 1.0, (), 0.1 * index))
        else:
            trace.append(PromptRead(index, (9,), (text,), ("thinking",), 0.01))
        about = trace.about
        rows = np.arange(about.moe_layers * about.slots) % about.experts
        experts = rows.astype(np.uint16).reshape(1, about.moe_layers, about.slots)
        margin = np.full((1, about.moe_layers), 0.5, np.float16)
        trace.append(Routed(index, experts, np.full(experts.shape, 9, np.uint8), margin))
    trace.append(Stopped("answer", "", count, 1.0))
    return trace


@dataclass
class FakeLeaf(Recorded):
    """Stands for a run that stands in a tree."""

    trace: Trace
    name: str = "run"
    recipe: Any = field(default_factory=lambda: SimpleNamespace(at=None, given=(), edits=()))
    parent: Any = None
    children: list[Any] = field(default_factory=list)

    def code(self) -> str:
        return f"{self.name}.wait()\n"


def family() -> FakeLeaf:
    """A run with a branch at 20, which has one under an edit."""
    root = FakeLeaf(synthetic(40))
    edit = SimpleNamespace(at=25, given=(), edits=(ZeroExperts(layer=2, experts=(5,)),))
    one = FakeLeaf(grown(root.trace.fork(20), 10, " one"), "run.1", parent=root)
    one.recipe = SimpleNamespace(at=20, given=(9,), edits=())
    two = FakeLeaf(grown(one.trace.fork(25), 6, " two"), "run.1.1", edit, parent=one)
    root.children, one.children = [one], [two]
    return root


def held(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="k2-page">(.*?)</script>', text)
    return dict(json.loads(found))


def columns(page: Path, place: int) -> dict[str, np.ndarray]:
    """The first frame of a page's run, unpacked."""
    text = page.read_text(encoding="utf-8")
    header, ids = held(page)["runs"][place]["messages"][0]
    blocks = [re.search(rf'id="{name}">(.*?)</script>', text)[1] for name in ids]  # type: ignore[index]
    return wire.unpack(header["arrays"], [base64.b64decode(block) for block in blocks])


def test_what_two_traces_share_ends_where_any_column_differs():
    one = synthetic(60)
    assert shared(one, one) == Shared(60, 60, 0, len(one.calls))
    assert shared(one, grown(one.fork(50), 5, " x")).tokens == 50
    assert shared(one, synthetic(60, seed=1)) == Shared()
    other = one.fork(60)
    other._texts[30] = " other"
    assert shared(one, other).tokens == 30
    routes = one.experts[:60].copy()
    routes[12, 3, 0] += 1
    tables = {"experts": routes, "weights": one.weights, "margin": one.margin}
    changed = Trace.of(
        one.about, one._tokens, type(one._routing).of(tables), texts=one.texts, top=one.top
    )
    assert (shared(one, changed).tokens, shared(one, changed).routed) == (60, 12)


def test_a_tree_is_told_from_any_of_its_runs_parents_first():
    root = family()
    for run in (root, root.children[0], root.children[0].children[0]):
        found = tree_of(run)
        assert [each.name for each in found] == ["run", "run.1", "run.1.1"]
    assert found[1].entry() == {
        "id": "run.1",
        "name": "run.1",
        "parent": "run",
        "at": 20,
        "given": " one",
        "edits": [],
    }
    assert found[2].edits == ({"do": "zero", "layer": 2, "experts": [5]},)
    assert found[2].code == "run.1.1.wait()\n"
    (alone,) = tree_of(Recorded(root.trace))
    assert (alone.name, alone.parent) == ("run", "")


def test_traces_find_the_one_that_they_leave():
    trunk = synthetic(40)
    branch = grown(trunk.fork(20), 10, " one")
    leaf = grown(branch.fork(26), 4, " two")
    found = tree_of_traces([trunk, branch, leaf, synthetic(9, seed=1)])
    assert [(each.name, each.parent, each.at) for each in found] == [
        ("run", "", -1),
        ("run 2", "run", 20),
        ("run 3", "run 2", 26),
        ("run 4", "", -1),
    ]


def test_a_page_writes_what_runs_share_once(tmp_path: Path):
    page = write_tree(tree_of(family()), tmp_path / "x.html", shown="run.1.1")
    found = held(page)
    assert found["shown"] == "run.1.1"
    begins = [each["begins"] for each in found["runs"]]
    assert begins[0] is None
    assert [(each["run"], each["tokens"], each["routed"]) for each in begins[1:]] == [
        ("run", 20, 20),
        ("run.1", 25, 25),
    ]
    assert [len(columns(page, place)["ids"]) for place in range(3)] == [40, 10, 6]
    runs = [each["traits"].get("runs") for each in found["runs"]]
    assert runs[:2] == [None, None] and [one["id"] for one in runs[2]] == [
        "run",
        "run.1",
        "run.1.1",
    ]


def test_a_page_of_one_run_names_no_other(tmp_path: Path):
    (run,) = held(write(synthetic(30), tmp_path / "x.html"))["runs"]
    assert run["begins"] is None and "runs" not in run["traits"]


def test_a_tree_of_two_thousand_tokens_of_kimi_k2_takes_less_than_8_mb(tmp_path: Path):
    trunk = synthetic(1700)
    leaves = [grown(trunk.fork(1200 + 100 * k), 100, f" {k}") for k in range(3)]
    together = trunk.to_html(tmp_path / "all.html", beside=leaves).stat().st_size
    alone = trunk.to_html(tmp_path / "one.html").stat().st_size
    assert together < 8_000_000
    assert together - alone < 1_000_000, "300 more tokens of 1,560 bytes and more, in base64"


def test_a_store_writes_its_tree_and_any_store_can(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    store = Store(family().children[0])
    sent: list[Any] = []
    store.send = lambda content, buffers=None: sent.append(content)  # type: ignore[method-assign]
    assert "export" in store.status["can"]
    assert store.actions["export"]({}) == {"text": "Written as run.1-1.html."}
    assert held(tmp_path / "run.1-1.html")["shown"] == "run.1"
    assert len(held(tmp_path / "run.1-1.html")["runs"]) == 3
    path = Dashboard(synthetic(30)).to_html(tmp_path / "own.html")
    assert len(held(path)["runs"]) == 1


def test_runs_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    run = PageRun(trace=synthetic(5))
    with pytest.raises(InputError, match="different names"):
        write_tree([run, run], tmp_path / "x.html")
    with pytest.raises(InputError, match="'other' among the runs run"):
        write_tree([run], tmp_path / "x.html", shown="other")


def test_runs_of_a_lab_stand_in_a_tree(small_checkpoint: Path, tmp_path: Path):
    lab = k2lab.load(small_checkpoint)
    run = lab.run("What is 3 * 14?", max_tokens=12).wait()
    start = run.turns[0]
    one = run.branch(start + 4, text=" So", max_tokens=3).wait()
    edit = {"do": "zero", "layer": lab.config.first_k_dense_replace, "experts": [1]}
    two = one.branch(start + 5, edits=[edit], max_tokens=3).wait()
    found = held(two.store.to_html(tmp_path / "x.html"))
    assert found["shown"] == "run.1.1" and [
        each["begins"] and (each["begins"]["run"], each["begins"]["tokens"])
        for each in found["runs"]
    ] == [None, ("run", start + 4), ("run.1", start + 5)]
    entries = found["runs"][2]["traits"]["runs"]
    assert [entry["given"] for entry in entries] == ["", " So", ""]
    assert entries[2]["edits"] == [edit] and ".branch(" in found["runs"][2]["traits"]["code"]
    kept = {message[0]["key"].split(":")[0] for message in found["runs"][2]["messages"][1:]}
    assert kept == {"route", "attention"}, "of the last token, as no pin is set"
