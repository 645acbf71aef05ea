"""What a config costs: parameters, bytes, cache and arithmetic, in closed form.

What it is not: a planner; it knows no machine. All counts are exact.
Source: the shapes in `spec/keys.py`; for Kimi K2 Thinking 1,026,408,232,448 parameters.
"""

import math
from dataclasses import dataclass

from k2lab.spec.config import DTYPES, Fp8, K2Config
from k2lab.spec.keys import ITEM_BYTES, expert_leaves, layer_tensors

SHAPE_BYTES = 8
"""Bytes of one `weight_shape` tensor: two int32."""

BIAS_BYTES = 4
"""Bytes of one balancing bias, which is float32 whatever the rest is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Counts of parameters: seven parts and the norms, which add up to `total`."""

    total: int
    active: int  # used for one token: the chosen experts instead of all, everything else whole
    embedding: int
    head: int
    norm: int
    attention: int
    dense: int
    router: int  # balancing biases included
    shared: int
    routed: int


def parameters(config: K2Config) -> Parameters:
    """How many parameters the model has; stored scales and shapes of INT4 are not parameters."""
    layers, moe = config.num_hidden_layers, len(config.moe_layers)
    width, rank = config.hidden_size, config.q_lora_rank
    norms = 2 * width + config.kv_lora_rank + (rank or 0)
    routed = moe * config.n_routed_experts * expert_parameters(config)
    table = config.vocab_size * width
    parts = {
        "embedding": table,
        "head": table,
        "norm": layers * norms + width,
        "attention": layers * _attention(config),
        "dense": (layers - moe) * 3 * config.intermediate_size * width,
        "router": moe * config.n_routed_experts * (width + 1),
        "shared": moe * config.n_shared_experts * expert_parameters(config),
        "routed": routed,
    }
    total = sum(parts.values())
    chosen = moe * config.num_experts_per_tok * expert_parameters(config)
    return Parameters(total=total, active=total - routed + chosen, **parts)


def expert_parameters(config: K2Config) -> int:
    """Parameters of one routed expert: its three matrices."""
    return 3 * config.moe_intermediate_size * config.hidden_size


def expert_bytes(config: K2Config) -> int:
    """Bytes of one routed expert's codes and scales, or of its plain matrices."""
    count, plain = expert_parameters(config), ITEM_BYTES[DTYPES[config.dtype]]
    quantization = config.quantization_config
    if quantization is None:
        return count * plain
    if isinstance(quantization, Fp8):
        leaves = expert_leaves(config)
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for _, shape, dtype in leaves)
    return count * quantization.num_bits // 8 + count // quantization.group_size * plain


def bytes_on_disk(config: K2Config) -> int:
    """Bytes of all tensors of the checkpoint, file headers not counted."""
    counts, plain = parameters(config), ITEM_BYTES[DTYPES[config.dtype]]
    if isinstance(config.quantization_config, Fp8):
        outside = (counts.embedding + counts.head + config.hidden_size) * plain
        dense = config.num_hidden_layers - len(config.moe_layers)
        layers = dense * _layer_bytes(config, 0) if dense else 0
        if config.moe_layers:
            layers += len(config.moe_layers) * _layer_bytes(config, config.moe_layers[0])
        return outside + layers
    experts = len(config.moe_layers) * config.n_routed_experts
    biases = experts
    shapes = 0 if config.quantization_config is None else 3 * SHAPE_BYTES
    rest = counts.total - counts.routed - biases
    return rest * plain + biases * BIAS_BYTES + experts * (expert_bytes(config) + shapes)


def _layer_bytes(config: K2Config, layer: int) -> int:
    return sum(spec.nbytes for spec in layer_tensors(config, layer))


def cache_bytes_per_token(config: K2Config, *, item_bytes: int = 2) -> int:
    """Bytes that one token keeps in the latent cache of all layers; 70,272 for Kimi K2 Thinking."""
    values = config.kv_lora_rank + config.qk_rope_head_dim
    return config.num_hidden_layers * values * item_bytes


def multi_head_bytes_per_token(config: K2Config, *, item_bytes: int = 2) -> int:
    """Bytes that one token would keep if the keys and values of every head were cached."""
    values = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return config.num_hidden_layers * values * item_bytes


def flops_per_token(config: K2Config, context: int) -> int:
    """Floating-point operations to decode one token that attends to `context` tokens.

    A multiplication and an addition count as two. Attention is in the absorbed form, so each head
    reads latents, not expanded keys. Norms, softmax, activations and rotation are left out.
    """
    counts, heads = parameters(config), config.num_attention_heads
    biases = len(config.moe_layers) * config.n_routed_experts
    matrices = counts.active - counts.embedding - counts.norm - biases
    read = heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return 2 * (matrices + config.num_hidden_layers * context * read)


def _attention(config: K2Config) -> int:
    """Parameters of one layer's attention matrices, without its norms."""
    heads, width, latent = config.num_attention_heads, config.hidden_size, config.kv_lora_rank
    queries, rank = heads * config.qk_head_dim, config.q_lora_rank
    query = queries * width if rank is None else rank * (width + queries)
    compress = (latent + config.qk_rope_head_dim) * width
    expand = heads * (config.qk_nope_head_dim + config.v_head_dim) * latent
    return query + compress + expand + width * heads * config.v_head_dim
