"""The network against `transformers`: equal float32 logits, equal choice of experts.

Stored results keep the promise where transformers is not installed. They were made with

    pytest tests/model/test_parity.py --write-golden
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import untouched, watch
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config, RopeScaling

GOLDEN = Path(__file__).parents[1] / "golden" / "logits.safetensors"
TOLERANCE = 1e-4
TOKENS = 48  # × 2 rows
YARN = RopeScaling(
    factor=8.0,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    original_max_position_embeddings=64,
)
YARN_AS_K2 = RopeScaling(
    factor=64.0,
    beta_fast=1.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    original_max_position_embeddings=16,
)
YARN_UNEQUAL = RopeScaling(
    factor=4.0,
    beta_fast=16.0,
    beta_slow=2.0,
    mscale=0.707,
    mscale_all_dim=1.0,
    original_max_position_embeddings=32,
)
GROUPS: dict[str, Any] = {"n_group": 4, "topk_group": 2}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "yarn": {"rope_scaling": YARN},
    "yarn_k2": {"rope_scaling": YARN_AS_K2, "rope_theta": 50000.0},
    "yarn_unequal": {"rope_scaling": YARN_UNEQUAL},
    "no_q_lora": {"q_lora_rank": None},
    "no_q_lora_yarn": {"q_lora_rank": None, "rope_scaling": YARN},
    "groups": GROUPS,
    "groups_yarn_no_q_lora": {**GROUPS, "rope_scaling": YARN, "q_lora_rank": None},
    "all_moe": {"first_k_dense_replace": 0},
    "two_dense": {"first_k_dense_replace": 2, "num_hidden_layers": 4},
    "three_dense_yarn": {
        "first_k_dense_replace": 3,
        "num_hidden_layers": 4,
        "rope_scaling": YARN,
    },
    "all_dense": {"first_k_dense_replace": 3},
    "two_shared": {"n_shared_experts": 2},
    "two_shared_groups": {**GROUPS, "n_shared_experts": 2, "first_k_dense_replace": 0},
    "unnormalised": {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "odd": {
        "qk_nope_head_dim": 15,
        "kv_lora_rank": 33,
        "q_lora_rank": 31,
        "v_head_dim": 11,
        "qk_rope_head_dim": 6,
        "rope_scaling": YARN,
    },
    "wide": {
        "hidden_size": 96,
        "num_attention_heads": 6,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 32,
        "num_experts_per_tok": 8,
        "rope_scaling": YARN,
    },
}
STORED = ("plain", "yarn_k2", "groups_yarn_no_q_lora", "two_shared_groups")


def ids_of(config: K2Config, seed: int, tokens: int = TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (2, tokens), generator=generator)


def ours(model: K2, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits, and the chosen experts [batch, token, slot] by layer."""
    chosen: dict[int, Tensor] = {}
    tap = untouched
    if model.config.moe_layers:
        tap = watch(
            "layers.*.mlp.router.experts",
            model.config,
            lambda site, value: chosen.__setitem__(int(site.split(".")[1]), value),
        )
    with torch.inference_mode():
        return model(ids, model.step(ids.shape[1], cache=None, tap=tap)), chosen


def theirs(
    folder: Path, config: K2Config, weights: dict[str, Tensor], ids: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """The same from transformers, which reads the same checkpoint."""
    transformers = pytest.importorskip("transformers", reason="the peer is not installed")
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    entries = config.to_json() | {"model_type": "deepseek_v3"}
    (folder / "config.json").write_text(json.dumps(entries))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = transformers.DeepseekV3ForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model.eval()
    chosen: dict[int, Tensor] = {}
    for layer in config.moe_layers:

        def see(module: object, given: object, gave: Any, layer: int = layer) -> None:
            chosen[layer] = gave[2].unflatten(0, ids.shape)

        model.model.layers[layer].mlp.gate.register_forward_hook(see)
    with torch.inference_mode():
        return model(ids).logits, chosen


def flips(first: dict[int, Tensor], second: dict[int, Tensor]) -> int:
    """(token, layer) pairs whose sets of experts differ."""
    assert first.keys() == second.keys()
    return sum(
        int((first[layer].sort(-1).values != second[layer].sort(-1).values).any(-1).sum())
        for layer in first
    )


@pytest.mark.parametrize("name", CASES)
def test_float32_logits_equal_those_of_transformers(
    name: str,
    tmp_path: Path,
    tiny_config: Callable[..., K2Config],
    random_weights: Callable[[K2Config, int], dict[str, Tensor]],
    tiny_model: Callable[..., K2],
    record_property: Callable[[str, object], None],
) -> None:
    config, seed = tiny_config(**CASES[name]), list(CASES).index(name)
    ids = ids_of(config, seed)
    wanted, experts = theirs(tmp_path, config, random_weights(config, seed), ids)
    logits, chosen = ours(tiny_model(config, seed), ids)

    difference = float((logits - wanted).abs().max())
    flipped, choices = flips(chosen, experts), len(config.moe_layers) * ids.numel()
    record_property("max_difference", difference)
    record_property("routing_flips", flipped)
    record_property("routing_choices", choices)
    assert difference <= TOLERANCE
    assert flipped == 0  # else the tolerance would have held by chance


def test_decoding_with_a_cache_equals_the_full_forward_of_transformers(
    tmp_path: Path,
    tiny_config: Callable[..., K2Config],
    random_weights: Callable[[K2Config, int], dict[str, Tensor]],
    tiny_model: Callable[..., K2],
) -> None:
    config = tiny_config(rope_scaling=YARN)
    ids = ids_of(config, 5)
    wanted, _ = theirs(tmp_path, config, random_weights(config, 5), ids)
    model, cache = tiny_model(config, 5), LatentCache(config, batch=2)
    got = []
    with torch.inference_mode():
        for start, end in ((0, 17), *((i, i + 1) for i in range(17, TOKENS))):
            step = model.step(end - start, cache=cache, tap=untouched)
            got.append(model(ids[:, start:end], step))
    assert float((torch.cat(got, 1) - wanted).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", STORED)
def test_float32_logits_equal_the_stored_ones(
    name: str,
    tmp_path: Path,
    tiny_config: Callable[..., K2Config],
    random_weights: Callable[[K2Config, int], dict[str, Tensor]],
    tiny_model: Callable[..., K2],
    pytestconfig: pytest.Config,
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    config, seed = tiny_config(vocab_size=640, **CASES[name]), 100 + STORED.index(name)
    # Written out, since torch does not promise the same random numbers for ever.
    ids = (torch.arange(2 * 24).reshape(2, 24) * 7919 + seed) % config.vocab_size
    if pytestconfig.getoption("--write-golden"):
        wanted, _ = theirs(tmp_path, config, random_weights(config, seed), ids)
        old: dict[str, Tensor] = {}
        if GOLDEN.exists():
            with safe_open(GOLDEN, "pt") as file:
                old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        old[name] = wanted[:, :, ::5].contiguous()  # every fifth token: a small file
        made = {"made": "pytest tests/model/test_parity.py --write-golden"}
        save_file(old, GOLDEN, metadata=made)
        GOLDEN.chmod(0o644)  # the library leaves it to its owner alone
    with safe_open(GOLDEN, "pt") as file:
        wanted = file.get_tensor(name)
    logits, _ = ours(tiny_model(config, seed), ids)
    assert float((logits[:, :, ::5] - wanted).abs().max()) <= TOLERANCE


def test_the_cases_cover_what_is_promised(tiny_config: Callable[..., K2Config]) -> None:
    configs = [tiny_config(**changes) for changes in CASES.values()]
    assert len({str(asdict(config)) for config in configs}) >= 12
    assert {config.rope_scaling is None for config in configs} == {True, False}
    assert {config.q_lora_rank is None for config in configs} == {True, False}
    assert {config.n_group for config in configs} == {1, 4}
    assert {config.first_k_dense_replace for config in configs} == {0, 1, 2, 3}
    assert {config.n_shared_experts for config in configs} == {1, 2}
