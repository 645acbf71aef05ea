"""ThoughtStream's summary and static picture."""

import io

import numpy as np
from PIL import Image

from k2lab.widgets.store import Store
from k2lab.widgets.thoughts import COLUMNS, MOST_LINES, ThoughtStream, _drawable, draw, wrap


def test_summary_counts_tokens_and_tells_the_state(finished):
    store = Store(finished())
    assert repr(ThoughtStream(store)) == "ThoughtStream(tokens=39, state=done)"
    assert ThoughtStream(store).store_id == store.store_id


def test_table_says_how_long_each_part_is(finished):
    (picture,) = ThoughtStream(finished()).pictures()
    rows = {row[0]: row[1:] for row in picture.rows}
    assert rows["user"] == ("2", "given") and rows["thinking"] == ("30", "1.00")


def test_wrapped_text_stays_within_its_columns_and_loses_nothing(run):
    run.grow(200, "thinking", " word")
    run.grow(1, "answer", "x" * 300)
    pieces = list(wrap(run.trace))
    assert all(piece.column + len(piece.text) <= COLUMNS for piece in pieces)
    answer = "".join(piece.text for piece in pieces if piece.kind == "answer")
    assert answer == "x" * 300
    assert len({piece.line for piece in pieces if piece.first}) == 2


def test_pictures_are_small_and_long_runs_lose_their_middle(run):
    run.grow(3000)
    data = draw(run.trace)
    height = Image.open(io.BytesIO(data)).height
    assert len(data) < 60_000 and height < 26 * (MOST_LINES + 3)


def test_dollars_and_strange_characters_are_drawn_as_text(run):
    run.grow(1, "answer", "$x^2$ 思考 \x00 🦊")
    assert draw(run.trace)
    assert _drawable("a\x00思") == "a□□"


def test_picture_of_given_tokens_only(run):
    run.grow(2)
    assert not np.isnan(run.trace.entropy).any()
    assert draw(run.trace)
