"""One token in NumPy: at every site what the readable network has there, watched or changed."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import k2lab
from k2lab.engine.edits import BiasExperts, Edit, RouteAround, SwapRouter, ZeroExperts, ZeroHeads
from k2lab.engine.events import Event, Routed, TokenChosen
from k2lab.engine.generate import Prompt, Settings, generate
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import chain, edit, keeping, untouched, watch
from k2lab.lab import Lab
from k2lab.model.cache import CHUNK, LatentCache
from k2lab.model.k2 import K2, Router, Step
from k2lab.model.single import Single
from k2lab.spec.config import K2Config, RopeScaling
from k2lab.spec.sites import (
    EVERY,
    SITES,
    Tap,
    describe,
    expand,
    looking_at,
    noting,
    parts,
    rows,
)
from k2lab.text.template import render
from k2lab.weights.meta import Meta

Configs = Callable[..., K2Config]
Models = Callable[..., K2]

YARN = RopeScaling(
    factor=8.0,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    original_max_position_embeddings=64,
)
SHAPES: list[dict[str, Any]] = [
    {},
    {"rope_scaling": YARN, "q_lora_rank": None},
    {"n_group": 4, "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 0},
    {"norm_topk_prob": False, "first_k_dense_replace": 2, "rope_scaling": YARN},
]
PREFIX = [5, 9, 2, 44, 17, 3, 8]


def read(model: K2, ids: Iterable[int], cache: LatentCache, tap: Tap = untouched) -> Tensor:
    """Logits after the last of the ids [vocab], by the readable network."""
    given = torch.tensor([list(ids)])
    with torch.inference_mode():
        return model(given, model.step(given.shape[1], cache=cache, tap=tap))[0, -1]


def one(model: K2, token: int, cache: LatentCache, tap: Tap = untouched) -> Tensor:
    """The same after one token, by NumPy."""
    with torch.inference_mode():
        return torch.from_numpy(Single(model)(token, cache, tap))


def prefixed(model: K2) -> LatentCache:
    cache = LatentCache(model.config)
    read(model, PREFIX, cache)
    return cache


def seeing(seen: list[tuple[str, Tensor]]) -> Tap:
    def tap(site: str, value: Tensor) -> Tensor:
        seen.append((site, value))
        return value

    return tap


def near(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", SHAPES)
def test_every_site_has_the_values_of_the_readable_network(
    changes: dict[str, Any], tiny_config: Configs, tiny_model: Models
) -> None:
    model = tiny_model(tiny_config(**changes))
    assert Single(model).fits
    cache = prefixed(model)
    twin = cache.fork()
    for token in (7, 61, 7, 200):
        here: list[tuple[str, Tensor]] = []
        there: list[tuple[str, Tensor]] = []
        got = one(model, token, cache, seeing(here))
        wanted = read(model, [token], twin, seeing(there))
        near(got, wanted)
        assert [site for site, _ in here] == [site for site, _ in there]
        assert {site for site, _ in here} == {*expand(model.config)}
        for (_, mine), (_, its) in zip(here, there, strict=True):
            assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
            near(mine, its)
    assert cache.length == twin.length == len(PREFIX) + 4
    for mine, its in zip(cache._buffers, twin._buffers, strict=True):
        assert mine is not None and its is not None
        near(mine[:, : cache.length], its[:, : cache.length])


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("row", [site.name for site in SITES])
def test_an_edit_of_any_site_changes_what_it_does_in_the_readable_network(
    row: str, changes: dict[str, Any], tiny_config: Configs, tiny_model: Models
) -> None:
    model = tiny_model(tiny_config(**changes))

    def change(value: Tensor) -> Tensor:
        if value.dtype == torch.int64:  # other experts
            return (value + 1) % model.config.n_routed_experts
        return value.flip(-1) * 0.7

    tap = edit(row.replace("{i}", "*"), model.config, change)
    cache = prefixed(model)
    twin = cache.fork()
    plain = read(model, [7], cache.fork())
    got = [one(model, token, cache, tap) for token in (7, 61)]
    wanted = [read(model, [token], twin, tap) for token in (7, 61)]
    near(torch.stack(got), torch.stack(wanted))
    assert not torch.allclose(got[0], plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("row", [site.name for site in SITES])
def test_a_value_changed_in_place_is_no_part_of_the_network(
    row: str, tiny_config: Configs, tiny_model: Models
) -> None:
    model = tiny_model(tiny_config())
    tap = watch(row.replace("{i}", "*"), model.config, lambda _, value: value.zero_())
    cache = prefixed(model)
    plain = one(model, 7, cache.fork())
    one(model, 7, cache.fork(), tap)
    assert torch.equal(one(model, 7, cache), plain)


def test_a_tap_is_shown_what_it_looks_at(tiny_config: Configs, tiny_model: Models) -> None:
    model = tiny_model(tiny_config())
    seen: list[str] = []

    def tap(site: str, value: Tensor) -> Tensor:
        seen.append(site)
        return value

    routers = looking_at(tap, ("layers.{i}.mlp.router.experts", "norm"))
    one(model, 3, prefixed(model), routers)
    assert seen == [*(f"layers.{i}.mlp.router.experts" for i in model.config.moe_layers), "norm"]


def test_taps_in_a_chain_are_shown_what_any_of_them_looks_at(tiny_config: Configs) -> None:
    config = tiny_config()
    first = watch("layers.1.mlp.router.s*", config, lambda *_: None)
    second = edit("*.input", config, torch.clone)
    assert rows(untouched) == frozenset()
    assert rows(chain(first, second)) == {"layers.{i}.mlp.router.scores", "layers.{i}.input"}
    assert rows(chain(first, lambda _, value: value)) == EVERY  # it does not say


@pytest.mark.parametrize("changes", SHAPES)
def test_what_is_told_is_what_a_call_would_show(
    changes: dict[str, Any], tiny_config: Configs, tiny_model: Models
) -> None:
    """At every site, after an edit, which is called."""
    model = tiny_model(tiny_config(**changes))
    double = edit("*.router.scores", model.config, lambda value: value * 2)
    kept: dict[str, list[Any]] = {site: [] for site in expand(model.config)}
    shown: list[tuple[str, Tensor]] = []
    cache = prefixed(model)
    keep, calls = keeping(kept), list[str]()

    def counted(site: str, value: Tensor) -> Tensor:
        calls.append(site)
        return keep(site, value)

    after_edit = chain(double, noting(counted, parts(keep)[1]))
    first = one(model, 7, cache.fork(), after_edit)
    second = one(model, 7, cache, chain(double, seeing(shown)))
    assert torch.equal(first, second) and not calls
    assert [site for site, told in kept.items() if len(told) == 1] == [site for site, _ in shown]
    for site, value in shown:
        axes = dict(zip(("batch", *describe(site).axes), value.shape, strict=True))
        shape = [size for axis, size in axes.items() if axis not in ("batch", "token")]
        assert np.array_equal(kept[site][0], value.numpy().reshape(shape))


@pytest.mark.parametrize("tokens", [CHUNK - 2, CHUNK + 3])
def test_caches_grow_and_forks_part(tokens: int, tiny_config: Configs, tiny_model: Models) -> None:
    model = tiny_model(tiny_config())
    ids = [(7 * i) % 384 for i in range(tokens)]
    cache, empty = LatentCache(model.config), LatentCache(model.config)
    for each in ids:
        got = one(model, each, cache)
    near(got, read(model, ids, empty))
    twin = cache.fork()
    left, right = one(model, 1, cache), one(model, 2, twin)
    near(left, read(model, [1], empty.fork()))
    near(right, read(model, [2], empty.fork()))


def test_a_halted_token_leaves_the_cache_as_it_was(
    tiny_config: Configs, tiny_model: Models
) -> None:
    model = tiny_model(tiny_config())
    cache = prefixed(model)

    def fail(site: str, value: Tensor) -> Tensor:
        if site == "layers.1.middle":
            raise RuntimeError
        return value

    with pytest.raises(RuntimeError):
        one(model, 4, cache, fail)
    assert cache.length == len(PREFIX)
    near(one(model, 4, cache), read(model, [*PREFIX, 4], LatentCache(model.config)))


def test_values_beyond_an_exponential_are_as_in_torch(
    tiny_config: Configs, tiny_model: Models
) -> None:
    """No warning either: they are errors in these tests."""
    model = tiny_model(tiny_config())
    tap = edit("*router.logits", model.config, lambda value: value * 1e5)
    cache = prefixed(model)
    twin = cache.fork()
    wide = edit("layers.1.middle", model.config, lambda value: value.sign() * 1e15)
    for each in (tap, wide, chain(tap, wide)):
        near(one(model, 4, cache.fork(), each), read(model, [4], twin.fork(), each))


def test_only_the_networks_own_parts_in_float32_on_a_cpu(
    tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config()

    class Other(Router):
        def __call__(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
            experts, weights = super().__call__(x, step)
            return experts, torch.ones_like(weights)

    class Wider(K2):
        pass

    model = tiny_model(config)
    assert Single(model).fits
    assert not Single(Wider(config, model.store)).fits
    assert not Single(tiny_model(config, dtype=torch.bfloat16)).fits
    assert not Single(K2(config, Meta(config))).fits
    model.layers[1].mlp.router = Other(config, 1, model.store)
    assert not Single(model).fits


@pytest.fixture(scope="module")
def lab() -> Lab:
    return k2lab.load()


EDITS: list[tuple[Edit, ...]] = [
    (),
    (ZeroExperts(layer=2, experts=(1, 5, 7, 30)), ZeroHeads(layer=4, heads=(0, 3))),
    (RouteAround(layer=1, experts=tuple(range(20))), BiasExperts(layer=3, experts=(9,), amount=2)),
    (SwapRouter(layer=5, rule="adaptive"), SwapRouter(layer=2, rule="softmax")),
]


@pytest.mark.parametrize("edits", EDITS)
def test_k2_nano_says_the_same_with_edits_and_without(
    edits: tuple[Edit, ...], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = render([{"role": "user", "content": "How much is 17 times 23?"}], system=None)
    prompt = Prompt.of(question, lab.tokenizer)
    settings = Settings(max_tokens=40, edits=Surgery(edits, lab.config))

    def told() -> list[Event]:
        return [*generate(lab.model, lab.tokenizer, prompt, LatentCache(lab.config), settings)]

    calls: list[int] = []
    single = Single.__call__

    def counted(self: Single, token: int, cache: LatentCache, tap: Tap) -> Any:
        calls.append(token)
        return single(self, token, cache, tap)

    with monkeypatch.context() as patched:
        patched.setattr(Single, "__call__", counted)
        fast = told()
    monkeypatch.setattr(Single, "fits", property(lambda _: False))
    slow = told()
    mine, its = ([e for e in run if isinstance(e, TokenChosen)] for run in (fast, slow))
    assert calls == [e.id for e in mine] == [e.id for e in its]
    for first, second in zip(mine, its, strict=True):
        assert (first.logprob, first.entropy) == pytest.approx(
            (second.logprob, second.entropy), abs=1e-4
        )
    routes = [[e.experts for e in run if isinstance(e, Routed)] for run in (fast, slow)]
    assert np.array_equal(*map(np.concatenate, routes))
