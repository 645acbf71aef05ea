"""Reading of a config.json: which key is which field, what an absent key means, what is refused.

What it is not: the checks of one value against another; `K2Config` makes those itself, however it
was built.
Source: what transformers 4 and 5 and the published checkpoints write.
"""

from k2lab.errors import ConfigError
from k2lab.spec.config import MODEL_TYPES, RESTORE, K2Config, RopeScaling, require
from k2lab.spec.fields import Fields
from k2lab.spec.quantization import read_quantization, warn_unknown

_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    add_cross_attention architectures auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id head_dim id2label is_decoder
    is_encoder_decoder k2lab label2id length_penalty max_length min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_router_logits output_scores prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
    top_p torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
"""
"""Keys that Hugging Face libraries write and that do not change the computation."""


def read_config(fields: Fields) -> K2Config:
    """The config that the keys state; keys that nobody knows give one warning."""
    if "text_config" in fields.values:
        raise ConfigError(
            f"{fields.name} nests a language model under 'text_config'.",
            expected="The flat config.json of a text model.",
            mend="Pass the object under 'text_config' alone.",
        )
    model_type = fields.optional_word("model_type")
    known = model_type in MODEL_TYPES
    require(known or model_type is None, "model_type", model_type, f"One of {MODEL_TYPES}.")

    def routing(key: str, implied: str) -> str:
        # transformers writes no such key for these model types: their code knows one value.
        value = fields.optional_word(key)
        return implied if value is None and known else value or fields.word(key)

    theta, scaling = _read_rope(fields)
    quantization = fields.optional_block("quantization_config")
    heads = fields.integer("num_attention_heads")
    frequency = fields.optional_integer("moe_layer_freq")
    groups = fields.optional_integer("num_key_value_heads")
    config = K2Config(
        model_type=model_type or MODEL_TYPES[0],
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        num_hidden_layers=fields.integer("num_hidden_layers"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        hidden_act=fields.word("hidden_act"),
        tie_word_embeddings=fields.truth("tie_word_embeddings"),
        dtype=fields.optional_word("dtype") or fields.optional_word("torch_dtype") or "bfloat16",
        num_attention_heads=heads,
        num_key_value_heads=heads if groups is None else groups,
        q_lora_rank=_read_query_rank(fields),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim"),
        qk_rope_head_dim=fields.integer("qk_rope_head_dim"),
        v_head_dim=fields.integer("v_head_dim"),
        attention_bias=fields.truth("attention_bias"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        intermediate_size=fields.integer("intermediate_size"),
        first_k_dense_replace=fields.integer("first_k_dense_replace"),
        moe_layer_freq=1 if frequency is None and known else fields.integer("moe_layer_freq"),
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        n_routed_experts=fields.integer("n_routed_experts"),
        n_shared_experts=fields.integer("n_shared_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        n_group=fields.integer("n_group"),
        topk_group=fields.integer("topk_group"),
        scoring_func=routing("scoring_func", "sigmoid"),
        topk_method=routing("topk_method", "noaux_tc"),
        norm_topk_prob=fields.truth("norm_topk_prob"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
        num_nextn_predict_layers=fields.optional_integer("num_nextn_predict_layers") or 0,
        bos_token_id=fields.optional_integer("bos_token_id"),
        eos_token_id=_read_eos(fields),
        pad_token_id=fields.optional_integer("pad_token_id"),
        quantization_config=read_quantization(quantization) if quantization else None,
        attention_dropout=fields.optional_number("attention_dropout"),
        aux_loss_alpha=fields.optional_number("aux_loss_alpha"),
        seq_aux=fields.optional_truth("seq_aux"),
        initializer_range=fields.optional_number("initializer_range"),
        pretraining_tp=fields.optional_integer("pretraining_tp"),
        ep_size=fields.optional_integer("ep_size"),
        use_cache=fields.optional_truth("use_cache"),
    )
    if (width := fields.optional_integer("qk_head_dim")) is not None:
        require(width == config.qk_head_dim, "qk_head_dim", width, f"{config.qk_head_dim}.")
    interleave = fields.optional_truth("rope_interleave")
    require(interleave is not False, "rope_interleave", interleave, "true, or no such key.")
    fields.asked |= {"torch_dtype", *_BOOKKEEPING.split()}
    warn_unknown(fields)
    return config


def _read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling), from `rope_theta` and `rope_scaling` or from `rope_parameters`."""
    block = fields.optional_block("rope_parameters")
    older = fields.optional_block("rope_scaling")
    if block is None:
        block = older
    elif older is not None and older.values != block.values:
        raise ConfigError(
            f"{fields.name} has both 'rope_scaling' and 'rope_parameters', and they differ.",
            expected="One of the two keys.",
            mend="Remove the one that the checkpoint was not published with.",
        )
    outer = fields.optional_number("rope_theta")
    inner = block.optional_number("rope_theta") if block else None
    if outer is not None and inner is not None and outer != inner:
        raise ConfigError(
            f"{fields.name} has rope_theta {outer} outside and {inner} inside its rotary block.",
            expected="One value.",
            mend=RESTORE,
        )
    theta = inner if outer is None and inner is not None else fields.number("rope_theta")
    if block is None or not block.values:
        return theta, None
    kind = block.optional_word("rope_type") or block.word("type")
    if kind == "default":
        block.asked |= {"type", "rope_type"}
        warn_unknown(block)
        return theta, None
    require(kind == "yarn", "type", kind, "yarn or default, the only rotary kinds supported.")
    alias = block.optional_word("type")
    require(alias in (None, kind), "type", alias, f"{kind}, as 'rope_type' says.")
    factor = block.get("attention_factor")
    require(factor is None, "attention_factor", factor, "No such key; mscale decides.")
    truncate = block.get("truncate")
    require(truncate in (None, True), "truncate", truncate, "true, or no such key.")
    scaling = RopeScaling(
        factor=block.number("factor"),
        beta_fast=block.number("beta_fast"),
        beta_slow=block.number("beta_slow"),
        mscale=block.number("mscale"),
        mscale_all_dim=block.number("mscale_all_dim"),
        original_max_position_embeddings=block.integer("original_max_position_embeddings"),
    )
    warn_unknown(block)
    return theta, scaling


def _read_eos(fields: Fields) -> int | tuple[int, ...] | None:
    """One id, or several where the file lists several ends of a turn."""
    value = fields.get("eos_token_id")
    if isinstance(value, list | tuple):
        items = [Fields({"eos_token_id": item}, fields.name) for item in value]
        return tuple(item.integer("eos_token_id") for item in items)
    return fields.optional_integer("eos_token_id")


def _read_query_rank(fields: Fields) -> int | None:
    """The rank, or None where the file says null; an absent key could mean either."""
    if "q_lora_rank" in fields.values:
        return fields.optional_integer("q_lora_rank")
    return fields.integer("q_lora_rank")
