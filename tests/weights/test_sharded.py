"""Layers over devices: the same numbers, an even split, and every hop made."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import k2lab
from k2lab.engine.taps import untouched
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.split import Split
from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config
from k2lab.spec.keys import layer_tensors
from k2lab.weights.sharded import Sharded, split

Configs = Callable[..., K2Config]
Weights = Callable[..., dict[str, Tensor]]


def logits(model: K2, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids, model.step(ids.shape[1], cache=None, tap=untouched))


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("dense", [0, 1, 2])
def test_logits_are_those_of_one_device(
    devices: int, dense: int, tiny_config: Configs, random_weights: Weights,
    tiny_model: Callable[..., K2],
) -> None:  # fmt: skip
    config = tiny_config(
        first_k_dense_replace=dense,
        quantization_config=K2_NANO.quantization_config,
        dtype="bfloat16",
    )
    read = random_weights(config, 4).__getitem__
    model = Split(config, Sharded(config, read, devices=["cpu"] * devices))
    whole = tiny_model(config, 4)
    for tokens in (1, 7):
        ids = (torch.arange(tokens) * 53 % 640)[None]
        assert torch.equal(logits(model, ids), logits(whole, ids))


def test_decoding_with_a_cache_is_the_same_too(
    tiny_config: Configs, random_weights: Weights
) -> None:
    config = tiny_config()
    read = random_weights(config, 1).__getitem__
    results = []
    for devices in (1, 3):
        model = Split(config, Sharded(config, read, devices=["cpu"] * devices))
        cache = LatentCache(config)
        with torch.inference_mode():
            for ids in ([3, 4, 5], [6], [7]):
                step = model.step(len(ids), cache=cache, tap=untouched)
                last = model(torch.tensor([ids]), step)
        results.append(last)
    assert torch.equal(*results)


def test_everything_hops(tiny_config: Configs, random_weights: Weights) -> None:
    """The second device holds shapes only: a tensor left behind would not combine with them."""
    config = tiny_config()
    read = random_weights(config, 1).__getitem__
    store = Sharded(config, read, devices=["cpu", "meta"])
    model = Split(config, store)
    seen: dict[str, str] = {}

    def tap(site: str, value: Tensor) -> Tensor:
        seen[site] = value.device.type
        return value

    cache = LatentCache(config)
    with torch.inference_mode():
        step = model.step(1, cache=cache, tap=tap)
        hidden = model.hidden(torch.tensor([[3]]), step)
    assert hidden.device.type == "meta"
    for layer in range(3):
        assert seen[f"layers.{layer}.input"] == store.device_of(layer).type
    assert {buffer.device.type for buffer in cache._buffers if buffer is not None} == {
        "cpu",
        "meta",
    }


def test_no_device_holds_the_tables_twice(tiny_config: Configs, random_weights: Weights) -> None:
    config = tiny_config()
    read = random_weights(config, 1).__getitem__
    store = Sharded(config, read, devices=["cpu"] * 3)
    sizes = [part.dense(None, "lm_head").weights.lm_head.numel() for part in store._stores]
    assert sizes == [640 * 64, 0, 0]


@pytest.mark.parametrize("config", [K2_NANO, K2_THINKING], ids=["nano", "thinking"])
@pytest.mark.parametrize("devices", [1, 2, 3, 6])
def test_the_split_is_whole_in_order_and_even(config: K2Config, devices: int) -> None:
    ranges = split(config, devices)
    assert [layer for layers in ranges for layer in layers] == list(range(config.num_hidden_layers))
    first = config.first_k_dense_replace
    kinds = [sum(s.nbytes for s in layer_tensors(config, n)) for n in (0, first)]
    costs = [kinds[layer >= first] for layer in range(config.num_hidden_layers)]
    shares = [sum(costs[layer] for layer in layers) for layers in ranges]
    tables = (2 * config.vocab_size + 1) * config.hidden_size * 2
    shares[0] += tables
    assert max(shares) <= max(sum(shares) / devices + max(costs), tables + costs[0])


def test_more_devices_than_layers_are_refused() -> None:
    with pytest.raises(InputError, match="7 devices for 6 layers"):
        split(K2_NANO, 7)


def test_load_places_layers_over_the_named_devices(small_checkpoint: Path) -> None:
    lab = k2lab.load(small_checkpoint, "sharded", device=("cpu", "cpu"))
    store = lab.model.store
    assert isinstance(store, Sharded)
    assert len(store.devices) == 2
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(lab.logits(ids), k2lab.load(small_checkpoint).logits(ids))
    assert store.ledger().hits == 3 * 2 * 2
