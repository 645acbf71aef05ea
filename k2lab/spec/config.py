"""The shape of the network: `K2Config`, read from and written to a Hugging Face `config.json`.

What it is not: nothing here computes; rotary frequencies stand in `tensors/rope.py`, sizes in
`spec/costs.py`, tensor names in `spec/keys.py`.
Source: the published config.json of Kimi K2 Thinking and its relatives (Moonlight, DeepSeek-V3).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from k2lab.errors import ConfigError
from k2lab.spec.fields import Fields, read_object, shown
from k2lab.spec.quantization import ConfigWarning, Fp8, Quantization

__all__ = [
    "K2_NANO",
    "K2_THINKING",
    "LATENT_NORM_EPS",
    "ConfigWarning",
    "Fp8",
    "K2Config",
    "Quantization",
    "RopeScaling",
]

LATENT_NORM_EPS = 1e-6
"""Epsilon of q_a_layernorm and kv_a_layernorm, whatever `rms_norm_eps` says: the published
modeling file builds these two norms with their default."""

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""Names of the unquantised dtypes in config.json and in safetensors headers."""

MODEL_TYPES = ("kimi_k2", "deepseek_v3")
"""Model types whose published code is this architecture."""

RESTORE = "Restore the value from the config.json that was published with the checkpoint."


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """YaRN: how rotary frequencies are stretched from the context of pre-training to more."""

    factor: float
    beta_fast: float  # turns within the original context above which a frequency is kept
    beta_slow: float  # turns below which it is divided by `factor`
    mscale: float
    mscale_all_dim: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require(self.factor >= 1, "factor", self.factor, "At least 1.")
        require(
            self.original_max_position_embeddings > 0,
            "original_max_position_embeddings",
            self.original_max_position_embeddings,
            "At least 1.",
        )
        require(self.beta_slow > 0, "beta_slow", self.beta_slow, "More than 0.")
        # Where the published implementations differ, neither is followed.
        agree = self.mscale > 0 and (self.mscale_all_dim > 0 or self.mscale == 1)
        require(agree, "mscale", self.mscale, "More than 0; 1 where mscale_all_dim is 0.")
        require(self.mscale_all_dim >= 0, "mscale_all_dim", self.mscale_all_dim, "At least 0.")
        fast, slow = self.beta_fast, self.beta_slow
        require(fast >= slow, "beta_fast", fast, f"At least beta_slow, {slow}.")

    def to_json(self) -> dict[str, Any]:
        """The `rope_scaling` block."""
        return {
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "factor": self.factor,
            "mscale": self.mscale,
            "mscale_all_dim": self.mscale_all_dim,
            "original_max_position_embeddings": self.original_max_position_embeddings,
            "type": "yarn",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class K2Config:
    """Every fact of a config.json that the network, its sizes or its training depend on."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    dtype: str  # of every unquantised weight; `torch_dtype` in older files

    # attention
    num_attention_heads: int
    num_key_value_heads: int
    q_lora_rank: int | None  # None: queries come from one projection `q_proj`
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: RopeScaling | None

    # feed-forward and experts
    intermediate_size: int
    first_k_dense_replace: int
    moe_layer_freq: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    scoring_func: str
    topk_method: str
    norm_topk_prob: bool
    routed_scaling_factor: float

    # multi-token prediction layers in the checkpoint; they are not run
    num_nextn_predict_layers: int

    # special tokens; None where the file names none
    bos_token_id: int | None
    eos_token_id: int | tuple[int, ...] | None
    pad_token_id: int | None

    quantization_config: Quantization | Fp8 | None

    # training and bookkeeping; None where the file has no such key
    attention_dropout: float | None
    aux_loss_alpha: float | None
    seq_aux: bool | None
    initializer_range: float | None
    pretraining_tp: int | None
    ep_size: int | None
    use_cache: bool | None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: the part without rotation and the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers whose feed-forward part is routed experts, rising."""
        return tuple(range(self.first_k_dense_replace, self.num_hidden_layers))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token ids that end a turn."""
        if isinstance(self.eos_token_id, int):
            return (self.eos_token_id,)
        return self.eos_token_id or ()

    def is_moe(self, layer: int) -> bool:
        """Whether the feed-forward part of this layer is routed experts."""
        return layer >= self.first_k_dense_replace

    @classmethod
    def from_json(cls, source: Path | Mapping[str, Any]) -> "K2Config":
        """The config in a file, in the folder that holds `config.json`, or in a parsed object."""
        from k2lab.spec.reading import read_config  # here, as reading builds a K2Config

        if isinstance(source, Mapping):
            return read_config(Fields(source, "config.json"))
        path = source / "config.json" if source.is_dir() else source
        return read_config(Fields(read_object(path), str(path)))

    def to_json(self) -> dict[str, Any]:
        """The object to write as config.json, keys sorted; `from_json` gives an equal config."""
        values: dict[str, Any] = {"architectures": ["DeepseekV3ForCausalLM"]}
        for name in K2Config.__slots__:
            value = getattr(self, name)
            if isinstance(value, RopeScaling | Quantization | Fp8):
                values[name] = value.to_json()
            elif value is not None or name in _NULLABLE:
                values[name] = list(value) if isinstance(value, tuple) else value
        return dict(sorted(values.items()))


_NULLABLE = {"q_lora_rank", "rope_scaling", "pad_token_id", "bos_token_id", "eos_token_id"}
"""Fields that are written as null; other fields without value are left out."""


def require(holds: object, key: str, value: object, expected: str) -> None:
    """Nothing; a ConfigError where `holds` is false."""
    if not holds:
        raise ConfigError(
            f"The config has {key} = {shown(value)}.", expected=expected, mend=RESTORE
        )


def _check(config: K2Config) -> None:
    """What the code supports, and what has to fit together."""
    supported = {
        "model_type": MODEL_TYPES,
        "hidden_act": ("silu",),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "moe_layer_freq": (1,),
        "attention_bias": (False,),
        "tie_word_embeddings": (False,),
        "num_key_value_heads": (config.num_attention_heads,),
        "dtype": tuple(DTYPES),
    }
    for key, choices in supported.items():
        names = " or ".join(str(choice) for choice in choices)
        require(getattr(config, key) in choices, key, getattr(config, key), f"{names}.")
    for key in _POSITIVE:
        require(getattr(config, key) > 0, key, getattr(config, key), "More than 0.")
    for key in ("first_k_dense_replace", "num_nextn_predict_layers"):
        require(getattr(config, key) >= 0, key, getattr(config, key), "At least 0.")
    rank, rope = config.q_lora_rank, config.qk_rope_head_dim
    require(rank is None or rank > 0, "q_lora_rank", rank, "null, or more than 0.")
    require(rope % 2 == 0, "qk_rope_head_dim", rope, "An even number: pairs are rotated.")
    require(config.rope_theta > 1, "rope_theta", config.rope_theta, "More than 1.")
    _check_experts(config)
    for key in ("bos_token_id", "pad_token_id", "eos_token_id"):
        value = getattr(config, key)
        for item in value if isinstance(value, tuple) else (value,):
            fits = item is None or 0 <= item < config.vocab_size
            require(fits, key, item, f"An id from 0 to {config.vocab_size - 1}.")


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "rms_norm_eps",
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
)


_MOST_EXPERTS = 2**20  # of all layers (K2: 23,040), as their names are gone through one by one


def _check_experts(config: K2Config) -> None:
    dense, layers = config.first_k_dense_replace, config.num_hidden_layers
    require(dense <= layers, "first_k_dense_replace", dense, f"At most the {layers} layers.")
    experts, groups = config.n_routed_experts, config.n_group
    most = _MOST_EXPERTS // (layers + config.num_nextn_predict_layers)
    require(experts <= most, "n_routed_experts", experts, f"At most {most} in {layers} layers.")
    require(experts % groups == 0, "n_group", groups, f"A divisor of the {experts} experts.")
    kept, size = config.topk_group, experts // groups
    require(kept <= groups, "topk_group", kept, f"At most n_group, {groups}.")
    # The two strongest scores of each group are summed, so a group needs two.
    require(groups == 1 or size >= 2, "n_group", groups, "Groups of at least two experts.")
    slots = config.num_experts_per_tok
    limit = kept * size
    require(
        slots <= limit, "num_experts_per_tok", slots, f"At most {limit} experts to choose from."
    )
    if not isinstance(quantization := config.quantization_config, Quantization):
        return
    for key in ("hidden_size", "moe_intermediate_size"):
        width, group = getattr(config, key), quantization.group_size
        require(width % group == 0, key, width, f"A multiple of the INT4 group size, {group}.")
    for module in _linear_modules(config):
        routed = ".mlp.experts." in module
        if quantization.covers(module) != routed:
            raise ConfigError(
                f"quantization_config makes {module} {'bfloat16' if routed else 'INT4'}.",
                expected="INT4 for every routed expert and for no other layer.",
                mend="Restore `targets` and `ignore` from the published config.json.",
            )


def _linear_modules(config: K2Config) -> Iterator[str]:
    """Names of linear layers; of each layer's routed experts the first and the last only."""
    queries = ("q_proj",) if config.q_lora_rank is None else ("q_a_proj", "q_b_proj")
    attention = (*queries, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    parts = ("gate_proj", "up_proj", "down_proj")
    yield "lm_head"
    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}"
        yield from (f"{base}.self_attn.{name}" for name in attention)
        last = config.n_routed_experts - 1
        moe = ("mlp.experts.0", f"mlp.experts.{last}", "mlp.shared_experts")
        owners = moe if config.is_moe(layer) else ("mlp",)
        yield from (f"{base}.{owner}.{part}" for owner in owners for part in parts)


_INT4 = Quantization(
    num_bits=4,
    group_size=32,
    targets=("Linear",),
    ignore=(
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ),
)

K2_THINKING = K2Config(
    model_type="kimi_k2",
    vocab_size=163840,
    hidden_size=7168,
    num_hidden_layers=61,
    rms_norm_eps=1e-5,
    hidden_act="silu",
    tie_word_embeddings=False,
    dtype="bfloat16",
    num_attention_heads=64,
    num_key_value_heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    attention_bias=False,
    max_position_embeddings=262144,
    rope_theta=50000.0,
    rope_scaling=RopeScaling(
        factor=64.0,
        beta_fast=1.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=4096,
    ),
    intermediate_size=18432,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    moe_intermediate_size=2048,
    n_routed_experts=384,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=1,
    topk_group=1,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    routed_scaling_factor=2.827,
    num_nextn_predict_layers=0,
    bos_token_id=163584,
    eos_token_id=163586,
    pad_token_id=163839,
    quantization_config=_INT4,
    attention_dropout=0.0,
    aux_loss_alpha=0.001,
    seq_aux=True,
    initializer_range=0.02,
    pretraining_tp=1,
    ep_size=1,
    use_cache=True,
)
"""Kimi K2 Thinking, as published."""

K2_NANO = replace(
    K2_THINKING,
    vocab_size=2048,
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    max_position_embeddings=32768,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(
        factor=8.0,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=4096,
    ),
    intermediate_size=576,
    moe_intermediate_size=32,
    n_routed_experts=64,
    bos_token_id=1792,
    eos_token_id=1794,
    pad_token_id=2047,
)
"""K2-nano, the small model of this package: the same network, specials in the last 256 ids."""
