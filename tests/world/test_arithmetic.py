"""Thoughts: every step that is written down is true."""

import re

from hypothesis import given
from hypothesis import strategies as st

from k2lab.world.arithmetic import addition, comparison, extreme, ordering, subtraction

numbers = st.integers(0, 9999)


def test_addition_as_it_is_written() -> None:
    assert addition(959, 86) == (
        "959+86. From the right 959 is 9 5 9 0 and 86 is 6 8 0 0. ones 9+6+0=15 so 5. "
        "tens 5+8+1=14 so 45. hundreds 9+0+1=10 so 045. thousands 0+0+1=01 so 1045."
    )


def test_subtraction_as_it_is_written() -> None:
    assert subtraction(959, 86) == (
        "959-86. From the right 959 is 9 5 9 0 and 86 is 6 8 0 0. "
        "ones 9-6-0 borrow 0 gives 3 so 3. tens 5-8-0 borrow 1 gives 7 so 73. "
        "hundreds 9-0-1 borrow 0 gives 8 so 873. thousands 0-0-0 borrow 0 gives 0 so 0873."
    )


@given(st.integers(0, 4999), st.integers(0, 5000))
def test_addition_is_right_in_every_step(a: int, b: int) -> None:
    thought = addition(a, b)
    steps = re.findall(r"(\d)\+(\d)\+(\d)=(\d\d) so (\d+)", thought)
    assert len(steps) == 4
    for x, y, carry, total, _ in steps:
        assert int(x) + int(y) + int(carry) == int(total)
    assert [step[2] for step in steps[1:]] == [step[3][0] for step in steps[:-1]]
    assert int(steps[-1][-1]) == a + b


@given(numbers, numbers)
def test_subtraction_is_right_in_every_step(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    steps = re.findall(r"(\d)-(\d)-(\d) borrow (\d) gives (\d) so (\d+)", subtraction(a, b))
    assert len(steps) == 4
    for x, y, borrowed, borrow, digit, _ in steps:
        assert int(x) - int(y) - int(borrowed) + 10 * int(borrow) == int(digit)
    assert [step[2] for step in steps[1:]] == [step[3] for step in steps[:-1]]
    assert int(steps[-1][-1]) == a - b


@given(numbers, numbers)
def test_comparison_finds_the_larger_and_the_smaller(a: int, b: int) -> None:
    assert comparison(a, b, "larger")[1] == max(a, b)
    assert comparison(a, b, "smaller")[1] == min(a, b)


def test_comparison_as_it_is_written() -> None:
    line, _ = comparison(482, 478, "larger")
    assert line == "482 and 478: length 3 and 3 same, 4 4 same, 8 7 more, 482 is larger."
    line, _ = comparison(95, 478, "smaller")
    assert line == "95 and 478: length 2 and 3 less, 95 is smaller."


@given(st.lists(numbers, min_size=1, max_size=5, unique=True))
def test_extreme_and_order(found: list[int]) -> None:
    assert extreme(found, "larger")[1] == max(found)
    assert extreme(found, "smaller")[1] == min(found)
    assert ordering(found)[1] == tuple(sorted(found))
