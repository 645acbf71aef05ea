"""Timeline's summary, table and static picture."""

from dataclasses import replace

import numpy as np

from k2lab.trace.trace import Context
from k2lab.widgets.timeline import Timeline, draw, lanes, table, token_seconds


def test_summary_counts_calls(finished):
    assert repr(Timeline(finished())) == "Timeline(calls=1, tokens=39, state=done)"


def test_table_tells_state_and_retries_and_cuts_long_texts(finished):
    trace = finished().trace
    first = trace.calls[0]
    trace.calls += [
        replace(first, key="b", ok=False, content="x" * 900),
        replace(first, key="c", ok=None, content=None),
    ]
    states = [(row[1], row[3]) for row in table(trace)]
    assert states == [("f", "answered"), ("f", "failed"), ("f", "unfinished (retry)")]
    assert all(len(cell) < 70 for row in table(trace) for cell in row)


def test_a_token_lasts_from_the_one_chosen_before_it(finished):
    lasted = token_seconds(finished().trace)
    assert np.isnan(lasted[:4]).all() and np.allclose(lasted[4:33], 0.1, atol=1e-5)


def test_the_same_run_gives_the_same_picture_and_a_long_one_a_small_picture(finished, run):
    assert draw(finished().trace) == draw(finished().trace)
    run.grow(3000)
    assert len(draw(run.trace)) < 60_000


def test_a_run_without_tokens_has_no_picture(run):
    (picture,) = Timeline(run).pictures()
    assert picture.png is None


def test_a_call_that_waits_says_so_and_one_that_was_decided_says_how(finished):
    trace = finished().trace
    trace.stopped = None  # as if it went on
    waiting = replace(trace.calls[0], ok=None, content=None, approval="waiting")
    trace.calls += [waiting, replace(waiting, approval="allowed"), replace(waiting, ok=False)]
    trace.calls[-1] = replace(trace.calls[-1], approval="refused")
    assert [row[3] for row in table(trace)] == [
        "answered",
        "waits for approval",
        "allowed, running",
        "refused, failed",
    ]


def test_contexts_are_told_and_agents_have_lanes(finished):
    trace = finished().trace
    plain = draw(trace)
    trace.contexts = [Context(0), Context(20)]
    (picture,) = Timeline(trace).pictures()
    assert picture.title.endswith(", compacted 1×") and picture.png != plain
    trace.contexts = [Context(0, "buyer"), Context(20, "seller")]
    assert lanes(trace) == ["buyer", "seller"]
    (picture,) = Timeline(trace).pictures()
    assert picture.title.endswith(", buyer, seller")
    assert next(table(trace))[1] == "seller: f"


def test_an_agents_name_is_no_formula(finished):
    trace = finished().trace
    trace.contexts = [Context(0, r"$\no{$"), Context(20, "\ud800")]
    assert draw(trace)
