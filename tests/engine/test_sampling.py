"""Samplers: the right sets, the right frequencies, the same seed the same tokens."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from k2lab.engine.sampling import Sampler, anew, at, greedy, named, sampled, state_of, written
from k2lab.errors import InputError


def allowed(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[set[int], set[int]]:
    """Ids that must stay and ids that may stay (equal ones, or sums within rounding), slowly."""
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    ranked = [(i, weights[i]) for i in order]
    if top_k:
        ranked = ranked[:top_k]
    total, before, kept, doubtful = sum(w for _, w in ranked), 0.0, [], set()
    for i, weight in ranked:
        share = before / total
        if share < top_p or not before:
            kept.append((i, weight))
        if before and abs(share - top_p) < 1e-5:
            doubtful.add(i)
        before += weight
    biggest = ranked[0][1]
    must = {i for i, weight in kept if weight >= min_p * biggest}
    doubtful |= {i for i, weight in kept if abs(weight - min_p * biggest) < 1e-6 * biggest}
    return must - doubtful, must | doubtful


def drawn(sampler: Sampler, logits: list[float], times: int) -> list[int]:
    given_logits = torch.tensor(logits)
    return [sampler(given_logits) for _ in range(times)]


distinct = st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True)


@settings(max_examples=150, deadline=None)
@given(
    distinct,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 14),
    st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_cuts_keep_the_right_set(
    tenths: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = [value / 10 for value in tenths]
    must, may = allowed(logits, temperature, top_k, top_p, min_p)
    kept: list[set[int]] = []

    def spy(probabilities: torch.Tensor, count: int, **options: Any) -> torch.Tensor:
        order = sorted(range(len(logits)), key=lambda i: -logits[i])
        kept.append(set(order[: len(probabilities)]))
        return torch.zeros(1, dtype=torch.long)

    sampler = sampled(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", spy)
        sampler(torch.tensor(logits))
    assert must <= kept[0] <= may


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}])
def test_cuts_equal_those_of_transformers(cut: dict[str, Any]) -> None:
    warpers = pytest.importorskip(
        "transformers.generation.logits_process", reason="the peer is not installed"
    )
    name, value = next(iter(cut.items()))
    warper = {
        "top_k": warpers.TopKLogitsWarper,
        "top_p": warpers.TopPLogitsWarper,
        "min_p": warpers.MinPLogitsWarper,
    }[name](value)
    logits = [0.3, 2.0, -1.0, 1.7, 0.9, -3.0, 1.2]
    left = warper(torch.zeros(1, 1, dtype=torch.long), torch.tensor([logits]).clone())[0]
    wanted = {i for i, each in enumerate(left.tolist()) if each > -math.inf}
    assert set(drawn(sampled(**cut), logits, 600)) == wanted


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = [0.0] * 100
    assert len(set(drawn(sampled(top_k=4, top_p=0.5), logits, 200))) == 2


def test_frequencies_are_those_of_the_softmax() -> None:
    logits = [1.0, 0.0, -1.0, 2.0]
    for temperature in (0.5, 1.0, 3.0):
        found = drawn(sampled(temperature=temperature, seed=3), logits, 4000)
        wanted = (torch.tensor(logits) / temperature).softmax(0)
        shares = torch.bincount(torch.tensor(found), minlength=4) / 4000
        assert float((shares - wanted).abs().max()) < 0.03


def test_the_same_seed_gives_the_same_tokens_and_another_does_not() -> None:
    logits = [0.1 * i for i in range(20)]
    first = drawn(sampled(seed=5), logits, 50)
    assert drawn(sampled(seed=5), logits, 50) == first
    assert drawn(sampled(seed=6), logits, 50) != first


def test_two_samplers_and_torchs_own_generator_do_not_disturb_each_other() -> None:
    logits = torch.linspace(0, 2, 20)
    alone = drawn(sampled(seed=5), logits.tolist(), 30)
    one, two, mixed = sampled(seed=5), sampled(seed=5), []
    for _ in range(30):
        torch.rand(3)
        two(logits)
        mixed.append(one(logits))
    assert mixed == alone


def test_temperature_zero_is_greedy_and_greedy_takes_the_lowest_of_equals() -> None:
    assert sampled(temperature=0) is greedy
    assert greedy(torch.tensor([1.0, 3.0, 3.0, 2.0])) == 1


def test_a_temperature_near_zero_is_greedy_too() -> None:
    assert drawn(sampled(temperature=1e-40), [1.0, 90.0, 3.0], 5) == [1] * 5


def test_impossible_tokens_are_never_drawn() -> None:
    logits = [-math.inf, 0.0, -math.inf, 1.0]
    assert set(drawn(sampled(temperature=50.0), logits, 100)) == {1, 3}


def test_logits_are_not_changed() -> None:
    logits = torch.tensor([0.5, 0.1])
    sampled(top_k=1, top_p=0.5, min_p=0.1, temperature=2.0)(logits)
    assert logits.tolist() == pytest.approx([0.5, 0.1])


@pytest.mark.parametrize(
    "nonsense",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": -0.01},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"min_p": 2.0},
        {"min_p": -1.0},
        {"temperature": "hot"},
        {"temperature": None},
        {"top_k": 1.5},
        {"top_p": "all"},
        {"seed": None},
        {"seed": 1.5},
        {"seed": 10**23},
        {"seed": -(2**63) - 1},
    ],
)
def test_nonsense_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(nonsense))):
        sampled(**nonsense)


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint8(7)}
    assert repr(sampled(**given)) == repr(sampled(temperature=0.5, top_k=3, seed=7))
    assert drawn(sampled(seed=2**64 - 1), [0.0, 1.0], 1)
    assert drawn(sampled(seed=-(2**63)), [0.0, 1.0], 1)


def test_draws_go_on_from_a_state_as_they_would_have() -> None:
    sampler, logits = sampled(temperature=2.0, seed=5), torch.linspace(0, 3, 50)
    for _ in range(7):
        sampler(logits)
    state = state_of(sampler)
    wanted = [sampler(logits) for _ in range(40)]
    again = at(sampled(temperature=2.0, seed=5), state)
    assert [again(logits) for _ in range(40)] == wanted
    fresh = anew(again)
    assert [fresh(logits) for _ in range(40)] != wanted
    assert state_of(greedy) == "" and at(greedy, "") is greedy


@pytest.mark.parametrize("sampler", [greedy, sampled(seed=3), sampled(temperature=0.5, top_p=0.9)])
def test_a_sampler_can_be_read_from_its_name(sampler: Sampler) -> None:
    assert written(named(sampler)) == sampler


@pytest.mark.parametrize(
    "text", ["Guided(greedy)", "sampled(seed=print())", "sampled(3)", "", "a b"]
)
def test_what_is_no_name_of_a_sampler_gives_none(text: str) -> None:
    assert written(text) is None


def test_a_sampler_of_ones_own_is_named_by_its_kind_alone() -> None:
    assert named(lambda logits: 0) == "function()"
