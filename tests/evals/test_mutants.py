"""Damaged turns, and a parser that takes them as they come."""

from random import Random

from k2lab.evals.mutants import in_pieces, mutant, mutants
from k2lab.text.parse import parse_turn


def test_no_mutant_raises_is_taken_back_or_depends_on_its_pieces() -> None:
    found = mutants(20_000, seed=7)
    assert (found.raised, found.retracted, found.split) == (0, 0, 0)
    assert found.tried == 20_000


def test_mutants_are_of_every_kind() -> None:
    draw = Random(0)
    turns = [parse_turn(mutant(draw)) for _ in range(3000)]
    kinds = {error.kind for turn in turns for error in turn.errors}
    assert kinds == {
        "truncated",
        "missing_argument_marker",
        "unresolvable_tool_id",
        "text_in_section",
    }
    assert sum(bool(turn.calls) for turn in turns) > 1000
    assert any(call.problem for turn in turns for call in turn.calls)


def test_what_is_taken_back_would_be_seen() -> None:
    kept, turn = in_pieces("<think>a</think>b", Random(0))
    assert kept and turn.content == "b"
