"""CompareBranch: its tree, summary and static picture."""

from k2lab.trace.compare import compare
from k2lab.widgets.compare import CompareBranch, draw
from k2lab.widgets.store import Store


def test_both_stores_are_in_the_tree_and_the_summary_tells_what_is_shared(finished, run):
    run.grow(50)
    view = CompareBranch(finished(), run)
    assert [entry["name"] for entry in view.store.runs] == ["left", "right"]
    assert view.store.runs[1]["parent"] == view.store.store_id
    assert repr(view) == "CompareBranch(shared=0, tokens=39, state=done)"


def test_picture_and_table_quote_both_sides(finished, run):
    run.grow(50)
    (picture,) = CompareBranch(finished(), run).pictures()
    assert picture.png and len(picture.png) < 60_000
    assert picture.rows[1][1].startswith("<|im_user|>3 * 14?")
    pictures = [draw(compare(finished().trace, run.trace), 1) for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_equal_runs_are_compared_from_their_beginning(finished):
    (picture,) = CompareBranch(finished(), finished()).pictures()
    assert picture.png and picture.title == "CompareBranch: 39 tokens shared"


def test_one_run_alone_has_no_picture(finished):
    view = CompareBranch(Store(finished()))
    assert view.pictures() == () and repr(view) == "CompareBranch(tokens=39, state=done)"
