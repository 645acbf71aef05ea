"""Timeline's summary, table and static picture."""

from dataclasses import replace

import numpy as np

from k2lab.widgets.timeline import Timeline, draw, table, token_seconds


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
    assert states == [("f", "answered"), ("f", "failed"), ("f", "running (retry)")]
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
