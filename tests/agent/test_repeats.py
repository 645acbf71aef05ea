"""Going round in circles, and what only looks like it."""

import random

import pytest

from k2lab.agent.repeats import Repeats, signature

FOUND = [(3, "warned"), (5, "urged"), (8, "tools withdrawn"), (12, "ended")]


def told(steps: list[str]) -> list[tuple[int, int, str]]:
    """(step, times, response), as they come."""
    repeats = Repeats()
    found = ((place, repeats.step(step)) for place, step in enumerate(steps, 1))
    return [(place, each.times, each.response) for place, each in found if each]


def test_exact_repeats_are_told_at_their_counts() -> None:
    assert told(["x"] * 12) == [(times, times, response) for times, response in FOUND]


@pytest.mark.parametrize("cycle", ["ab", "abc", "abcd", "aab"])
def test_a_cycle_counts_once_per_round_until_the_tools_are_withdrawn(cycle: str) -> None:
    rounds = told(list(cycle * 8))
    assert [(times, response) for _, times, response in rounds] == FOUND[:3]
    assert rounds[0][0] <= 3 * len(cycle)


def test_after_the_tools_are_withdrawn_every_further_step_counts() -> None:
    steps = ["x"] * 8 + ["y", "z", "u", "v"]
    assert told(steps)[-1] == (12, 12, "ended")


def test_something_new_begins_the_count_anew() -> None:
    assert told(["x", "x", "y", "x", "x"]) == []
    assert told(["x"] * 3 + ["y"] + ["x"] * 3) == [(3, 3, "warned"), (7, 3, "warned")]


def test_three_hundred_different_steps_are_no_circle() -> None:
    assert told([str(n) for n in range(300)]) == []


def test_a_resumed_run_counts_on() -> None:
    for done in range(12):
        repeats = Repeats(["x"] * done)
        assert (repeats.withdrawn, done) == (done >= 8, done)
        found = [repeats.step("x") for _ in range(12 - done)]
        times = [each.times for each in found if each]
        assert times == [count for count, _ in FOUND if count > done]


def test_signatures_differ_where_texts_are_cut_elsewhere() -> None:
    assert signature(["ab", "c"]) != signature(["a", "bc"])
    assert signature(["\ud800"]) != signature([""])  # half a character, as a model may write


def test_random_walks_of_few_results_are_rarely_told() -> None:
    draw = random.Random(0)
    steps = [str(draw.randint(1, 1000)) for _ in range(3000)]
    assert told(steps) == []
