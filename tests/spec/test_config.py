"""K2Config: what is read, what is refused, what is warned about, what round trips."""

import json
import math
import warnings
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2lab.errors import ConfigError
from k2lab.spec.config import (
    K2_NANO,
    K2_THINKING,
    LATENT_NORM_EPS,
    ConfigWarning,
    Fp8,
    K2Config,
    RopeScaling,
)

ASSET = Path(__file__).parents[2] / "assets" / "k2-thinking" / "config.json"

YARN = {
    "type": "yarn",
    "factor": 64.0,
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}

MOONLIGHT: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11264,
    "kv_lora_rank": 512,
    "max_position_embeddings": 8192,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}

ESSENTIAL = sorted(
    set(K2_NANO.to_json())
    - {"architectures", "dtype", "model_type", "num_nextn_predict_layers", "num_key_value_heads"}
    - {"attention_dropout", "aux_loss_alpha", "seq_aux", "initializer_range", "pretraining_tp"}
    - {"ep_size", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "rope_scaling"}
    - {"quantization_config", "scoring_func", "topk_method", "moe_layer_freq"}
)


@pytest.fixture
def thinking() -> dict[str, Any]:
    return K2_THINKING.to_json()


def refused(values: dict[str, Any]) -> str:
    """The error's text, after checking that it has its three parts as sentences."""
    with pytest.raises(ConfigError) as caught:
        K2Config.from_json(values)
    error = caught.value
    assert error.found.endswith(".") and error.expected.endswith(".") and error.mend.endswith(".")
    return str(error)


def test_the_shipped_file_is_k2_thinking() -> None:
    assert K2Config.from_json(ASSET) == K2_THINKING
    assert K2Config.from_json(ASSET.parent) == K2_THINKING


def test_the_shipped_file_holds_nothing_else() -> None:
    values = json.loads(ASSET.read_text("utf-8"))
    del values["auto_map"]
    assert values == K2_THINKING.to_json()
    assert ASSET.read_text("utf-8").startswith("{\n  ")  # two spaces, as published


@pytest.mark.parametrize("config", [K2_THINKING, K2_NANO])
def test_to_json_round_trips_through_text(config: K2Config) -> None:
    assert K2Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_facts_of_k2_thinking() -> None:
    assert K2_THINKING.qk_head_dim == 192
    assert K2_THINKING.moe_layers == tuple(range(1, 61))
    assert not K2_THINKING.is_moe(0) and K2_THINKING.is_moe(1) and K2_THINKING.is_moe(60)
    assert K2_THINKING.stop_ids == (163586,)
    assert K2_THINKING.rope_scaling is not None
    assert K2_THINKING.rope_scaling.beta_fast == 1.0
    assert LATENT_NORM_EPS == 1e-6 != K2_THINKING.rms_norm_eps


def test_facts_of_k2_nano() -> None:
    assert K2_NANO.moe_layers == (1, 2, 3, 4, 5)
    assert (K2_NANO.bos_token_id, K2_NANO.stop_ids, K2_NANO.pad_token_id) == (1792, (1794,), 2047)
    assert K2_NANO.rope_scaling is not None and K2_NANO.rope_theta == 10000.0
    stretched = K2_NANO.rope_scaling.factor * K2_NANO.rope_scaling.original_max_position_embeddings
    assert stretched == K2_NANO.max_position_embeddings


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        K2_NANO.hidden_size = 1  # type: ignore[misc]


def test_moonlight_reads_without_warning() -> None:
    config = K2Config.from_json(MOONLIGHT)
    assert config.q_lora_rank is None and config.rope_scaling is None
    assert config.n_shared_experts == 2 and config.quantization_config is None
    assert config.dtype == "bfloat16"
    assert K2Config.from_json(config.to_json()) == config


def test_moonlight_reads_without_a_rope_scaling_key() -> None:
    values = {key: value for key, value in MOONLIGHT.items() if key != "rope_scaling"}
    assert K2Config.from_json(values) == K2Config.from_json(MOONLIGHT)


def test_deepseek_v3_shape_reads_in_bfloat16() -> None:
    values = MOONLIGHT | {
        "n_group": 8,
        "topk_group": 4,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "rope_scaling": YARN | {"factor": 40, "beta_fast": 32},
    }
    config = K2Config.from_json(values)
    assert config.num_nextn_predict_layers == 1
    assert config.rope_scaling is not None and config.rope_scaling.beta_fast == 32.0


@pytest.mark.parametrize("use_diff", [True, False])
@pytest.mark.parametrize("scaling", [None, YARN])
def test_what_transformers_writes_reads_without_warning(
    use_diff: bool, scaling: dict[str, Any] | None
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
    written = transformers.DeepseekV3Config(
        rope_theta=50000.0, rope_scaling=scaling, eos_token_id=[1, 2]
    ).to_json_string(use_diff=use_diff)
    config = K2Config.from_json(json.loads(written))
    assert config.scoring_func == "sigmoid" and config.topk_method == "noaux_tc"
    assert config.moe_layer_freq == 1 and config.seq_aux is None
    assert config.eos_token_id == (1, 2) == config.stop_ids
    if scaling is None:
        assert config.rope_scaling is None
    else:
        assert config.rope_scaling == K2_THINKING.rope_scaling and config.rope_theta == 50000.0
    assert K2Config.from_json(config.to_json()) == config


def test_what_is_written_transformers_reads(thinking: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is a test extra")
    read = transformers.DeepseekV3Config.from_dict(thinking | {"model_type": "deepseek_v3"})
    assert read.rope_parameters["rope_theta"] == 50000.0
    assert read.rope_parameters["factor"] == 64.0
    assert read.n_routed_experts == 384 and read.q_lora_rank == 1536
    again = K2Config.from_json(json.loads(read.to_json_string()))
    assert replace(again, model_type="kimi_k2").rope_scaling == K2_THINKING.rope_scaling


@pytest.mark.parametrize("key", ESSENTIAL)
def test_a_missing_essential_key_is_named_with_its_mend(key: str, thinking: dict[str, Any]) -> None:
    del thinking[key]
    assert f"'{key}' is missing" in refused(thinking)


@pytest.mark.parametrize("key", ["scoring_func", "topk_method", "moe_layer_freq"])
def test_routing_keys_may_lack_only_where_the_model_type_implies_them(
    key: str, thinking: dict[str, Any]
) -> None:
    del thinking[key]
    assert K2Config.from_json(thinking) == K2_THINKING
    del thinking["model_type"]
    assert f"'{key}' is missing" in refused(thinking)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("attention_bias", True),
        ("moe_layer_freq", 2),
        ("tie_word_embeddings", True),
        ("num_key_value_heads", 8),
        ("rope_interleave", False),
        ("model_type", "deepseek_v2"),
        ("model_type", "deepseek_v32"),
        ("dtype", "float8_e4m3fn"),
        ("qk_head_dim", 128),
        ("num_nextn_predict_layers", -1),
        ("num_experts_per_tok", 385),
        ("n_routed_experts", 10**7),
        ("num_experts_per_tok", 0),
        ("n_group", 7),
        ("n_group", 384),
        ("topk_group", 2),
        ("first_k_dense_replace", 62),
        ("first_k_dense_replace", -1),
        ("qk_rope_head_dim", 63),
        ("q_lora_rank", 0),
        ("n_shared_experts", 0),
        ("rms_norm_eps", 0.0),
        ("rope_theta", 1),
        ("moe_intermediate_size", 2040),
        ("eos_token_id", 163840),
        ("eos_token_id", [163586, -1]),
        ("text_config", {}),
        # wrong types
        ("hidden_size", 7168.0),
        ("hidden_size", True),
        ("hidden_size", "7168"),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", math.nan),
        ("rope_theta", math.inf),
        ("rope_theta", 10**400),
        ("norm_topk_prob", 1),
        ("hidden_act", None),
        ("rope_scaling", "yarn"),
        ("quantization_config", []),
        ("eos_token_id", ["x"]),
        ("seq_aux", "yes"),
    ],
)
def test_a_value_that_would_change_the_computation_is_refused(
    key: str, value: object, thinking: dict[str, Any]
) -> None:
    assert key in refused(thinking | {key: value})


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_nextn_predict_layers"])
def test_layers_without_end_are_refused_at_once(key: str, thinking: dict[str, Any]) -> None:
    assert "n_routed_experts" in refused(thinking | {key: 10**12})


def test_groups_that_keep_too_few_experts_are_refused(thinking: dict[str, Any]) -> None:
    assert "num_experts_per_tok" in refused(thinking | {"n_group": 64})  # 6 experts per group


# rotary positions


@pytest.mark.parametrize("key", sorted(set(YARN) - {"type"}))
def test_a_missing_yarn_key_is_refused(key: str, thinking: dict[str, Any]) -> None:
    scaling = {name: value for name, value in YARN.items() if name != key}
    assert key in refused(thinking | {"rope_scaling": scaling})


@pytest.mark.parametrize(
    "change",
    [
        {"type": "linear"},
        {"type": "dynamic"},
        {"rope_type": "llama3"},
        {"rope_type": "yarn", "type": "linear"},
        {"attention_factor": 1.2},
        {"truncate": False},
        {"factor": 0.5},
        {"beta_slow": 0.0},
        {"beta_fast": 0.5},
        {"original_max_position_embeddings": 0},
        {"mscale": 0.0},
        {"mscale": 0.7, "mscale_all_dim": 0.0},
        {"mscale_all_dim": -1.0},
    ],
)
def test_other_rotary_kinds_are_refused(change: dict[str, Any], thinking: dict[str, Any]) -> None:
    refused(thinking | {"rope_scaling": YARN | change})


def test_unequal_mscales_are_read(thinking: dict[str, Any]) -> None:
    config = K2Config.from_json(thinking | {"rope_scaling": YARN | {"mscale": 0.707}})
    assert isinstance(config.rope_scaling, RopeScaling) and config.rope_scaling.mscale == 0.707


def test_rope_parameters_mean_the_same_as_rope_scaling(thinking: dict[str, Any]) -> None:
    thinking["rope_parameters"] = YARN | {"rope_type": "yarn", "rope_theta": 50000.0}
    del thinking["rope_scaling"], thinking["rope_theta"]
    assert K2Config.from_json(thinking) == K2_THINKING


def test_rotary_blocks_that_differ_are_refused(thinking: dict[str, Any]) -> None:
    thinking["rope_parameters"] = YARN | {"factor": 32.0}
    assert "differ" in refused(thinking)


def test_two_values_of_rope_theta_are_refused(thinking: dict[str, Any]) -> None:
    thinking["rope_scaling"] = YARN | {"rope_theta": 10000.0}
    assert "rope_theta" in refused(thinking)


def test_without_any_rope_theta_the_config_is_refused(thinking: dict[str, Any]) -> None:
    del thinking["rope_theta"]
    assert "'rope_theta' is missing" in refused(thinking)


# quantisation


def changed(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(values))
    *parents, last = path.split(".")
    inner = copy["quantization_config"]
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return copy


WEIGHTS = "config_groups.group_0.weights"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("quant_method", "awq"),
        ("quant_method", "gptq"),
        ("quant_method", None),
        ("format", "int-quantized"),
        ("format", "marlin-24"),
        ("quantization_status", "frozen"),
        ("kv_cache_scheme", {"num_bits": 8}),
        ("sparsity_config", {"format": "dense"}),
        ("transform_config", {"config_groups": {}}),
        ("config_groups", {}),
        ("config_groups", None),
        ("config_groups.group_1", {}),
        ("config_groups.group_0.input_activations", {"num_bits": 8}),
        ("config_groups.group_0.output_activations", {"num_bits": 8}),
        ("config_groups.group_0.format", "nvfp4-pack-quantized"),
        ("config_groups.group_0.weights", None),
        ("config_groups.group_0.targets", []),
        ("config_groups.group_0.targets", ["Embedding"]),
        ("config_groups.group_0.targets", "Linear"),
        (f"{WEIGHTS}.num_bits", 8),
        (f"{WEIGHTS}.type", "float"),
        (f"{WEIGHTS}.symmetric", False),
        (f"{WEIGHTS}.symmetric", 1),
        (f"{WEIGHTS}.strategy", "channel"),
        (f"{WEIGHTS}.group_size", 128),
        (f"{WEIGHTS}.group_size", 32.0),
        (f"{WEIGHTS}.dynamic", True),
        (f"{WEIGHTS}.actorder", "group"),
        (f"{WEIGHTS}.block_structure", "8x1"),
        ("ignore", []),
        ("ignore", ["lm_head", "re:.*self_attn.*", "re:.*mlp.*"]),
        ("ignore", ["re:("]),
    ],
)
def test_other_quantisation_is_refused(path: str, value: object, thinking: dict[str, Any]) -> None:
    refused(changed(thinking, path, value))


@pytest.mark.parametrize("pattern", ["re:(.|.)*x", "re:.*.*.*.*.*x", "re:(.?){40}x"])
def test_a_pattern_that_would_be_tried_for_hours_is_refused(
    pattern: str, thinking: dict[str, Any]
) -> None:
    published = thinking["quantization_config"]["ignore"]
    assert "repeats too much" in refused(changed(thinking, "ignore", [*published, pattern]))


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def test_fp8_in_blocks_is_read_and_written(thinking: dict[str, Any]) -> None:
    published = FP8 | {"activation_scheme": "dynamic"}
    config = K2Config.from_json(thinking | {"quantization_config": published})
    assert config == replace(K2_THINKING, quantization_config=Fp8())
    assert config.to_json()["quantization_config"] == published
    assert K2Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"fmt": "e5m2"},
        {"weight_block_size": [64, 128]},
        {"weight_block_size": None},
        {"activation_scheme": "static"},
    ],
)
def test_other_fp8_is_refused(change: dict[str, Any], thinking: dict[str, Any]) -> None:
    assert next(iter(change)) in refused(thinking | {"quantization_config": FP8 | change})


def test_fields_that_newer_quantisers_write_are_read(thinking: dict[str, Any]) -> None:
    values = changed(thinking, "sparsity_config", {})
    values = changed(values, "version", "0.12.2")
    values = changed(values, "config_groups.group_0.format", None)
    values = changed(values, f"{WEIGHTS}.zp_dtype", None)
    assert K2Config.from_json(values) == K2_THINKING


def test_only_routed_experts_are_covered() -> None:
    quantization = K2_THINKING.quantization_config
    assert quantization is not None
    assert quantization.covers("model.layers.1.mlp.experts.383.down_proj")
    for name in (
        "lm_head",
        "model.layers.0.mlp.gate_proj",
        "model.layers.5.self_attn.kv_b_proj",
        "model.layers.5.mlp.shared_experts.up_proj",
    ):
        assert not quantization.covers(name)


def test_targets_may_be_patterns(thinking: dict[str, Any]) -> None:
    values = changed(thinking, "config_groups.group_0.targets", [r"re:.*mlp\.experts\.\d+\..*"])
    quantization = K2Config.from_json(changed(values, "ignore", [])).quantization_config
    assert quantization is not None and not quantization.covers("lm_head")


# unknown and bookkeeping keys


def test_unknown_keys_give_one_warning_that_names_them(thinking: dict[str, Any]) -> None:
    with pytest.warns(ConfigWarning) as caught:
        config = K2Config.from_json(thinking | {"window": 3, "gate_bias": True})
    assert len(caught) == 1
    assert "'gate_bias', 'window'" in str(caught[0].message)
    assert config == K2_THINKING


@pytest.mark.parametrize("block", ["rope_scaling", "quantization_config"])
def test_unknown_keys_inside_a_block_are_warned_about(block: str, thinking: dict[str, Any]) -> None:
    thinking[block] = thinking[block] | {"twist": 1}
    with pytest.warns(ConfigWarning, match="twist"):
        assert K2Config.from_json(thinking) == K2_THINKING


def test_bookkeeping_keys_are_silent(thinking: dict[str, Any]) -> None:
    extra = {"_name_or_path": "x", "return_dict": True, "transformers_version": "4.57.1"}
    extra |= {"torch_dtype": "bfloat16", "id2label": {"0": "LABEL_0"}, "architectures": ["X"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert K2Config.from_json(thinking | extra) == K2_THINKING


# files


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        K2Config.from_json(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000],
)
def test_a_damaged_file_is_a_config_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        K2Config.from_json(tmp_path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    key=st.sampled_from(sorted(K2_THINKING.to_json())),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
)
def test_any_json_value_is_read_or_refused_and_nothing_else(key: str, value: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            config = K2Config.from_json(K2_THINKING.to_json() | {key: value})
        except ConfigError:
            return
        assert K2Config.from_json(config.to_json()) == config
