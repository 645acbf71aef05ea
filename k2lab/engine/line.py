"""Line: the edits of a run and of those that it branches off, each for the tokens that it read.

A branch's edits act from where it leaves its parent; what came before was read under the parent's
and is remembered so. Whoever computes a run again, for a question or an experiment, needs all of
them. Not here: how an edit is carried out (`surgery.py`).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from k2lab.engine.edits import Edit
from k2lab.engine.events import Kind
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import chain
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap

END = sys.maxsize  # behind every token


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens that one run read: from `start` on, up to where a later one begins."""

    start: int
    edits: tuple[Edit, ...]


class Line(Surgery):
    """The surgery of all stretches, the root's first; `more`: edits that act in each of them.

    Edits of different stretches never meet, so that they are checked apart.
    """

    def __init__(
        self, stretches: Sequence[Stretch], config: K2Config, more: Sequence[Edit] = ()
    ) -> None:
        super().__init__((*stretches[-1].edits, *more), config)
        self.stretches = tuple(stretches)
        self._parts = [
            (start, stop, Surgery(tuple(_within(start, stop, (*edits, *more))), config))
            for start, stop, edits in _bounded(stretches)
        ]

    def tap(self, start: int, kinds: Sequence[Kind] | None, tokens: int) -> Tap:
        """The tap of one forward over `tokens` tokens from index `start`; kinds where known."""
        mine = [part for low, high, part in self._parts if low < start + tokens and start < high]
        return chain(*(part.tap(start, kinds, tokens) for part in mine))


def _bounded(stretches: Sequence[Stretch]) -> Iterator[tuple[int, int, tuple[Edit, ...]]]:
    """Where each begins and ends, with its edits; those of which no token is left are not there."""
    for place, each in enumerate(stretches):
        stop = min((later.start for later in stretches[place + 1 :]), default=END)
        if each.start < stop:
            yield each.start, stop, each.edits


def _within(start: int, stop: int, edits: Sequence[Edit]) -> Iterator[Edit]:
    """The edits for tokens from `start` to `stop` only."""
    for edit in edits:
        first, last = edit.tokens or (0, END)
        both = max(start, first), min(stop, last)
        if both == (0, END):
            yield edit
        elif both[0] < both[1]:
            yield replace(edit, tokens=both)
