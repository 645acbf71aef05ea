"""The tensors of a checkpoint: their keys, shapes and dtypes, as the config implies them.

What it is not: no file is opened; `tensors/shards.py` reads and compares.
Source: the published safetensors indices of Kimi K2 Thinking (INT4), of its bfloat16 relatives, and
the count of numbers in Kimi K2 Instruct (FP8).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from k2lab.spec.config import DTYPES, Fp8, K2Config

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes of one element of each safetensors dtype."""

IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
"""Patterns of keys that some checkpoints carry and that no code reads."""

Part = Literal["embedding", "head", "norm", "attention", "dense", "router", "shared", "routed"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint; dtype as in a safetensors header."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    part: Part

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that it may have in a file without changing the numbers that are computed."""
        if self.key.endswith(".weight_shape"):
            return ("I32", "I64")  # the published files and the library's own
        if self.key.endswith(".e_score_correction_bias"):
            return ("F32", "BF16")  # widened to float32 before use, either way
        return (self.dtype,)


def tensors(config: K2Config) -> Iterator[TensorSpec]:
    """Every tensor of the checkpoint: embedding, the layers from 0 on, last norm, head."""
    plain, width = DTYPES[config.dtype], config.hidden_size
    table = (config.vocab_size, width)
    yield TensorSpec("model.embed_tokens.weight", table, plain, "embedding")
    for layer in range(config.num_hidden_layers):
        yield from layer_tensors(config, layer)
    yield TensorSpec("model.norm.weight", (width,), plain, "norm")
    yield TensorSpec("lm_head.weight", table, plain, "head")


def layer_tensors(config: K2Config, layer: int) -> Iterator[TensorSpec]:
    """Every tensor of one layer."""
    base, plain, width = f"model.layers.{layer}", DTYPES[config.dtype], config.hidden_size
    yield TensorSpec(f"{base}.input_layernorm.weight", (width,), plain, "norm")
    yield from _attention(config, f"{base}.self_attn")
    yield TensorSpec(f"{base}.post_attention_layernorm.weight", (width,), plain, "norm")
    if not config.is_moe(layer):
        for name, shape in _projections(width, config.intermediate_size):
            yield from _matrix(config, f"{base}.mlp.{name}", shape, "dense")
        return
    experts, inner = config.n_routed_experts, config.moe_intermediate_size
    gate = f"{base}.mlp.gate"
    yield TensorSpec(f"{gate}.weight", (experts, width), plain, "router")
    yield TensorSpec(f"{gate}.e_score_correction_bias", (experts,), "F32", "router")
    for name, shape in _projections(width, inner * config.n_shared_experts):
        yield from _matrix(config, f"{base}.mlp.shared_experts.{name}", shape, "shared")
    leaves = expert_leaves(config)  # the same for every expert
    for expert in range(experts):
        for leaf, size, dtype in leaves:
            yield TensorSpec(f"{base}.mlp.experts.{expert}.{leaf}", size, dtype, "routed")


def expert_leaves(config: K2Config) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of every tensor of one routed expert, such as `up_proj.weight_scale`."""
    return [
        (f"{name}.{leaf}", size, dtype)
        for name, shape in _projections(config.hidden_size, config.moe_intermediate_size)
        for leaf, size, dtype in _leaves(config, shape)
    ]


def ignorable(key: str, config: K2Config) -> bool:
    """Whether a checkpoint may carry this key beyond `tensors(config)` and nothing is lost.

    True for stale rotary frequencies, and for the layers for multi-token prediction that follow
    the last layer in a checkpoint with `num_nextn_predict_layers`; they are not run.
    """
    if any(re.fullmatch(pattern, key) for pattern in IGNORED):
        return True
    found = re.match(r"model\.layers\.(\d+)\.", key)
    first = config.num_hidden_layers
    last = first + config.num_nextn_predict_layers
    return found is not None and first <= int(found[1]) < last


def shard_name(number: int, count: int) -> str:
    """File name of a shard, counted from 1, in Kimi K2's own way (five digits, then six)."""
    return f"model-{number:05d}-of-{count:06d}.safetensors"


def shard_of(key: str, config: K2Config) -> str:
    """The shard of a key as Kimi K2 Thinking lays them out: one per layer, then all the rest."""
    found = re.match(r"model\.layers\.(\d+)\.", key)
    count = config.num_hidden_layers + 1
    return shard_name(int(found[1]) + 1 if found else count, count)


def _attention(config: K2Config, base: str) -> Iterator[TensorSpec]:
    heads, width, plain = config.num_attention_heads, config.hidden_size, DTYPES[config.dtype]
    queries, rank, latent = heads * config.qk_head_dim, config.q_lora_rank, config.kv_lora_rank
    expanded = heads * (config.qk_nope_head_dim + config.v_head_dim)
    shapes: dict[str, tuple[int, ...]] = {}
    if rank is None:
        shapes["q_proj"] = (queries, width)
    else:
        shapes["q_a_proj"] = (rank, width)
        shapes["q_a_layernorm"] = (rank,)
        shapes["q_b_proj"] = (queries, rank)
    shapes["kv_a_proj_with_mqa"] = (latent + config.qk_rope_head_dim, width)
    shapes["kv_a_layernorm"] = (latent,)
    shapes["kv_b_proj"] = (expanded, latent)
    shapes["o_proj"] = (width, heads * config.v_head_dim)
    for name, shape in shapes.items():
        if name.endswith("layernorm"):
            yield TensorSpec(f"{base}.{name}.weight", shape, plain, "norm")
        else:
            yield from _matrix(config, f"{base}.{name}", shape, "attention")


def _matrix(
    config: K2Config, name: str, shape: tuple[int, ...], part: Part
) -> Iterator[TensorSpec]:
    """A dense matrix, which FP8 covers and INT4 does not."""
    leaves = [("weight", shape, DTYPES[config.dtype])]
    if isinstance(config.quantization_config, Fp8):
        leaves = _fp8_leaves(shape, config.quantization_config)
    for leaf, size, dtype in leaves:
        yield TensorSpec(f"{name}.{leaf}", size, dtype, part)


def _fp8_leaves(shape: tuple[int, ...], fp8: Fp8) -> list[tuple[str, tuple[int, ...], str]]:
    blocks = tuple(-(-size // block) for size, block in zip(shape, fp8.block, strict=True))
    return [("weight", shape, "F8_E4M3"), ("weight_scale_inv", blocks, "F32")]


def _projections(width: int, inner: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    """The three matrices of a SwiGLU, [out, in] each."""
    return (
        ("gate_proj", (inner, width)),
        ("up_proj", (inner, width)),
        ("down_proj", (width, inner)),
    )


def _leaves(config: K2Config, shape: tuple[int, int]) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of the tensors that store one expert matrix [out, in]."""
    plain, quantization = DTYPES[config.dtype], config.quantization_config
    if quantization is None:
        return [("weight", shape, plain)]
    if isinstance(quantization, Fp8):
        return _fp8_leaves(shape, quantization)
    rows, columns = shape
    return [
        ("weight_packed", (rows, columns * quantization.num_bits // 32), "I32"),
        ("weight_scale", (rows, columns // quantization.group_size), plain),
        ("weight_shape", (2,), "I32"),
    ]
