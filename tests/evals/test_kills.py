"""A run that is killed goes on, and nothing is done twice or forgotten."""

from k2lab.evals.kills import kills


def test_a_run_killed_at_some_of_its_points_is_resumed_whole() -> None:
    found = kills("roomy", [*range(3, 100, 12), 121])
    assert found.points == 10
    assert found.finished == found.points
    assert found.verified == found.points
    assert found.once == found.points
    assert found.at_most_once_more == found.points
    assert found.whole


def test_a_run_killed_in_the_middle_of_a_line_and_once_more_is_resumed_whole() -> None:
    found = kills("roomy", [34, 61], again=True)
    assert found.whole


def test_a_run_that_compacts_is_resumed_whole_from_any_of_its_points() -> None:
    """Between turns, in the middle of one, and around what the memory takes in."""
    found = kills("narrow", [*range(4, 182, 19), 181])
    assert found.points == 11 and found.whole
    assert found.same == found.points and found.compacted >= 3 * found.points
    assert found.unknown < found.points - 5  # so that most were compared token by token


def test_a_run_that_compacts_is_resumed_whole_though_it_is_killed_twice() -> None:
    assert kills("narrow", [92, 133], again=True).whole
