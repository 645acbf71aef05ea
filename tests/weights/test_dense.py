"""FP8 checkpoints: every store computes what the widened checkpoint would."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.model.cache import LatentCache
from k2lab.model.export import export_transformers
from k2lab.model.k2 import K2
from k2lab.model.load import Places, load_model
from k2lab.model.synthetic import cut, write_synthetic
from k2lab.spec.config import K2_NANO, Fp8, K2Config
from k2lab.spec.keys import tensors
from k2lab.tensors.fp8 import dequantise, quantise
from k2lab.tensors.shards import Shards, check
from k2lab.weights.budget import needs
from k2lab.weights.dense import SCALE, dense_specs, read_dense
from k2lab.weights.meta import Meta
from k2lab.weights.resident import Resident
from k2lab.weights.slab import layout
from k2lab.weights.tiered import Tiered

Configs = Callable[..., K2Config]
Named = tuple[K2Config, dict[str, Tensor]]
CPU = torch.device("cpu")


def outputs(model: K2) -> list[Tensor]:
    cache, found = LatentCache(model.config), []
    with torch.inference_mode():
        for ids in (range(3, 40), [1], [77]):
            step = model.step(len(ids), cache=cache, tap=untouched)
            found.append(model(torch.tensor([list(ids)]), step))
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.fixture
def named(tiny_config: Configs, random_weights: Any) -> Named:
    """Widths that are no multiple of 128: blocks are cut off at every edge."""
    plain = tiny_config(hidden_size=160, moe_intermediate_size=144, dtype="bfloat16")
    config, found = replace(plain, quantization_config=Fp8()), {}
    source = random_weights(plain, 3)
    for spec in tensors(config):
        if spec.dtype == "F8_E4M3":
            found[spec.key], found[spec.key + SCALE] = quantise(source[spec.key])
        elif not spec.key.endswith(SCALE):
            found[spec.key] = source[spec.key]
    return config, found


@pytest.fixture
def folder(named: Named, tmp_path: Path) -> Path:
    config, found = named
    save_file(found, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    check(Shards(tmp_path), config)
    return tmp_path


@pytest.fixture
def widened(named: Named) -> K2:
    """The same weights as plain float32."""
    config, found = named
    plain = {
        key: dequantise(value, found[key + SCALE]) if key + SCALE in found else value
        for key, value in found.items()
    }
    flat = replace(config, quantization_config=None, dtype="float32")
    return K2(flat, Resident(flat, plain.__getitem__))


@pytest.mark.parametrize("keeping", ["expanded", "packed"])
def test_a_resident_model_is_the_widened_one(keeping: Any, folder: Path, widened: K2) -> None:
    config, read = K2Config.from_json(folder), Shards(folder).read
    model = K2(config, Resident(config, read, keeping=keeping))
    assert same(outputs(model), outputs(widened))


@pytest.mark.parametrize("unit", ["expert", "layer"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_an_offloaded_model_is_the_widened_one(
    share: float, unit: Any, folder: Path, widened: K2
) -> None:
    store = load_model(folder, Places(placement="tiered", unit=unit)).store
    assert isinstance(store, Tiered)
    least, most = store.needs.smallest, store.needs.most
    budget = least + int((most - least) * share)
    places = Places(placement="tiered", unit=unit, device_budget=budget, host_budget="300kB")
    assert same(outputs(load_model(folder, places)), outputs(widened))


def test_a_model_split_over_devices_is_the_widened_one(folder: Path, widened: K2) -> None:
    places = Places(placement="sharded", device=("cpu",) * 3)
    assert same(outputs(load_model(folder, places)), outputs(widened))


def test_shapes_alone_pass_through_the_network(folder: Path) -> None:
    model = load_model(folder, "meta")
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    assert model(ids, model.step(4, cache=None, tap=untouched)).shape == (1, 4, 640)
    assert isinstance(model.store, Meta)
    assert model.store.nbytes == Shards(folder).bytes_total


def test_an_export_in_bfloat16_holds_the_widened_weights(folder: Path, tmp_path: Path) -> None:
    made = Shards(export_transformers(folder, tmp_path / "plain"))
    read, key = Shards(folder).read, "model.layers.1.mlp.experts.3.up_proj.weight"
    assert torch.equal(made.read(key), dequantise(read(key), read(key + SCALE), torch.bfloat16))
    assert not [each for each in made.keys if each.endswith(SCALE)]


def test_a_synthetic_checkpoint_may_be_fp8(tmp_path: Path) -> None:
    config = replace(cut(K2_NANO, 2), quantization_config=Fp8())
    logits = outputs(load_model(write_synthetic(config, tmp_path / "made")))[0]
    assert 0.3 < float(logits.std()) < 3


def test_the_router_alone_is_wide(folder: Path) -> None:
    config = K2Config.from_json(folder)
    leases = read_dense(config, Shards(folder).read, CPU, torch.bfloat16)
    for (_, part), lease in leases.items():
        for name, value in vars(lease.weights).items():
            wide = torch.float32 if part == "mlp.gate" else torch.bfloat16
            assert value.dtype == wide, (part, name)


def test_what_is_counted_is_what_is_read(folder: Path) -> None:
    config = K2Config.from_json(folder)
    leases = read_dense(config, Shards(folder).read, CPU, torch.float32)
    held = sum(each.nbytes for lease in leases.values() for each in vars(lease.weights).values())
    probe = load_model(folder, "tiered").store
    assert isinstance(probe, Tiered)
    assert needs(config, layout(config), probe.offload).dense == held
    assert len(list(dense_specs(config))) == sum(len(vars(one.weights)) for one in leases.values())
