"""Costs: the closed forms against the published figures and against the list of tensors."""

from dataclasses import replace

import pytest

from k2lab.spec import costs
from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config
from k2lab.spec.keys import tensors

MOONLIGHT = replace(
    K2_THINKING,
    hidden_size=2048,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    num_hidden_layers=27,
    num_attention_heads=16,
    num_key_value_heads=16,
    q_lora_rank=None,
    quantization_config=None,
)


def test_published_figures_of_k2_thinking() -> None:
    counts = costs.parameters(K2_THINKING)
    assert counts.total == 1_026_408_232_448
    assert counts.active == 32_861_500_928
    assert counts.routed == 1_014_686_023_680
    assert counts.embedding == counts.head == 1_174_405_120
    assert counts.attention == 61 * 101_122_048
    assert counts.dense == 396_361_728
    assert counts.router == 60 * (2_752_512 + 384)
    assert costs.expert_parameters(K2_THINKING) == 44_040_192
    assert costs.expert_bytes(K2_THINKING) == 24_772_608
    assert round(costs.bytes_on_disk(K2_THINKING) / 1e8) == 5942
    assert costs.cache_bytes_per_token(K2_THINKING) == 70_272
    assert costs.multi_head_bytes_per_token(K2_THINKING) == 64 * (192 + 128) * 2 * 61


@pytest.mark.parametrize(
    "config",
    [
        K2_THINKING,
        K2_NANO,
        MOONLIGHT,
        replace(K2_NANO, dtype="float32"),
        replace(K2_NANO, quantization_config=None, dtype="float32"),
        replace(K2_NANO, first_k_dense_replace=6),
        replace(K2_NANO, first_k_dense_replace=0),
    ],
)
def test_closed_forms_equal_the_sum_over_tensors(config: K2Config) -> None:
    counts, parts, total = costs.parameters(config), dict[str, int](), 0
    for spec in tensors(config):
        total += spec.nbytes
        size = 1
        for axis in spec.shape:
            size *= axis
        if spec.key.endswith(("weight_scale", "weight_shape")):
            continue
        if spec.key.endswith("weight_packed"):
            size *= 8
        parts[spec.part] = parts.get(spec.part, 0) + size
    assert total == costs.bytes_on_disk(config)
    assert sum(parts.values()) == counts.total
    for part in ("embedding", "head", "norm", "attention", "dense", "router", "shared", "routed"):
        assert getattr(counts, part) == parts.get(part, 0), part


def test_arithmetic_per_token_grows_with_the_context() -> None:
    base = costs.flops_per_token(K2_THINKING, 0)
    counts = costs.parameters(K2_THINKING)
    assert base == 2 * (counts.active - counts.embedding - counts.norm - 60 * 384)
    per_source = costs.flops_per_token(K2_THINKING, 1) - base
    assert per_source == 2 * 61 * 64 * (512 + 64 + 512)
    assert costs.flops_per_token(K2_THINKING, 1000) == base + 1000 * per_source
