"""The cache: forks share what they have in common and nothing else; cutting back; its limit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.errors import ContextError
from k2lab.model.cache import CHUNK, LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_THINKING, K2Config

Configs = Callable[..., K2Config]
Models = Callable[..., K2]


@pytest.fixture
def model(tiny_config: Configs, tiny_model: Models) -> K2:
    return tiny_model(tiny_config())


def read(model: K2, ids: list[int], cache: LatentCache) -> Tensor:
    with torch.inference_mode():
        given = torch.tensor([ids])
        return model(given, model.step(len(ids), cache=cache, tap=untouched))[0]


def fresh(model: K2, ids: list[int]) -> Tensor:
    return read(model, ids, LatentCache(model.config))


PREFIX, LEFT, RIGHT = [5, 6, 7, 8, 9, 10, 11], [100, 101, 102], [200, 201, 202, 203]


def test_both_sides_of_a_fork_go_on_as_if_alone(model: K2) -> None:
    one = LatentCache(model.config)
    read(model, PREFIX, one)
    two = one.fork()
    # In turns, one token at a time: whichever writes first must not reach the other.
    left, right = [], []
    for a, b in zip(LEFT, RIGHT, strict=False):
        left.append(read(model, [a], one))
        right.append(read(model, [b], two))
    right.append(read(model, RIGHT[3:], two))
    at = len(PREFIX)
    torch.testing.assert_close(torch.cat(left), fresh(model, PREFIX + LEFT)[at:])
    torch.testing.assert_close(torch.cat(right), fresh(model, PREFIX + RIGHT)[at:])
    assert (one.length, two.length) == (10, 11)


@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_fork_of_a_fork_is_independent_too(first: str, model: K2) -> None:
    one = LatentCache(model.config)
    read(model, PREFIX, one)
    two = one.fork()
    three = two.fork()
    order = [one, two, three] if first == "parent" else [three, two, one]
    for number, cache in enumerate(order):
        read(model, [300 + number], cache)
    for number, cache in enumerate(order):
        got = read(model, [42], cache)
        torch.testing.assert_close(got, fresh(model, [*PREFIX, 300 + number, 42])[-1:])


def test_forking_computes_nothing_and_copies_nothing_until_a_write(model: K2) -> None:
    forwards = []

    def count(site: str, value: Tensor) -> Tensor:
        if site == "embed":
            forwards.append(value.shape[1])
        return value

    cache = LatentCache(model.config)
    with torch.inference_mode():
        model(torch.tensor([PREFIX]), model.step(len(PREFIX), cache=cache, tap=count))
        twin = cache.fork()
        same = zip(cache._buffers, twin._buffers, strict=True)
        assert all(mine is its for mine, its in same)
        model(torch.tensor([[1]]), model.step(1, cache=twin, tap=count))
    assert forwards == [7, 1]  # the prefix went through the network once


def test_many_forks_in_a_row_do_not_grow_the_buffers(model: K2) -> None:
    cache = LatentCache(model.config)
    read(model, PREFIX, cache)
    for _ in range(12):
        cache = cache.fork()
        read(model, [1], cache)
    capacity = cache._buffers[0].shape[1]
    assert capacity <= cache.length + CHUNK


def test_growth_over_several_buffers_keeps_what_was_remembered(model: K2) -> None:
    ids = [(7 * i) % 384 for i in range(CHUNK + 140)]
    cache = LatentCache(model.config)
    got = [read(model, ids[:100], cache), read(model, ids[100:390], cache)]
    got += [read(model, [i], cache) for i in ids[390:]]
    torch.testing.assert_close(torch.cat(got), fresh(model, ids), rtol=0, atol=2e-5)


def test_truncating_forgets_the_rest_and_only_the_rest(model: K2) -> None:
    cache = LatentCache(model.config)
    read(model, PREFIX + LEFT, cache)
    cache.truncate(len(PREFIX))
    assert cache.length == len(PREFIX)
    got = read(model, RIGHT, cache)
    torch.testing.assert_close(got, fresh(model, PREFIX + RIGHT)[len(PREFIX) :])
    cache.truncate(1000)
    assert cache.length == 11


def test_truncating_one_side_of_a_fork_leaves_the_other(model: K2) -> None:
    one = LatentCache(model.config)
    read(model, PREFIX + LEFT, one)
    two = one.fork()
    two.truncate(len(PREFIX))
    right = read(model, RIGHT, two)
    torch.testing.assert_close(right, fresh(model, PREFIX + RIGHT)[len(PREFIX) :])
    torch.testing.assert_close(read(model, [42], one), fresh(model, [*PREFIX, *LEFT, 42])[-1:])


def test_a_halted_forward_leaves_the_cache_as_it_was(model: K2) -> None:
    cache = LatentCache(model.config)
    read(model, PREFIX, cache)

    def fail(site: str, value: Tensor) -> Tensor:
        if site == "layers.1.middle":
            raise RuntimeError
        return value

    with pytest.raises(RuntimeError), torch.inference_mode():
        model(torch.tensor([LEFT]), model.step(3, cache=cache, tap=fail))
    assert cache.length == len(PREFIX)
    torch.testing.assert_close(
        read(model, RIGHT, cache), fresh(model, PREFIX + RIGHT)[len(PREFIX) :]
    )


def test_a_token_too_many_is_refused_before_anything_is_computed(model: K2) -> None:
    cache = LatentCache(model.config)
    cache.length = 510  # of 512
    cache.room_for(2)
    with pytest.raises(ContextError, match=r"510 tokens are cached and 3 more.*at most 512"):
        model.step(3, cache=cache, tap=untouched)


def test_a_token_costs_70272_bytes_at_the_size_of_k2_thinking() -> None:
    cache = LatentCache(K2_THINKING)
    for layer in range(61):
        cache.append(layer, torch.empty(1, 3, 512 + 64, dtype=torch.bfloat16, device="meta"))
    cache.advance(3)
    assert cache.nbytes() == 3 * 70_272
