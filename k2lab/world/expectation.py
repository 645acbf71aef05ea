"""What an answer must say to be right, apart from how it is put."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What makes an answer right; numbers are compared as values, words without regard to case."""

    results: tuple[int, ...] = ()  # stated at the end, or at the beginning, in this order
    mentions: tuple[int, ...] = ()  # numbers that may stand beside them
    ordered: bool = False  # whether the mentions must keep their order
    topics: tuple[str, ...] = ()  # names that may be used; the first is used first
    words: tuple[str, ...] = ()  # words that must be there
    banned: tuple[str, ...] = ()  # words that would turn the meaning round
    unknown: bool = False  # the answer must say that it does not know
    steps: tuple[str, ...] = ()  # a numbered plan, these steps in this order
    orders: tuple[tuple[str, int], ...] = ()  # what the shop has been ordered from, in any order
