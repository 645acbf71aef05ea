"""Keys, shapes and dtypes of checkpoints."""

from dataclasses import replace

import pytest

from k2lab.spec.config import K2_NANO, K2_THINKING
from k2lab.spec.keys import TensorSpec, ignorable, layer_tensors, shard_name, shard_of, tensors


@pytest.fixture(scope="module")
def thinking() -> dict[str, TensorSpec]:
    return {spec.key: spec for spec in tensors(K2_THINKING)}


def test_k2_thinking_has_208215_tensors(thinking: dict[str, TensorSpec]) -> None:
    assert len(thinking) == 208_215
    assert sum(spec.part == "routed" for spec in thinking.values()) == 207_360
    assert len(list(tensors(K2_THINKING))) == len(thinking)


@pytest.mark.parametrize(
    ("key", "shape", "dtype"),
    [
        ("model.embed_tokens.weight", (163840, 7168), "BF16"),
        ("lm_head.weight", (163840, 7168), "BF16"),
        ("model.norm.weight", (7168,), "BF16"),
        ("model.layers.60.input_layernorm.weight", (7168,), "BF16"),
        ("model.layers.0.self_attn.q_a_proj.weight", (1536, 7168), "BF16"),
        ("model.layers.0.self_attn.q_a_layernorm.weight", (1536,), "BF16"),
        ("model.layers.0.self_attn.q_b_proj.weight", (12288, 1536), "BF16"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), "BF16"),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", (512,), "BF16"),
        ("model.layers.0.self_attn.kv_b_proj.weight", (16384, 512), "BF16"),
        ("model.layers.0.self_attn.o_proj.weight", (7168, 8192), "BF16"),
        ("model.layers.0.mlp.gate_proj.weight", (18432, 7168), "BF16"),
        ("model.layers.0.mlp.down_proj.weight", (7168, 18432), "BF16"),
        ("model.layers.1.mlp.gate.weight", (384, 7168), "BF16"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", (384,), "F32"),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", (2048, 7168), "BF16"),
        ("model.layers.1.mlp.experts.383.gate_proj.weight_packed", (2048, 896), "I32"),
        ("model.layers.1.mlp.experts.383.gate_proj.weight_scale", (2048, 224), "BF16"),
        ("model.layers.1.mlp.experts.383.gate_proj.weight_shape", (2,), "I32"),
        ("model.layers.60.mlp.experts.0.down_proj.weight_packed", (7168, 256), "I32"),
        ("model.layers.60.mlp.experts.0.down_proj.weight_scale", (7168, 64), "BF16"),
    ],
)
def test_tensors_of_k2_thinking(
    key: str, shape: tuple[int, ...], dtype: str, thinking: dict[str, TensorSpec]
) -> None:
    assert (thinking[key].shape, thinking[key].dtype) == (shape, dtype)


def test_shards_of_k2_thinking_have_their_published_sizes(
    thinking: dict[str, TensorSpec],
) -> None:
    sizes: dict[str, int] = {}
    for spec in thinking.values():
        name = shard_of(spec.key, K2_THINKING)
        sizes[name] = sizes.get(name, 0) + spec.nbytes
    assert len(sizes) == 62
    assert round(sizes["model-00001-of-000062.safetensors"] / 1e6) == 995
    assert round(sizes["model-00002-of-000062.safetensors"] / 1e7) == 981
    assert round(sizes["model-00062-of-000062.safetensors"] / 1e7) == 470


def test_without_quantisation_experts_are_plain() -> None:
    config = replace(K2_NANO, quantization_config=None)
    keys = {spec.key: spec for spec in tensors(config)}
    assert keys["model.layers.1.mlp.experts.3.up_proj.weight"].shape == (32, 192)
    assert not [key for key in keys if "weight_packed" in key]


def test_without_query_latent_there_is_one_projection() -> None:
    keys = {spec.key for spec in layer_tensors(replace(K2_NANO, q_lora_rank=None), 0)}
    assert "model.layers.0.self_attn.q_proj.weight" in keys
    assert not [key for key in keys if ".q_a_" in key or ".q_b_" in key]


def test_shared_experts_are_one_wider_expert() -> None:
    config = replace(K2_NANO, n_shared_experts=2)
    keys = {spec.key: spec.shape for spec in layer_tensors(config, 1)}
    assert keys["model.layers.1.mlp.shared_experts.gate_proj.weight"] == (64, 192)


def test_what_may_be_ignored() -> None:
    stale = "model.layers.3.self_attn.rotary_emb.inv_freq"
    assert ignorable(stale, K2_NANO)
    assert not ignorable("model.layers.6.eh_proj.weight", K2_NANO)
    deeper = replace(K2_NANO, num_nextn_predict_layers=1)
    assert ignorable("model.layers.6.eh_proj.weight", deeper)
    assert not ignorable("model.layers.7.eh_proj.weight", deeper)
    assert not ignorable("model.layers.5.eh_proj.weight", deeper)


def test_shard_names() -> None:
    assert shard_name(7, 62) == "model-00007-of-000062.safetensors"


def test_dtypes_that_change_no_number_are_accepted() -> None:
    shape = TensorSpec("x.weight_shape", (2,), "I32", "routed")
    assert shape.dtypes == ("I32", "I64")
    assert TensorSpec("x.weight", (2,), "BF16", "head").dtypes == ("BF16",)
