"""Weights that learn: every parameter gets a gradient, and what is exported is what was trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.model.export import write_checkpoint
from k2lab.model.k2 import K2
from k2lab.model.load import load_model
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.spec.keys import tensors
from k2lab.tensors.int4 import fake_quantise
from k2lab.train.store import Trainable

Configs = Callable[..., K2Config]
IDS = torch.arange(2 * 24).reshape(2, 24) * 13 % 640


@pytest.fixture
def config(tiny_config: Configs) -> K2Config:
    return tiny_config(quantization_config=K2_NANO.quantization_config, dtype="bfloat16")


def logits(model: K2) -> Tensor:
    return model(IDS, model.step(IDS.shape[1], cache=None, tap=untouched))


def test_every_parameter_learns(config: K2Config) -> None:
    store = Trainable(config)
    logits(K2(config, store)).square().mean().backward()
    for key, parameter in store.parameters.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    assert all(not bias.requires_grad for bias in store.biases.values())


def test_quantised_gradients_pass_straight_through(config: K2Config) -> None:
    store = Trainable(config)
    store.quantised = True
    logits(K2(config, store)).square().mean().backward()
    gradient = store.parameters["model.layers.1.mlp.experts.down"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_fewer_levels_are_seen_coarser(config: K2Config) -> None:
    store = Trainable(config)
    model = K2(config, store)
    full, store.quantised = logits(model), True
    four, store.levels = logits(model), 1
    two = logits(model)
    assert 0 < (four - full).norm() < (two - full).norm()


def test_what_stays_still_is_rounded_once(
    config: K2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Trainable(config)
    store.quantised = True
    model, rounded = K2(config, store), list[Tensor]()

    def counted(weight: Tensor, levels: int) -> Tensor:
        rounded.append(weight)
        return fake_quantise(weight, levels)

    monkeypatch.setattr("k2lab.train.store.fake_quantise", counted)
    before = logits(model)
    once = len(rounded)
    with store.still():
        assert torch.equal(logits(model), before)
        assert torch.equal(logits(model), before)
        assert len(rounded) == 2 * once
    with torch.no_grad():
        store.parameters["model.layers.1.mlp.experts.down"].mul_(2)
    assert not torch.equal(logits(model), before)


def test_the_same_seed_starts_from_the_same_weights(config: K2Config) -> None:
    one, two, three = (
        Trainable(config, seed=1),
        Trainable(config, seed=1),
        Trainable(config, seed=2),
    )
    key = "model.layers.2.mlp.experts.gate_up"
    assert torch.equal(one.parameters[key], two.parameters[key])
    assert not torch.equal(one.parameters[key], three.parameters[key])


def test_an_export_has_exactly_the_tensors_of_the_config(config: K2Config) -> None:
    exported = dict(Trainable(config).export())
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int32: "I32"}
    got = {key: (tuple(value.shape), names[value.dtype]) for key, value in exported.items()}
    assert got == {spec.key: (spec.shape, spec.dtype) for spec in tensors(config)}


def test_an_export_may_leave_experts_as_they_are(config: K2Config) -> None:
    store, plain = Trainable(config), replace(config, quantization_config=None)
    exported = dict(store.export(rounded=False))
    assert {key: tuple(value.shape) for key, value in exported.items()} == {
        spec.key: spec.shape for spec in tensors(plain)
    }
    expert = exported["model.layers.2.mlp.experts.3.down_proj.weight"]
    assert torch.equal(expert, store.parameters["model.layers.2.mlp.experts.down"][3].bfloat16())


def balanced(config: K2Config) -> Trainable:
    store = Trainable(config, seed=6)
    generator = torch.Generator().manual_seed(1)
    for layer in config.moe_layers:
        load = {layer: torch.rand(config.n_routed_experts, generator=generator)}
        store.balance(load, 0.05)
    return store


def test_an_export_computes_what_was_trained_with_quantisation(
    config: K2Config, tmp_path: Path
) -> None:
    store = balanced(config)
    store.quantised = True
    with torch.no_grad():
        # Rounded first, as the file is in bfloat16; experts stay as they are.
        for key, value in store.parameters.items():
            if ".experts." not in key:
                value.copy_(value.bfloat16())
        trained = logits(K2(config, store))
        write_checkpoint(tmp_path, config, store.export())
        shipped = logits(load_model(tmp_path, "resident"))
    assert torch.equal(shipped, trained)


def test_rounding_to_bfloat16_costs_little(config: K2Config, tmp_path: Path) -> None:
    store = balanced(config)
    store.quantised = True
    with torch.no_grad():
        trained = logits(K2(config, store))
        write_checkpoint(tmp_path, config, store.export())
        shipped = logits(load_model(tmp_path, "resident"))
    difference = (shipped - trained).norm(dim=-1) / trained.norm(dim=-1)
    assert float(difference.median()) < 1e-2  # a flipped expert may cost one token more


def test_balance_moves_the_bias_towards_even_load(config: K2Config) -> None:
    store = Trainable(config)
    load = torch.full((16,), 10)
    load[3], load[7] = 26, 2
    load[0] = 2
    (worst,) = store.balance({1: load}, 0.01)
    mean = float(load.float().mean())
    assert worst == pytest.approx(26 / mean)
    expected = 0.01 * torch.sign(mean - load.float())
    torch.testing.assert_close(store.biases[1], expected)
    assert float(store.biases[1][3]) < 0 < float(store.biases[1][7])
    with store.dense(1, "mlp.gate") as w:
        assert w.e_score_correction_bias is store.biases[1]  # the router sees the move
    assert not store.biases[2].any()


def test_a_snapshot_puts_everything_back(config: K2Config) -> None:
    store = Trainable(config)
    kept = store.snapshot()
    with torch.no_grad():
        for value in store.parameters.values():
            value.add_(1)
    store.restore(kept)
    fresh = Trainable(config)
    assert all(torch.equal(fresh.parameters[key], kept[key]) for key in kept)
    assert all(torch.equal(store.parameters[key], kept[key]) for key in kept)
