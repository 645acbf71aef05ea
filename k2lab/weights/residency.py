"""Which experts lie in the few slots of a layer, and who leaves when another one comes.

The live store and the replay of a saved trace (`simulate`) use the same bookkeeping, so a replay
needs no weights and gives the counts that the store would have had. Policies: LRU (whoever was not
asked for longest leaves), LFU (whoever was asked for least often) and Bélády (whoever will be asked
for last, which needs the future and is the upper bound of all others).
Not here: bytes, threads, time.
Source: L. A. Bélády, "A study of replacement algorithms for a virtual-storage computer", 1966.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from k2lab.errors import BudgetError, InputError

PolicyName = Literal["lru", "lfu", "belady"]
"""The policies by name; `belady` needs the routes of the whole run."""

NEVER = 2**62  # a next use that does not come

Routes = Iterable[NDArray[np.integer]]
"""Chosen experts of each forward in turn, [token, MoE layer, slot], as `Routed.experts`."""


class Policy(Protocol):
    """Who leaves one layer's slots."""

    def asked(self, ids: Sequence[int]) -> None:
        """One forward asks for these experts, distinct and rising."""
        ...

    def victim(self, held: Collection[int]) -> int:
        """The one of these that leaves."""
        ...


Policies = Callable[[int], Policy]
"""A policy for each layer, by its place among the MoE layers."""


class Lru:
    """Whoever was not asked for longest leaves."""

    def __init__(self) -> None:
        self._order: dict[int, None] = {}  # the longest unasked first

    def asked(self, ids: Sequence[int]) -> None:
        """These are now the youngest."""
        for expert in ids:
            self._order.pop(expert, None)
            self._order[expert] = None

    def victim(self, held: Collection[int]) -> int:
        """The oldest of these."""
        chosen = next((each for each in self._order if each in held), None)
        if chosen is None:  # fetched ahead and never asked for
            return min(held)
        del self._order[chosen]
        return chosen


class Lfu:
    """Whoever was asked for least often leaves; the older one among equals."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._last: dict[int, int] = {}
        self._clock = 0

    def asked(self, ids: Sequence[int]) -> None:
        """One more for each of these; counts outlast a stay in the slots."""
        self._clock += 1
        self._counts.update(ids)
        self._last.update(dict.fromkeys(ids, self._clock))

    def victim(self, held: Collection[int]) -> int:
        """The rarest of these."""
        return min(held, key=lambda each: (self._counts[each], self._last.get(each, 0), each))


class Belady:
    """Whoever will be asked for last leaves: no policy has fewer misses."""

    def __init__(self, future: Sequence[Sequence[int]]) -> None:
        """`future[n]` are the experts that forward n will ask for."""
        self._uses: dict[int, list[int]] = {}
        for number, ids in enumerate(future):
            for expert in ids:
                self._uses.setdefault(int(expert), []).append(number)
        self._now = -1

    def asked(self, ids: Sequence[int]) -> None:
        """The next forward of the future has come."""
        self._now += 1

    def victim(self, held: Collection[int]) -> int:
        """The one of these that is wanted last, or never again."""
        return max(held, key=lambda each: (self._next(each), each))

    def _next(self, expert: int) -> int:
        uses = self._uses.get(expert, [])
        place = bisect_right(uses, self._now)
        return uses[place] if place < len(uses) else NEVER


class Load(NamedTuple):
    """An expert that has to be brought into a slot."""

    expert: int
    slot: int
    evicted: int | None  # who lay there before


class Wave(NamedTuple):
    """Experts that lie in the slots at the same time: those found there and those brought."""

    found: tuple[int, ...]
    loads: tuple[Load, ...]


class Residency:
    """The slots of one layer."""

    def __init__(self, slots: int, policy: Policy) -> None:
        self.slots, self._policy = slots, policy
        self.slot_of: dict[int, int] = {}
        self._free = list(range(slots - 1, -1, -1))  # the lowest slot is taken first

    def waves(self, ids: Sequence[int]) -> Iterator[Wave]:
        """What one forward needs, `ids` distinct and rising, in as few waves as there is room for.

        The slots change with each step of the iterator: an expert of an earlier wave may leave.
        """
        self._policy.asked(ids)
        found = tuple(each for each in ids if each in self.slot_of)
        missing = [each for each in ids if each not in self.slot_of]
        room = self.slots - len(found)
        now, later = missing[:room], missing[room:]
        if found or now:
            yield Wave(found, self._bring(now, {*found, *now}))
        for start in range(0, len(later), self.slots):
            now = later[start : start + self.slots]
            yield Wave((), self._bring(now, set(now)))

    def bring_ahead(self, ids: Iterable[int], keep: Collection[int] = ()) -> tuple[Load, ...]:
        """Loads of those not here yet, before anyone asks for them; `keep` does not leave."""
        missing = [each for each in dict.fromkeys(ids) if each not in self.slot_of]
        wanted = missing[: self.slots - len(keep)]
        return self._bring(wanted, {*wanted, *keep})

    def drop(self, expert: int) -> None:
        """The expert is not there after all: its load failed."""
        self._free.append(self.slot_of.pop(expert))

    def _bring(self, experts: Sequence[int], pinned: set[int]) -> tuple[Load, ...]:
        return tuple(self._take(expert, pinned) for expert in experts)

    def _take(self, expert: int, pinned: set[int]) -> Load:
        evicted = None
        if not self._free:
            evicted = self._policy.victim(self.slot_of.keys() - pinned)
            self._free.append(self.slot_of.pop(evicted))
        slot = self.slot_of[expert] = self._free.pop()
        return Load(expert, slot, evicted)


@dataclass(frozen=True, slots=True)
class Replay:
    """Hits and misses [forward, MoE layer], counted as a store's ledger counts them.

    A miss is an expert that had to be brought; every other request, one per (token, slot), is a
    hit, also that of a later token for an expert which an earlier one had brought.
    """

    hits: NDArray[np.int64]
    misses: NDArray[np.int64]
    loads: tuple[tuple[int, int, Load], ...]  # (forward, MoE layer, what was brought)

    @property
    def hit_rate(self) -> float:
        """Share of the requests that were served from a slot."""
        asked = int(self.hits.sum() + self.misses.sum())
        return int(self.hits.sum()) / asked if asked else 0.0


def simulate(routes: Routes, *, slots: int, policy: PolicyName | Policies = "lru") -> Replay:
    """What a store with so many slots per layer would have found and brought; no weights needed.

    `routes` are the arrays of one run's `Routed` events in order, one per forward. For the routing
    of a saved trace split it at the end of the prompt: prefill is one forward, then one per token.
    """
    calls = [np.asarray(each) for each in routes]
    if not calls:
        none = np.zeros((0, 0), np.int64)
        return Replay(none, none.copy(), ())
    _, layers, chosen = calls[0].shape
    if slots < chosen:
        raise BudgetError(
            f"{slots} slots per layer.",
            expected=f"at least {chosen}, the experts of one token.",
            mend=f"Simulate {chosen} slots or more.",
        )
    policies = by_name(policy, calls) if isinstance(policy, str) else policy
    held = [Residency(slots, policies(layer)) for layer in range(layers)]
    misses = np.zeros((len(calls), layers), np.int64)
    loads: list[tuple[int, int, Load]] = []
    for number, call in enumerate(calls):
        for layer, residency in enumerate(held):
            for wave in residency.waves(distinct(call[:, layer])):
                misses[number, layer] += len(wave.loads)
                loads.extend((number, layer, load) for load in wave.loads)
    requests = np.array([[call[:, 0].size] for call in calls])
    return Replay(requests - misses, misses, tuple(loads))


def forwards(
    experts: NDArray[np.integer], given: NDArray[np.bool_], *, chunk: int = 512
) -> list[NDArray[np.integer]]:
    """The routes of a trace by forward: given tokens in chunks, each chosen token for itself.

    `experts` [token, MoE layer, slot] and `given` [token] are a trace's `experts` and
    `np.isnan(trace.seconds)`; `chunk` is that of `generate`.
    """
    given = given[: len(experts)]
    starts = {0, *(np.flatnonzero(given[1:] != given[:-1]) + 1).tolist()}
    cuts: list[int] = []
    for place, was_given in enumerate(given.tolist()):
        if not was_given or place in starts or place - cuts[-1] == chunk:
            cuts.append(place)
    return [experts[start:stop] for start, stop in pairwise([*cuts, len(experts)])]


def by_name(name: str, routes: Routes | None = None) -> Policies:
    """The policy of this name for each layer; `belady` looks its future up in `routes`."""
    if name == "lru":
        return lambda layer: Lru()
    if name == "lfu":
        return lambda layer: Lfu()
    if name == "belady" and routes is not None:
        calls = [np.asarray(each) for each in routes]
        return lambda layer: Belady([distinct(call[:, layer]) for call in calls])
    needs = " `belady` needs the routes of the run." if name == "belady" else ""
    raise InputError(
        f"The policy is {name!r}.{needs}",
        expected=f"one of {', '.join(get_args(PolicyName))}.",
        mend="Use 'lru', or replay a trace with `simulate(routes, slots=…, policy='belady')`.",
    )


def distinct(ids: NDArray[np.integer]) -> list[int]:
    """The ids that occur, rising."""
    found: list[int] = np.unique(ids).tolist()
    return found
