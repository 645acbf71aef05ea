"""Phrasings made by crossing: enough of them, apart from each other, and without new words."""

import re

import pytest

from k2lab.world.wordings import WORDINGS, crossed


@pytest.mark.parametrize("kind", WORDINGS)
def test_each_kind_has_enough_and_holds_some_out(kind: str) -> None:
    found = WORDINGS[kind]
    assert 8 <= len(found.train) <= 32
    assert len(found.held_out) >= 2
    assert not set(found.train) & set(found.held_out)


@pytest.mark.parametrize("kind", WORDINGS)
def test_held_out_words_of_a_kind_are_trained_in_that_kind(kind: str) -> None:
    def words(texts: tuple[str, ...]) -> set[str]:
        return {word for text in texts for word in re.findall(r"\w+", text.lower())}

    assert words(WORDINGS[kind].held_out) <= words(WORDINGS[kind].train)


def test_crossing_keeps_every_beginning_and_every_ending_in_training() -> None:
    found = crossed(("A {}", "B {}", "C {}"), ("x.", "y.", "z."))
    assert sorted(found.train + found.held_out) == sorted(
        f"{head} {tail}" for head in "ABC" for tail in ("x.", "y.", "z.")
    )
    assert {text[0] for text in found.train} == {"A", "B", "C"}
    assert {text[2] for text in found.train} == {"x", "y", "z"}
