"""Who lies in the slots: policies, waves, and the replay of routes."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from k2lab.errors import BudgetError, InputError
from k2lab.weights.residency import (
    Belady,
    Lfu,
    Load,
    Lru,
    Policy,
    Residency,
    by_name,
    distinct,
    forwards,
    simulate,
)

EXPERTS, TOP = 12, 3


def routes(seed: int, calls: Sequence[int], layers: int = 2) -> list[NDArray[np.uint16]]:
    """Random routes with some habit: a forward of so many tokens for each call."""
    random = np.random.default_rng(seed)
    likely = random.dirichlet(np.full(EXPERTS, 0.5), layers)
    return [
        np.array(
            [
                [
                    random.choice(EXPERTS, TOP, replace=False, p=p * 0.9 + 0.1 / EXPERTS)
                    for p in likely
                ]
                for _ in range(tokens)
            ],
            dtype=np.uint16,
        )
        for tokens in calls
    ]


def bring(policy: Policy, slots: int, asked: Sequence[Sequence[int]]) -> list[list[Load]]:
    residency = Residency(slots, policy)
    return [[load for wave in residency.waves(ids) for load in wave.loads] for ids in asked]


def test_lru_gives_up_the_one_longest_unasked() -> None:
    loads = bring(Lru(), 2, [[1], [2], [1], [3], [1], [2]])
    assert [[load.evicted for load in each] for each in loads] == [[None], [None], [], [2], [], [3]]


def test_lfu_gives_up_the_one_asked_least() -> None:
    loads = bring(Lfu(), 2, [[1], [1], [2], [3], [1], [2]])
    assert [[load.evicted for load in each] for each in loads] == [[None], [], [None], [2], [], [3]]


def test_belady_gives_up_the_one_wanted_last() -> None:
    asked = [[1], [2], [3], [1], [2], [3]]
    loads = bring(Belady(asked), 2, asked)
    assert [[load.evicted for load in each] for each in loads] == [[None], [None], [2], [], [1], []]


def test_what_one_forward_asks_for_never_evicts_each_other() -> None:
    residency = Residency(3, Lru())
    for ids in ([0, 1, 2], [2, 5, 9], [0, 5, 7]):
        (wave,) = residency.waves(ids)
        assert sorted([*wave.found, *(load.expert for load in wave.loads)]) == ids
        assert all(residency.slot_of[each] is not None for each in ids)
        assert len(set(residency.slot_of.values())) == len(residency.slot_of) == 3


def test_more_than_fit_come_in_waves_each_once() -> None:
    residency = Residency(4, Lru())
    list(residency.waves([1, 2]))
    waves = list(residency.waves(list(range(11))))
    assert waves[0].found == (1, 2)
    brought = [load.expert for wave in waves for load in wave.loads]
    assert sorted(brought) == [0, *range(3, 11)]
    assert all(len(wave.found) + len(wave.loads) <= 4 for wave in waves)


def test_a_dropped_expert_is_brought_again() -> None:
    residency = Residency(2, Lru())
    list(residency.waves([1, 2]))
    residency.drop(1)
    (wave,) = residency.waves([1, 2])
    assert [load.expert for load in wave.loads] == [1]
    assert wave.loads[0].evicted is None


def test_bringing_ahead_never_takes_a_kept_slot() -> None:
    residency = Residency(2, Lru())
    list(residency.waves([1, 2]))
    assert residency.bring_ahead([3], keep=[1, 2]) == ()
    assert [load.evicted for load in residency.bring_ahead([3, 4], keep=[2])] == [1]


def test_whom_two_tokens_want_is_brought_ahead_once() -> None:
    residency = Residency(2, Lru())
    assert [load.slot for load in residency.bring_ahead([3, 3])] == [0]
    assert [load.slot for load in residency.bring_ahead([3, 4, 4])] == [1]


@pytest.mark.parametrize("slots", [3, 4, 7, 11, 12])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), calls=st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_no_policy_beats_belady_and_none_brings_what_is_there(
    slots: int, seed: int, calls: list[int]
) -> None:
    """For single tokens; a prefill in waves is one request, of which Bélády sees no inside."""
    ones = routes(seed, [1] * len(calls))
    best = simulate(ones, slots=slots, policy="belady").misses.sum()
    for policy in ("lru", "lfu"):
        replay = simulate(ones, slots=slots, policy=policy)
        assert replay.misses.sum() >= best
        distinct_misses = sum(len(set(ones_of(ones, layer))) for layer in range(2))
        assert replay.misses.sum() >= distinct_misses
        if slots == EXPERTS:
            assert replay.misses.sum() == distinct_misses
    mixed = routes(seed, calls)
    replay = simulate(mixed, slots=slots)
    assert (replay.hits + replay.misses).sum() == sum(each.size for each in mixed)
    assert (replay.misses >= 0).all()
    assert (replay.hits >= 0).all()


def ones_of(calls: list[NDArray[np.uint16]], layer: int) -> list[int]:
    return [int(each) for call in calls for each in call[:, layer].ravel()]


def test_loads_replayed_in_order_give_the_residency() -> None:
    calls = routes(3, [5, 1, 1, 1, 1, 1])
    replay = simulate(calls, slots=4)
    held: dict[tuple[int, int], int] = {}
    for _, layer, load in replay.loads:
        assert held.get((layer, load.slot)) == load.evicted
        held[layer, load.slot] = load.expert
    assert len(replay.loads) == replay.misses.sum()


def test_fewer_slots_than_a_token_needs_are_refused() -> None:
    with pytest.raises(BudgetError, match="at least 3"):
        simulate(routes(0, [1]), slots=2)


def test_unknown_policies_and_belady_without_a_future_are_refused() -> None:
    with pytest.raises(InputError, match="lru, lfu, belady"):
        by_name("random")
    with pytest.raises(InputError, match="needs the routes"):
        by_name("belady")


def test_nothing_routed_is_nothing_moved() -> None:
    assert simulate([], slots=3).hit_rate == 0.0


def test_the_forwards_of_a_trace_are_its_prompts_in_chunks_and_its_tokens() -> None:
    experts = np.arange(12 * 2 * 3).reshape(12, 2, 3)
    given = np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0], bool)
    parts = forwards(experts, given, chunk=3)
    assert [len(part) for part in parts] == [3, 2, 1, 1, 2, 1, 1, 1]
    assert np.array_equal(np.concatenate(parts), experts)


def test_a_trace_without_tokens_has_no_forwards() -> None:
    assert forwards(np.zeros((0, 2, 3), int), np.zeros(0, bool)) == []


def test_distinct_ids_rise() -> None:
    assert distinct(np.array([[4, 1], [4, 0]])) == [0, 1, 4]
