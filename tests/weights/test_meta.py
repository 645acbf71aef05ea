"""The store of shapes: counts, bytes asked, and a forward of the whole network."""

import time
from dataclasses import replace

import pytest
import torch

from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config
from k2lab.spec.costs import bytes_on_disk, cache_bytes_per_token, parameters
from k2lab.spec.sites import describe, expand
from k2lab.weights.meta import Meta

NO_QUERY_LATENT = replace(K2_NANO, q_lora_rank=None)
PLAIN = replace(K2_NANO, quantization_config=None)
GROUPED = replace(K2_NANO, n_group=8, topk_group=4, n_shared_experts=2, first_k_dense_replace=3)
CONFIGS = [K2_NANO, NO_QUERY_LATENT, PLAIN, GROUPED]


def watch(site: str, value: torch.Tensor) -> torch.Tensor:
    return value


def test_all_of_k2_thinking_is_built_in_seconds_with_its_exact_counts() -> None:
    start = time.perf_counter()
    store = Meta(K2_THINKING)
    assert time.perf_counter() - start < 20  # room for shared cores
    assert store.parameters == 1_026_408_232_448
    assert store.nbytes == 594_205_904_896


@pytest.mark.parametrize("config", CONFIGS)
def test_counts_equal_the_closed_forms(config: K2Config) -> None:
    store = Meta(config)
    assert store.parameters == parameters(config).total
    assert store.nbytes == bytes_on_disk(config)


@pytest.mark.parametrize("config", [*CONFIGS, K2_THINKING])
def test_a_forward_gives_logits_of_the_right_shape(config: K2Config) -> None:
    model, cache = K2(config, Meta(config)), LatentCache(config)
    for tokens in (5, 1):  # a prompt, expanded; then one token, absorbed
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        logits = model(ids, model.step(tokens, cache=cache, tap=watch))
        assert logits.shape == (1, tokens, config.vocab_size)
        assert logits.device.type == "meta"
    item = cache.nbytes() // cache.length
    assert item == cache_bytes_per_token(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_network_taps_the_sites_of_the_table_in_its_order_with_its_axes(
    config: K2Config,
) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def tap(site: str, value: torch.Tensor) -> torch.Tensor:
        seen.append((site, tuple(value.shape)))
        return value

    model = K2(config, Meta(config))
    batch, tokens = 2, 7
    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    model(ids, model.step(tokens, cache=None, tap=tap))
    assert tuple(name for name, _ in seen) == expand(config)
    sizes = {
        "token": tokens,
        "source": tokens,
        "head": config.num_attention_heads,
        "hidden": config.hidden_size,
        "nope": config.qk_nope_head_dim,
        "rope": config.qk_rope_head_dim,
        "latent": config.kv_lora_rank,
        "value": config.v_head_dim,
        "expert": config.n_routed_experts,
        "slot": config.num_experts_per_tok,
        "vocab": config.vocab_size,
    }
    for name, shape in seen:
        assert shape == (batch, *(sizes[axis] for axis in describe(name).axes)), name


def test_bytes_asked_for_one_token_are_those_of_the_active_weights() -> None:
    store = Meta(K2_THINKING)
    model = K2(K2_THINKING, store)
    before = dict(store.ledger().bytes_moved)
    ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
    model(ids, model.step(1, cache=None, tap=watch))
    asked = store.ledger().bytes_moved
    assert asked["mlp.experts"] == 60 * 8 * 24_772_608
    assert asked["lm_head"] == 163840 * 7168 * 2
    assert asked["self_attn"] == 61 * (101_122_048 + 1536 + 512) * 2
    assert before.get("mlp.experts", 0) == 0
    assert store.ledger().misses == 60 * 8


def test_a_long_prompt_asks_for_each_expert_once_per_layer() -> None:
    store = Meta(K2_NANO)
    model = K2(K2_NANO, store)
    ids = torch.zeros(1, 1000, dtype=torch.long, device="meta")
    model(ids, model.step(1000, cache=None, tap=watch))
    experts = K2_NANO.n_routed_experts * len(K2_NANO.moe_layers)
    one = 3 * 192 * 32 // 2 + 3 * 192 * 32 // 32 * 2
    assert store.ledger().bytes_moved["mlp.experts"] == experts * one


def test_every_dense_tensor_is_lent_under_its_checkpoint_name() -> None:
    from k2lab.spec.keys import tensors
    from k2lab.weights.store import place

    store = Meta(K2_NANO)
    for spec in tensors(K2_NANO):
        if spec.part == "routed":
            continue
        layer, part, name = place(spec.key)
        with store.dense(layer, part) as weights:
            assert tuple(getattr(weights, name.removesuffix(".weight")).shape) == spec.shape
