"""Thoughts: every step that is written down is true."""

import re

from hypothesis import given
from hypothesis import strategies as st

from k2lab.world.arithmetic import (
    addition,
    comparison,
    extreme,
    ordering,
    running,
    subtraction,
)

numbers = st.integers(0, 9999)
SUM = re.compile(r"(\d)\+(\d)\+(\d)=(\d\d)")
LESS = re.compile(r"(\d)-(\d)-(\d)(\+10)?=(\d)")
END = re.compile(r"Digits (\d+), backwards (\d+)\.$")


def test_addition_as_it_is_written() -> None:
    assert addition(959, 86) == (
        "Sum 959+86. Back 959+68. 9+6+0=15, 5+8+1=14, 9+0+1=10. Digits 5401, backwards 1045."
    )


def test_subtraction_as_it_is_written() -> None:
    assert subtraction(959, 86) == (
        "Minus 959-86. Back 959-68. 9-6-0=3, 5-8-0+10=7, 9-0-1=8. Digits 378, backwards 873."
    )


def test_running_as_it_is_written() -> None:
    assert running(759, 6) == ("759+6: 9+6=15, 5+1=6. Total 765.", 765)
    assert running(752, 6) == ("752+6: 2+6=8. Total 758.", 758)


@given(numbers, numbers)
def test_addition_is_right_in_every_step(a: int, b: int) -> None:
    thought = addition(a, b)
    assert f"Back {str(a)[::-1]}+{str(b)[::-1]}." in thought
    steps = [tuple(map(int, step)) for step in SUM.findall(thought)]
    assert len(steps) == max(len(str(a)), len(str(b)))
    carry = 0
    for place, (x, y, carried, total) in enumerate(steps):
        assert (x, y) == (a // 10**place % 10, b // 10**place % 10)
        assert carried == carry
        assert x + y + carried == total
        carry = total // 10
    ending = END.search(thought)
    assert ending
    assert ending[1] == "".join(str(s[3] % 10) for s in steps) + "1" * carry
    assert ending[1][::-1] == ending[2] == str(a + b)


@given(numbers, numbers)
def test_subtraction_is_right_in_every_step(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    thought = subtraction(a, b)
    steps = LESS.findall(thought)
    assert len(steps) == len(str(a))
    borrowed = 0
    for place, (x, y, before, lent, digit) in enumerate(steps):
        assert (int(x), int(y)) == (a // 10**place % 10, b // 10**place % 10)
        assert int(before) == borrowed
        assert int(x) - int(y) - borrowed + 10 * bool(lent) == int(digit)
        borrowed = int(bool(lent))
    assert borrowed == 0
    ending = END.search(thought)
    assert ending
    assert ending[1] == "".join(step[4] for step in steps)
    assert int(ending[1][::-1]) == int(ending[2]) == a - b


@given(st.integers(0, 4000), st.integers(0, 9))
def test_running_total_is_right_in_every_step(total: int, item: int) -> None:
    line, after = running(total, item)
    assert after == total + item
    assert line.startswith(f"{total}+{item}: ")
    assert line.endswith(f" Total {after}.")
    steps = re.findall(r"(\d)\+(\d)=(\d+)", line.split(": ")[1])
    carry = item
    for place, (x, y, result) in enumerate(steps):
        assert (int(x), int(y)) == (total // 10**place % 10, carry)
        assert int(x) + int(y) == int(result)
        carry = int(result) // 10
    assert carry == 0 or len(steps) == len(str(total))


@given(numbers, numbers)
def test_comparison_is_right_in_every_step(a: int, b: int) -> None:
    assert comparison(a, b, "larger")[1] == max(a, b)
    line, smaller = comparison(a, b, "smaller")
    assert smaller == min(a, b)
    for x, y, relation in re.findall(r"(\d) (\d) (same|more|less)", line):
        assert relation == ("same" if x == y else "more" if int(x) > int(y) else "less")
    if a != b:
        assert f" {min(a, b)} less than {max(a, b)}." in line


def test_comparison_as_it_is_written() -> None:
    assert comparison(482, 478, "larger")[0] == (
        "482 and 478: length 3 3 same, 4 4 same, 8 7 more. 478 less than 482. Larger is more: 482."
    )
    assert comparison(95, 478, "smaller")[0] == (
        "95 and 478: length 2 3 less. 95 less than 478. Smaller is less: 95."
    )


@given(st.lists(numbers, min_size=1, max_size=5, unique=True))
def test_extreme_and_order(found: list[int]) -> None:
    assert extreme(found, "larger")[1] == max(found)
    assert extreme(found, "smaller")[1] == min(found)
    assert ordering(found)[1] == tuple(sorted(found))
