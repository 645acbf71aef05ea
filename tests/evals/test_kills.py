"""A run that is killed goes on, and nothing is done twice or forgotten."""

from k2lab.evals.kills import kills


def test_a_run_killed_at_some_of_its_points_is_resumed_whole() -> None:
    found = kills([*range(3, 100, 12), 121])
    assert found.points == 10
    assert found.finished == found.points
    assert found.verified == found.points
    assert found.once == found.points
    assert found.at_most_once_more == found.points
    assert found.whole


def test_a_run_killed_in_the_middle_of_a_line_and_once_more_is_resumed_whole() -> None:
    found = kills([34, 61], again=True)
    assert found.whole
