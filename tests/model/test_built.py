"""Whatever somebody changes in a network, each token is computed by what is there then."""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import k2lab
from k2lab.engine.generate import reader
from k2lab.engine.taps import untouched
from k2lab.model import built, k2
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2, MLA, RMSNorm, Router, Step
from k2lab.model.single import Single
from k2lab.spec.config import K2Config
from k2lab.tensors.linear import swiglu
from k2lab.tensors.rope import Rotary
from k2lab.weights.store import Lease, WeightStore, namespace

Configs = Callable[..., K2Config]
Models = Callable[..., K2]
Patch = pytest.MonkeyPatch
Change = Callable[[K2, Patch], object]
PREFIX = [5, 9, 2, 44, 17, 3, 8]


def router(model: K2) -> Router:
    mixer = model.layers[1].mlp
    assert isinstance(mixer, k2.MoE)
    return mixer.router


def held(model: K2, part: str = "lm_head", layer: int | None = None) -> Any:
    return model.store.dense(layer, part).weights


class Doubled(RMSNorm):
    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return super().__call__(x, weight) * 2


class Wrapped:
    """A store that lends one part changed, each time anew."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def dense(self, layer: int | None, part: str) -> Lease:
        lease = self._store.dense(layer, part)
        if part != "norm":
            return lease
        return Lease(namespace({"norm": lease.weights.norm * 3}))


def sharper(scores: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attend(self: MLA, products: Tensor, step: Step) -> Tensor:
        return scores(self, products * 3, step)

    return attend


def shadow(model: K2, _: Patch) -> None:
    mla = model.layers[0].self_attn
    mla._attend = sharper(MLA._attend).__get__(mla)  # type: ignore[method-assign]


def swap(model: K2, _: Patch) -> None:
    model.layers[1], model.layers[2] = model.layers[2], model.layers[1]


def fewer(model: K2, _: Patch) -> None:
    router(model).config = replace(model.config, num_experts_per_tok=1)


def rotary(model: K2, _: Patch) -> None:
    model.rotary = Rotary(replace(model.config, rope_theta=3.0))


def store(model: K2, _: Patch) -> None:
    model.store = Wrapped(model.store)  # type: ignore[assignment]


def lease(model: K2, _: Patch) -> None:
    found = model.store.dense(None, "lm_head")
    found.weights = namespace({"lm_head": -found.weights.lm_head})


def code(_: K2, patch: Patch) -> None:
    def sharp(self: MLA, products: Tensor, step: Step) -> Tensor:
        scores = products.float() * self.scale * 3
        return step.tap(self.site.weights, scores.softmax(-1).type_as(products))

    patch.setattr(MLA._attend, "__code__", sharp.__code__)


# What is assigned is seen at the next token.
ASSIGNED: dict[str, Change] = {
    "scale": lambda m, _: setattr(m.layers[1].self_attn, "scale", torch.tensor(1.0)),
    "scale, a number of Python": lambda m, _: setattr(m.layers[1].self_attn, "scale", 1.0),
    "scale, in place": lambda m, _: m.layers[1].self_attn.scale.mul_(5),
    "factor": lambda m, _: setattr(router(m), "factor", torch.tensor(0.0)),
    "factor, in place": lambda m, _: router(m).factor.zero_(),
    "guard": lambda m, _: setattr(router(m), "tiny", torch.tensor(1.0)),
    "norm of a layer": lambda m, _: setattr(m.layers[1], "norm", Doubled(64, 1e-6)),
    "last norm": lambda m, _: setattr(m, "norm", Doubled(64, 1e-6)),
    "norm of latents": lambda m, _: setattr(
        m.layers[0].self_attn, "kv_a_layernorm", Doubled(16, 1e-6)
    ),
    "epsilon": lambda m, _: setattr(m.layers[1], "norm", RMSNorm(64, 0.5)),
    "mixer": lambda m, _: setattr(m.layers[2], "mlp", m.layers[1].mlp),
    "order of layers": swap,
    "a layer less": lambda m, _: m.layers.pop(1),
    "config of a router": fewer,
    "rotations": rotary,
    "store": store,
    "lease": lease,
    "method of one object": shadow,
    "weight": lambda m, _: setattr(held(m), "lm_head", -held(m).lm_head),
    "weight of a layer": lambda m, _: setattr(
        held(m, "self_attn", 1), "o_proj", held(m, "self_attn", 1).o_proj * 4
    ),
    "parameter": lambda m, _: setattr(held(m), "lm_head", Parameter(-held(m).lm_head)),
    "weight, in place": lambda m, _: held(m).lm_head.neg_(),
}

# What lies deeper is seen before the first token of a run, and of what follows a pause.
DEEPER: dict[str, Change] = {
    "epsilon, in place": lambda m, _: m.layers[1].norm.floor.fill_(0.7),
    "size": lambda m, _: setattr(m.layers[1].norm, "scale", torch.tensor(1.0)),
    "data of a weight": lambda m, _: setattr(held(m).lm_head, "data", -held(m).lm_head),
    "data of a number": lambda m, _: setattr(router(m).factor, "data", torch.tensor(0.0)),
    "config, in place": lambda m, _: object.__setattr__(m.config, "num_experts_per_tok", 1),
    "method of a class": lambda _, p: p.setattr(MLA, "_attend", sharper(MLA._attend)),
    "function": lambda _, p: p.setattr(k2, "swiglu", lambda *a: swiglu(*a) * 2),
    "code": code,
}


@pytest.fixture
def model(tiny_config: Configs, tiny_model: Models) -> K2:
    return tiny_model(copy.copy(tiny_config()))


def prefixed(model: K2) -> LatentCache:
    cache = LatentCache(model.config)
    with torch.inference_mode():
        model(torch.tensor([PREFIX]), model.step(len(PREFIX), cache=cache, tap=untouched))
    return cache


def read(model: K2, token: int, cache: LatentCache) -> Tensor:
    """Logits after the token [vocab], by the readable network."""
    with torch.inference_mode():
        return model(torch.tensor([[token]]), model.step(1, cache=cache, tap=untouched))[0, -1]


def near(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*ASSIGNED, *DEEPER])
def test_a_run_computes_each_token_by_the_network_as_it_is(
    kind: str, model: K2, monkeypatch: Patch
) -> None:
    cache = prefixed(model)
    twin = cache.fork()
    with torch.inference_mode():
        near(reader(model)([7], cache, untouched), read(model, 7, twin))
        before = read(model, 61, cache.fork())
        {**ASSIGNED, **DEEPER}[kind](model, monkeypatch)
        got = reader(model)([61], cache, untouched)
    near(got, read(model, 61, twin))
    assert not torch.allclose(got, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [*ASSIGNED, *DEEPER])
def test_a_change_between_two_tokens_counts_from_the_second(
    kind: str, model: K2, monkeypatch: Patch
) -> None:
    if kind in DEEPER:  # as after a pause
        monkeypatch.setattr(built, "AGAIN", 0)
    cache = prefixed(model)
    twin = cache.fork()
    with torch.inference_mode():
        forward = reader(model)
        near(forward([7], cache, untouched), read(model, 7, twin))
        {**ASSIGNED, **DEEPER}[kind](model, monkeypatch)
        for token in (61, 7, 200):
            near(forward([token], cache, untouched), read(model, token, twin))


@pytest.mark.parametrize("kind", ["weight", "weight, in place", "parameter", "lease"])
def test_other_weights_are_still_computed_in_numpy(
    kind: str, model: K2, monkeypatch: Patch
) -> None:
    single = Single(model)
    with torch.inference_mode():
        ASSIGNED[kind](model, monkeypatch)
    monkeypatch.setattr(Single, "_readable", None)
    with torch.inference_mode():
        single(7, prefixed(model), untouched)
    assert Single(model).fits


def test_weights_in_another_dtype_are_left_to_the_readable_network(model: K2) -> None:
    held(model).lm_head = held(model).lm_head.bfloat16()
    assert not Single(model).fits


def test_autocast_and_a_cache_of_somebody_elses_are_left_to_the_readable_network(
    model: K2, monkeypatch: Patch
) -> None:
    class Coarse(LatentCache):
        def append(self, layer: int, memory: Tensor) -> Tensor:
            return super().append(layer, memory.round(decimals=1))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not Single(model).fits
    single = Single(model)
    assert Single(model).fits
    with torch.inference_mode():
        one, other = Coarse(model.config), Coarse(model.config)
        for token in PREFIX:
            got = torch.from_numpy(single(token, one, untouched))
            near(got, read(model, token, other))


def test_the_shipped_model_is_computed_in_numpy(monkeypatch: Patch) -> None:
    lab = k2lab.load()
    assert Single(lab.model).fits
    single, cache = Single(lab.model), LatentCache(lab.config)
    monkeypatch.setattr(Single, "_readable", None)
    monkeypatch.setattr(built, "AGAIN", 0)
    with torch.inference_mode():
        for token in PREFIX:
            single(token, cache, untouched)


def test_two_runs_at_once_each_follow_the_weights(model: K2) -> None:
    first, second = Single(model), Single(model)
    one, other = prefixed(model), prefixed(model)
    held(model).lm_head = -held(model).lm_head
    with torch.inference_mode():
        near(*(torch.from_numpy(s(7, c, untouched)) for s, c in ((first, one), (second, other))))
    assert first._picture.holds() and second._picture.holds()


def test_a_method_replaced_before_anything_was_loaded_is_known_too() -> None:
    code = """
import functools
from k2lab.model.k2 import Router
@functools.wraps(Router.__call__)
def other(self, x, step, call=Router.__call__):
    experts, weights = call(self, x, step)
    return experts, weights * 0
Router.__call__ = other
from k2lab.model import built
print(built._untouched())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
