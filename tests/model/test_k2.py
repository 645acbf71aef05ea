"""The network: one answer, however it is computed; what may differ, differs as it should."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import edit, untouched
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2, Form, RMSNorm
from k2lab.spec.config import K2Config, RopeScaling

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
]


def ids_of(config: K2Config, batch: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (batch, tokens), generator=generator)


def forward(
    model: K2, ids: Tensor, *, cache: LatentCache | None = None, form: Form | None = None
) -> Tensor:
    with torch.inference_mode():
        return model(ids, model.step(ids.shape[1], cache=cache, tap=untouched, form=form))


def close(first: Tensor, second: Tensor, tolerance: float = 2e-5) -> bool:
    return float((first - second).abs().max()) <= tolerance


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("form", ["absorbed", "fused"])
def test_absorbed_and_fused_attention_equal_expanded(
    changes: dict[str, Any], tokens: int, form: Form, tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(**changes)
    model, ids = tiny_model(config), ids_of(config, 2, tokens)
    assert close(forward(model, ids, form=form), forward(model, ids, form="expanded"))


@pytest.mark.parametrize("form", ["foo", ""])
def test_a_form_that_is_none_is_refused(
    form: Any, tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config()
    with pytest.raises(InputError, match="expanded, absorbed, fused"):
        forward(tiny_model(config), ids_of(config, 1, 2), form=form)


def test_fused_attention_goes_on_from_a_cache(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    model, ids = tiny_model(config), ids_of(config, 2, 40)
    cache = LatentCache(config, batch=2)
    parts = [forward(model, part, cache=cache, form="fused") for part in ids.split(13, 1)]
    assert close(torch.cat(parts, 1), forward(model, ids, form="expanded"))


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("cuts", [[40], [39], [1, 2, 3, 20], list(range(1, 40))])
def test_reading_in_pieces_equals_reading_at_once(
    changes: dict[str, Any], cuts: list[int], tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(**changes)
    model, ids = tiny_model(config), ids_of(config, 2, 40)
    cache = LatentCache(config, batch=2)
    parts = [
        forward(model, ids[:, start:end], cache=cache)
        for start, end in zip([0, *cuts], [*cuts, 40], strict=True)
        if end > start
    ]
    assert cache.length == 40
    assert close(torch.cat(parts, 1), forward(model, ids))


def test_pieces_may_be_read_in_either_form(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    model, ids = tiny_model(config), ids_of(config, 1, 30)
    cache = LatentCache(config)
    first = forward(model, ids[:, :13], cache=cache, form="absorbed")
    second = forward(model, ids[:, 13:], cache=cache, form="absorbed")
    assert close(torch.cat((first, second), 1), forward(model, ids))


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_a_batch_equals_its_rows_alone(
    tokens: int, tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(rope_scaling=YARN)
    model, ids = tiny_model(config), ids_of(config, 4, tokens)
    together = forward(model, ids)
    alone = torch.cat([forward(model, row[None]) for row in ids])
    assert close(together, alone)


def test_no_token_sees_a_later_one(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    model, ids = tiny_model(config), ids_of(config, 1, 20)
    other = ids.clone()
    other[0, 12:] = (other[0, 12:] + 1) % config.vocab_size
    first, second = forward(model, ids), forward(model, other)
    assert close(first[:, :12], second[:, :12])
    assert not close(first[:, 12:], second[:, 12:], 1e-2)


def test_the_selection_bias_chooses_and_does_not_weigh(
    tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(num_hidden_layers=2)
    model, ids = tiny_model(config), ids_of(config, 1, 10)
    seen: dict[str, Tensor] = {}

    def tap(site: str, value: Tensor) -> Tensor:
        seen[site.removeprefix("layers.1.mlp.router.")] = value
        return value

    with torch.inference_mode():
        with model.store.dense(1, "mlp.gate") as w:
            w.e_score_correction_bias[3] = 10.0
        model(ids, model.step(10, cache=None, tap=tap))
    assert (seen["experts"][..., 0] == 3).all()
    scores = seen["scores"].gather(-1, seen["experts"])
    expected = scores / scores.sum(-1, keepdim=True) * config.routed_scaling_factor
    torch.testing.assert_close(seen["weights"], expected)


def test_experts_outside_the_best_groups_are_never_chosen(
    tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(n_group=4, topk_group=2)
    model, ids = tiny_model(config), ids_of(config, 2, 50)

    def tap(site: str, value: Tensor) -> Tensor:
        if site.endswith("router.experts"):
            groups = (value // 4).unflatten(-1, (-1,))
            assert max(len(set(row)) for row in groups.flatten(0, 1).tolist()) <= 2
        if site.endswith("router.choice"):
            assert (value.isinf().sum(-1) == 8).all()
        return value

    with torch.inference_mode():
        model(ids, model.step(50, cache=None, tap=tap))


def test_mixing_weights_sum_to_the_scaling_factor(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    model, ids = tiny_model(config), ids_of(config, 2, 9)
    sums = []

    def tap(site: str, value: Tensor) -> Tensor:
        if site.endswith("router.weights"):
            sums.append(value.sum(-1))
        return value

    with torch.inference_mode():
        model(ids, model.step(9, cache=None, tap=tap))
    assert len(sums) == 2
    for each in sums:
        torch.testing.assert_close(each, torch.full_like(each, config.routed_scaling_factor))


def test_an_edited_latent_is_the_one_remembered(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    model, ids = tiny_model(config), ids_of(config, 1, 8)
    tap = edit("layers.1.self_attn.latent", config, torch.zeros_like)
    whole = LatentCache(config)
    with torch.inference_mode():
        model(ids, model.step(8, cache=whole, tap=tap))
        edited = model(ids[:, :1], model.step(1, cache=whole, tap=untouched))
    plain = LatentCache(config)
    forward(model, ids, cache=plain)
    assert not close(edited, forward(model, ids[:, :1], cache=plain), 1e-3)


@pytest.mark.parametrize("changes", SHAPES)
def test_bfloat16_runs_and_stays_near_float32(
    changes: dict[str, Any], tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(**changes)
    ids = ids_of(config, 2, 30)
    exact = forward(tiny_model(config), ids)
    rounded = forward(tiny_model(config, dtype=torch.bfloat16), ids)
    assert rounded.dtype == torch.bfloat16
    likeness = torch.nn.functional.cosine_similarity(exact, rounded.float(), dim=-1)
    # A token whose experts flip differs more, so the promise is about the middle of all tokens.
    assert float(likeness.median()) > 0.99


def test_a_cache_of_bfloat16_decodes(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    model = tiny_model(config, dtype=torch.bfloat16)
    cache = LatentCache(config)
    ids = ids_of(config, 1, 12)
    forward(model, ids, cache=cache)
    assert forward(model, ids[:, :1], cache=cache).isfinite().all()
    assert cache.nbytes() == 13 * 3 * (32 + 8) * 2


def test_norm_takes_its_mean_in_float32() -> None:
    x = torch.full((1, 4096), 300.0, dtype=torch.bfloat16)
    x[0, 0] = 3.0
    normed = RMSNorm(4096, 1e-6)(x, torch.ones(4096, dtype=torch.bfloat16))
    assert normed.dtype == torch.bfloat16
    exact = x.double() / x.double().square().mean().sqrt()
    torch.testing.assert_close(normed.double(), exact, rtol=2**-8, atol=0)
