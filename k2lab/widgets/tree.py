"""Runs of one tree, to be shown together: who leaves whom where, and how much both share.

What is shared is compared, not believed, so that a page writes it once. Not here: how a branch is
made (`k2lab/run.py`), and how two runs differ after they part (`trace/compare.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.edits import Edit, Json, to_json
from k2lab.trace.trace import TOKEN, Facts, Trace
from k2lab.widgets.source import RunLike, code_of


class Recipe(Protocol):
    """What made a branch differ from the run that it leaves."""

    @property
    def at(self) -> int | None:
        """The first token that is not its parent's."""
        ...

    @property
    def given(self) -> tuple[int, ...]:
        """Ids that stand there instead."""
        ...

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Edits of the network from there on."""
        ...


@runtime_checkable
class TreeRun(Protocol):
    """What a tree needs of a run; `k2lab.run.LabRun` has it."""

    trace: Trace
    error: str
    parent: Self | None
    children: list[Self]

    @property
    def name(self) -> str:
        """Its place in the tree."""
        ...

    @property
    def recipe(self) -> Recipe:
        """What it is made of."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRun:
    """One run of a page."""

    trace: Trace
    name: str = "run"
    parent: str = ""  # name of the run that it leaves
    at: int = -1  # the first token that is not its parent's
    given: str = ""  # what was written there instead
    edits: tuple[Json, ...] = ()
    code: str = ""  # a cell that gives the run again
    facts: Facts | None = None  # where the numbers come from, where the trace does not say

    def entry(self) -> dict[str, Any]:
        """The run in the `runs` of a store, as CompareBranch reads it."""
        entry = {"id": self.name, "name": self.name, "parent": self.parent, "at": self.at}
        return {**entry, "given": self.given, "edits": [dict(edit) for edit in self.edits]}


@dataclass(frozen=True, slots=True)
class Shared:
    """With how much of everything two traces begin alike."""

    tokens: int = 0
    routed: int = 0
    moved: int = 0
    calls: int = 0


def tree_of(source: RunLike) -> list[PageRun]:
    """All runs of this run's tree, parents first; itself alone where it stands in none."""
    if not isinstance(source, TreeRun):
        return [PageRun(trace=source.trace, code=code_of(source))]
    root = source
    while root.parent is not None:
        root = root.parent
    return [_page_run(each) for each in _family(root)]


def tree_of_traces(traces: Sequence[Trace]) -> list[PageRun]:
    """The traces in their order; each leaves the one before it with which it begins longest."""
    found: list[PageRun] = []
    for place, trace in enumerate(traces):
        best, at = "", 0
        for other in found:
            tokens = shared(trace, other.trace).tokens
            if tokens > at:
                best, at = other.name, tokens
        name = f"run {place + 1}" if place else "run"
        found.append(PageRun(trace=trace, name=name, parent=best, at=at if best else -1))
    return found


def shared(one: Trace, other: Trace) -> Shared:
    """What both begin with, equal in every column."""
    if one.about != other.about:
        return Shared()
    tokens = min(len(one), len(other))
    for name in TOKEN:
        tokens = min(tokens, _alike(getattr(one, name)[:tokens], getattr(other, name)[:tokens]))
    pairs = zip(one.texts[:tokens], other.texts, one.top, other.top, strict=False)
    unlike = (place for place, (a, b, top, top_b) in enumerate(pairs) if (a, top) != (b, top_b))
    tokens = next(unlike, tokens)
    if not tokens:
        return Shared()
    routed = min(tokens, one.routed, other.routed)
    for name in ("experts", "weights", "margin"):
        routed = min(routed, _alike(getattr(one, name)[:routed], getattr(other, name)[:routed]))
    moved = _count([a is b for a, b in zip(one.moved, other.moved, strict=False)])
    calls = _count([a == b for a, b in zip(one.calls, other.calls, strict=False)])
    return Shared(tokens, routed, moved, calls)


def _alike(one: NDArray[Any], other: NDArray[Any]) -> int:
    """In how many rows from the first on they are equal; two NaN are."""
    if not len(one):
        return 0
    same = (one == other) | ((one != one) & (other != other))
    rows = same.reshape(len(same), -1).all(axis=1)
    return int(np.argmin(rows)) if not rows.all() else len(rows)


def _count(same: list[bool]) -> int:
    return same.index(False) if False in same else len(same)


def _family(run: TreeRun) -> list[TreeRun]:
    return [run, *(each for child in run.children for each in _family(child))]


def _page_run(run: TreeRun) -> PageRun:
    recipe, parent = run.recipe, run.parent
    at = -1 if recipe.at is None else recipe.at
    return PageRun(
        trace=run.trace,
        name=run.name,
        parent=parent.name if parent else "",
        at=at,
        given="".join(run.trace.texts[at : at + len(recipe.given)]) if recipe.given else "",
        edits=tuple(to_json(edit) for edit in recipe.edits),
        code=code_of(run),  # type: ignore[arg-type]
    )
