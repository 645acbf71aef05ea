"""Thoughts that compute digit by digit, as the teacher writes them.

Every step needs only digits that stand close before it: the numbers are first laid out from the
right, four places wide, so that the k-th column is the k-th entry of both rows and all steps have
the same length.
"""

from collections.abc import Sequence
from typing import Literal

PLACES: tuple[str, ...] = ("ones", "tens", "hundreds", "thousands")

Side = Literal["larger", "smaller"]


def addition(first: int, second: int) -> str:
    """`959+86. From the right 959 is 9 5 9 0 … ones 9+6+0=15 so 5. …`; the sum is below 10000."""
    steps, carry, written = [_layout(first, "+", second)], 0, ""
    for place, a, b in zip(PLACES, _columns(first), _columns(second), strict=True):
        total = a + b + carry
        written = f"{total % 10}{written}"
        steps.append(f"{place} {a}+{b}+{carry}={total:02d} so {written}.")
        carry = total // 10
    return " ".join(steps)


def subtraction(first: int, second: int) -> str:
    """`959-86. From the right … tens 5-8-0 borrow 1 gives 7 so 73. …`; first is not smaller."""
    steps, borrowed, written = [_layout(first, "-", second)], 0, ""
    for place, a, b in zip(PLACES, _columns(first), _columns(second), strict=True):
        borrow = int(a < b + borrowed)
        digit = a - b - borrowed + 10 * borrow
        written = f"{digit}{written}"
        steps.append(f"{place} {a}-{b}-{borrowed} borrow {borrow} gives {digit} so {written}.")
        borrowed = borrow
    return " ".join(steps)


def comparison(first: int, second: int, side: Side) -> tuple[str, int]:
    """`482 and 478: length 3 and 3 same, 4 4 same, 8 7 more, 482 is larger.`, and 482."""
    a, b = str(first), str(second)
    parts = [f"length {len(a)} and {len(b)} {_relation(len(a), len(b))}"]
    if len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            parts.append(f"{x} {y} {_relation(int(x), int(y))}")
            if x != y:
                break
    winner = max(first, second) if side == "larger" else min(first, second)
    return f"{first} and {second}: {', '.join(parts)}, {winner} is {side}.", winner


def extreme(numbers: Sequence[int], side: Side) -> tuple[str, int]:
    """The comparisons that find the largest or smallest number, one after another, and it."""
    lines, best = [], numbers[0]
    for number in numbers[1:]:
        line, best = comparison(best, number, side)
        lines.append(line)
    return " ".join(lines), best


def ordering(numbers: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The comparisons that insert each number in its place from the large end, and the order."""
    lines: list[str] = []
    order = [numbers[0]]
    for number in numbers[1:]:
        place = len(order)
        while place:
            line, smaller = comparison(order[place - 1], number, "smaller")
            lines.append(line)
            if smaller != number:
                break
            place -= 1
        order.insert(place, number)
        lines.append(f"So {' '.join(map(str, order))}.")
    return " ".join(lines), tuple(order)


def _columns(number: int) -> list[int]:
    return [number // 10**place % 10 for place in range(len(PLACES))]


def _layout(first: int, sign: str, second: int) -> str:
    rows = [f"{number} is {' '.join(map(str, _columns(number)))}" for number in (first, second)]
    return f"{first}{sign}{second}. From the right {' and '.join(rows)}."


def _relation(a: int, b: int) -> str:
    return "same" if a == b else "more" if a > b else "less"
