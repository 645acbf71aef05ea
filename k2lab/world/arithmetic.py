"""Thoughts that compute digit by digit, as the teacher writes them.

Every step repeats the digits it needs, and what it writes is true arithmetic. Plus and minus are
written differently from the first line on. Not here: what is asked, and what is answered.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

Side = Literal["larger", "smaller"]


def addition(first: int, second: int) -> str:
    """`Sum 437+86. Back 734+68. 7+6+0=13, … Digits 325, backwards 523.`, column by column."""
    steps, written, carry = list[str](), "", 0
    for a, b in _columns(first, second):
        total = a + b + carry
        steps.append(f"{a}+{b}+{carry}={total:02d}")
        carry, written = total // 10, f"{written}{total % 10}"
    written += "1" * carry
    return f"Sum {first}+{second}. Back {_back(first)}+{_back(second)}. {_end(steps, written)}"


def subtraction(first: int, second: int) -> str:
    """`Minus 437-86. Back 734-68. 7-6-0=1, 3-8-0+10=5, 4-0-1=3. …`; first is not smaller."""
    steps, written, borrowed = list[str](), "", 0
    for a, b in _columns(first, second):
        borrow = int(a < b + borrowed)
        digit = a - b - borrowed + 10 * borrow
        steps.append(f"{a}-{b}-{borrowed}{'+10' * borrow}={digit}")
        borrowed, written = borrow, f"{written}{digit}"
    return f"Minus {first}-{second}. Back {_back(first)}-{_back(second)}. {_end(steps, written)}"


def running(total: int, item: int) -> tuple[str, int]:
    """`759+6: 9+6=15, 5+1=6. Total 765.`, and 765: a small item, carried only where it must be."""
    after, carry, steps = total + item, item, list[str]()
    for digit in map(int, _back(total)):
        steps.append(f"{digit}+{carry}={digit + carry}")
        carry = (digit + carry) // 10
        if not carry:
            break
    return f"{total}+{item}: {', '.join(steps)}. Total {after}.", after


def comparison(first: int, second: int, side: Side) -> tuple[str, int]:
    """`482 and 478: length 3 3 same, 4 4 same, 8 7 more. 478 less than 482. …`, and 482."""
    a, b = str(first), str(second)
    parts = [f"length {len(a)} {len(b)} {_relation(len(a), len(b))}"]
    if len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            parts.append(f"{x} {y} {_relation(int(x), int(y))}")
            if x != y:
                break
    low, high = sorted((first, second))
    winner = low if side == "smaller" else high
    order = f"{low} less than {high}" if low < high else f"{low} same as {high}"
    verdict = "Smaller is less" if side == "smaller" else "Larger is more"
    return f"{first} and {second}: {', '.join(parts)}. {order}. {verdict}: {winner}.", winner


def extreme(numbers: Sequence[int], side: Side) -> tuple[str, int]:
    """The comparisons that find the largest or smallest number, one after another, and it."""
    lines, best = list[str](), numbers[0]
    for number in numbers[1:]:
        line, best = comparison(best, number, side)
        lines.append(line)
    return " ".join(lines), best


def ordering(numbers: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The smallest is found, then the smallest of those left, and so on; and the order."""
    lines, left, order = list[str](), list(numbers), list[int]()
    while left:
        line, best = extreme(left, "smaller")
        left.remove(best)
        order.append(best)
        rest = f", left {' '.join(map(str, left))}" if left else ""
        lines.append(f"{line} Order {' '.join(map(str, order))}{rest}.".strip())
    return " ".join(lines), tuple(order)


def _back(number: int) -> str:
    return str(number)[::-1]


def _columns(first: int, second: int) -> list[tuple[int, int]]:
    rows = zip_longest(_back(first), _back(second), fillvalue="0")
    return [(int(a), int(b)) for a, b in rows]


def _end(steps: Sequence[str], written: str) -> str:
    """The steps and the digits as they were written, turned round; leading zeros are dropped."""
    result = int(written[::-1])
    return f"{', '.join(steps)}. Digits {written}, backwards {result}."


def _relation(a: int, b: int) -> str:
    return "same" if a == b else "more" if a > b else "less"
