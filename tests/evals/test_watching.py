"""What watching costs: the parts that need no browser."""

import json
from dataclasses import asdict

import k2lab
from k2lab.evals.jupyter import write_notebook
from k2lab.evals.watching import BEGIN, BESIDE, CELLS, LOOK, branching, costs, read, told


def test_a_branch_reads_one_token_of_its_prefix_and_a_run_reads_it_all():
    found = branching(k2lab.load())
    assert found.read_tokens == 1 < found.prefix_tokens
    assert 0 < found.branch_seconds < found.anew_seconds


def test_costs_come_back_as_one_line(capsys):
    lab = k2lab.load()
    store = lab.run("What is 3 * 14?", max_tokens=2).wait().store
    found = costs(lab, store, 2)
    told(found)
    printed = capsys.readouterr().out
    assert printed.startswith(BEGIN) and json.loads(printed.removeprefix(BEGIN)) == found
    back = read(found["costs"])
    assert asdict(back) == found["costs"] and store.source.done
    for each in (back.route_capture, back.full_capture):
        assert each.n == 2 * BESIDE and each.low <= each.median <= each.high
    assert back.live_view.n == back.live_microseconds.n == 2
    assert back.token_microseconds > 0
    assert len(store.source.trace) > LOOK and not store.pending  # the widgets did look on


def test_a_notebook_has_its_cells(tmp_path):
    name = write_notebook(tmp_path / "x.ipynb", CELLS)
    cells = json.loads((tmp_path / name).read_text())["cells"]
    assert [each["source"] for each in cells] == list(CELLS)
