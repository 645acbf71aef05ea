"""The store in memory: packed or expanded, the numbers are the same bits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.weights import resident
from k2lab.weights.resident import Resident
from k2lab.weights.stacks import Stack

Configs = Callable[..., K2Config]
Models = Callable[..., K2]
INT4: dict[str, Any] = {"quantization_config": K2_NANO.quantization_config, "dtype": "bfloat16"}


def logits(model: K2, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids, model.step(ids.shape[1], cache=None, tap=untouched))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 60])
def test_packed_equals_expanded_bit_for_bit(
    dtype: torch.dtype, tokens: int, tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(**INT4)
    ids = (torch.arange(tokens) * 37 % 640)[None]
    packed = logits(tiny_model(config, 1, dtype=dtype, keeping="packed"), ids)
    expanded = logits(tiny_model(config, 1, dtype=dtype, keeping="expanded"), ids)
    assert packed.dtype == dtype
    assert torch.equal(packed, expanded)


def test_auto_expands_what_is_small_and_keeps_packed_what_is_large(
    tiny_config: Configs, tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**INT4)
    gate_up, down = tiny_model(config).store._experts[1]
    assert (gate_up.dtype, down.dtype) == (torch.float32, torch.float32)
    monkeypatch.setattr(resident, "EXPAND_LIMIT", 0)
    large = tiny_model(config).store._experts[1]
    assert large.gate_up_scale is not None
    assert large.gate_up.dtype == torch.int32


def test_every_tensor_is_read_once(
    tiny_config: Configs, random_weights: Callable[[K2Config], dict[str, Tensor]]
) -> None:
    config = tiny_config(**INT4)
    weights = random_weights(config)
    asked: list[str] = []

    def read(key: str) -> Tensor:
        asked.append(key)
        return weights[key]

    Resident(config, read)
    assert len(asked) == len(set(asked))
    assert set(asked) == {key for key in weights if not key.endswith("weight_shape")}


def test_the_router_lies_there_in_float32(tiny_config: Configs, tiny_model: Models) -> None:
    config = tiny_config()
    store = tiny_model(config, dtype=torch.bfloat16).store
    with store.dense(1, "mlp.gate") as w:
        assert w.e_score_correction_bias.dtype == torch.float32
        assert w.weight.dtype == torch.float32
    with store.dense(1, "self_attn") as w:
        assert w.o_proj.dtype == torch.bfloat16


def test_what_is_expanded_carries_nothing_for_gradients(
    tiny_config: Configs, tiny_model: Models
) -> None:
    store = tiny_model(tiny_config(**INT4)).store
    with store.dense(1, "self_attn") as w:
        assert w.o_proj.is_inference()
    gate_up, down = store.experts(1, torch.tensor([[3, 9, 3, 1]])).stack
    assert gate_up.is_inference()
    assert down.is_inference()


def test_only_the_chosen_experts_are_expanded(
    tiny_config: Configs, tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**INT4)
    store = tiny_model(config, keeping="packed").store
    sizes = []
    whole = Stack.expand

    def count(stack: Any, dtype: torch.dtype) -> Any:
        sizes.append(len(stack.gate_up))
        return whole(stack, dtype)

    monkeypatch.setattr(Stack, "expand", count)
    batch = store.experts(1, torch.tensor([[3, 9, 3, 1]]))
    assert batch.rows(torch.ones(1, 64)).shape == (1, 4, 64)
    assert sizes == [3]


def test_the_ledger_counts_requests_and_moves_nothing(
    tiny_config: Configs, tiny_model: Models
) -> None:
    model = tiny_model(tiny_config())
    logits(model, torch.tensor([[1, 2, 3]]))
    ledger = model.store.ledger()
    assert (ledger.hits, ledger.misses, ledger.bytes_moved) == (3 * 4 * 2, 0, {})


def test_an_unquantised_bfloat16_checkpoint_is_widened_exactly(
    tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(dtype="bfloat16")
    ids = torch.tensor([[9, 8, 7]])
    wide = logits(tiny_model(config, 2), ids)
    assert wide.dtype == torch.float32
    same = replace(config, dtype="float32")
    assert not torch.equal(wide, logits(tiny_model(same, 2), ids))  # the file was rounded
