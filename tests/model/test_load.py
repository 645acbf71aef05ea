"""Checkpoint folders: what is whole loads, what is damaged is refused before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import k2lab
from k2lab.engine.taps import untouched
from k2lab.errors import CheckpointError, ConfigError, InputError, K2LabError, TokenizerError
from k2lab.model.k2 import K2
from k2lab.model.load import Places, load_model
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.spec.keys import shard_name, shard_of
from k2lab.tensors.int4 import dequantise, quantise, unpack
from k2lab.tensors.shards import INDEX, Shards
from k2lab.weights.meta import Meta
from k2lab.weights.resident import Resident
from k2lab.weights.sharded import Sharded
from k2lab.weights.tiered import Tiered

Configs = Callable[..., K2Config]
Write = Callable[[Path, K2Config, int], Path]
INT4 = {"quantization_config": K2_NANO.quantization_config, "dtype": "bfloat16"}


def logits(model: K2) -> Tensor:
    with torch.inference_mode():
        ids = torch.tensor([[1, 2, 3, 400, 5]])
        return model(ids, model.step(5, cache=None, tap=untouched))


@pytest.fixture
def folder(tmp_path: Path, tiny_config: Configs, random_checkpoint: Write) -> Path:
    """A whole INT4 checkpoint in one file, to be damaged."""
    return random_checkpoint(tmp_path / "whole", tiny_config(**INT4), 3)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    named = {key: value.clone() for key, value in load_file(file).items()}
    change(named)
    save_file(named, file, metadata={"format": "pt"})


def split(folder: Path, config: K2Config) -> None:
    """The same checkpoint with one shard per layer, as Kimi K2 lays them out."""
    named = load_file(folder / "model.safetensors")
    places = {key: shard_of(key, config) for key in named}
    for name in set(places.values()):
        part = {key: value.clone() for key, value in named.items() if places[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, INT4])
def test_a_checkpoint_gives_the_network_of_its_tensors(
    changes: dict[str, object],
    tmp_path: Path,
    tiny_config: Configs,
    tiny_model: Callable[..., K2],
    random_checkpoint: Write,
) -> None:
    config = tiny_config(**changes)
    lab = k2lab.load(random_checkpoint(tmp_path, config, 7))
    assert lab.config == config
    assert torch.equal(logits(lab.model), logits(tiny_model(config, 7)))


def test_one_shard_per_layer_loads_like_a_single_file(folder: Path, tiny_config: Configs) -> None:
    whole = logits(load_model(folder))
    split(folder, tiny_config(**INT4))
    assert torch.equal(logits(load_model(folder)), whole)


def test_meta_placement_reads_no_tensor(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    model = load_model(folder, "meta")
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    assert model(ids, model.step(4, cache=None, tap=untouched)).shape == (1, 4, 640)


def test_a_store_of_ones_own_is_used(folder: Path, tiny_config: Configs) -> None:
    store = Meta(tiny_config(**INT4))
    assert load_model(folder, store).store is store


def test_another_placement_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'moon'.*auto, resident, sharded, tiered, meta"):
        load_model(folder, "moon")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"placement is None.*or a weight store"):
        load_model(folder, None)  # type: ignore[arg-type]


def test_a_checkpoint_of_compressed_tensors_loads_with_its_codes_and_scales(
    tmp_path: Path, tiny_config: Configs, random_checkpoint: Write
) -> None:
    pytest.importorskip("compressed_tensors", reason="the peer is not installed")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    plain = random_checkpoint(tmp_path / "plain", tiny_config(dtype="bfloat16"), 11)
    named: dict[str, Tensor] = {}
    theirs: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(plain / "model.safetensors").items():
        if ".experts." not in key:
            named[key] = value.clone()
            continue
        linear = torch.nn.Linear(value.shape[1], value.shape[0], bias=False, dtype=value.dtype)
        linear.weight.data.copy_(value)
        scale = quantise(value)[1]
        if "up_proj" in key:  # the whole range: −8 occurs
            scale = (value.float().unflatten(-1, (-1, 32)).abs().amax(-1) / 7.5).to(value.dtype)
        state = {"weight": linear.weight.detach(), "weight_scale": scale}
        module = key.removesuffix(".weight")
        theirs[module] = compressor.compress(state, scheme=scheme)
        named |= {f"{module}.{leaf}": part for leaf, part in theirs[module].items()}
    config = tiny_config(**INT4)
    folder = random_checkpoint(tmp_path / "int4", config, 11)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})

    model = load_model(folder)
    store, shards = model.store, Shards(folder)
    assert isinstance(store, Resident)
    packed = K2(config, Resident(config, shards.read, keeping="packed"))
    lowest = 0
    for module, state in theirs.items():
        unpacked = compressor.decompress(state, scheme=scheme)["weight"]
        codes, scale = unpack(shards.read(f"{module}.weight_packed")), state["weight_scale"]
        assert torch.equal(shards.read(f"{module}.weight_scale"), scale)
        lowest = min(lowest, int(codes.min()))
        # The library multiplies in bfloat16; ours is exact, and equal after the same rounding.
        assert torch.equal(dequantise(codes, scale, torch.bfloat16), unpacked)
        _, _, layer, _, _, expert, name = module.split(".")
        both, downs = store._experts[int(layer)]
        gate_up = both[int(expert)].chunk(2)
        held = {
            "gate_proj": gate_up[0],
            "up_proj": gate_up[1],
            "down_proj": downs[int(expert)],
        }
        assert torch.equal(held[name], dequantise(codes, scale))
    assert lowest == -8
    assert torch.equal(logits(model), logits(packed))


def refused(folder: Path, error: type[K2LabError], *words: str) -> None:
    with pytest.raises(error) as caught:
        k2lab.load(folder)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.mend


def test_a_missing_tensor_is_named(folder: Path) -> None:
    key = "model.layers.1.mlp.experts.3.up_proj.weight_scale"
    rewrite(folder, lambda named: named.pop(key))
    refused(folder, CheckpointError, key)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    key = "model.layers.1.mlp.experts.16.up_proj.weight_scale"
    rewrite(folder, lambda named: named.__setitem__(key, torch.zeros(2)))
    refused(folder, CheckpointError, key)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    key = "model.layers.0.self_attn.o_proj.weight"
    rewrite(folder, lambda named: named.__setitem__(key, named[key].T.contiguous()))
    refused(folder, CheckpointError, key, "[48, 64]", "[64, 48]")


def test_a_wrong_dtype_is_named(folder: Path) -> None:
    key = "model.norm.weight"
    rewrite(folder, lambda named: named.__setitem__(key, named[key].float()))
    refused(folder, CheckpointError, key, "F32", "BF16")


def test_a_missing_shard_is_named(folder: Path, tiny_config: Configs) -> None:
    split(folder, tiny_config(**INT4))
    (folder / shard_name(2, 4)).unlink()
    refused(folder, CheckpointError, shard_name(2, 4))


def test_a_shard_that_was_cut_off_is_named(folder: Path, tiny_config: Configs) -> None:
    split(folder, tiny_config(**INT4))
    shard = folder / shard_name(3, 4)
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, CheckpointError, shard.name)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("quant_method",), "fp8"),
        (("quant_method",), "gptq"),
        (("format",), "marlin-24"),
        (("config_groups", "group_0", "weights", "num_bits"), 8),
        (("config_groups", "group_0", "weights", "group_size"), 128),
        (("config_groups", "group_0", "weights", "symmetric"), False),
    ],
)
def test_an_unknown_quantisation_is_refused(
    place: tuple[str, ...], value: object, folder: Path
) -> None:
    file = folder / "config.json"
    entries = json.loads(file.read_text())
    block = entries["quantization_config"]
    for step in place[:-1]:
        block = block[step]
    block[place[-1]] = value
    file.write_text(json.dumps(entries))
    refused(folder, CheckpointError)
    refused(folder, ConfigError)


def test_weights_that_are_not_quantised_as_config_says_are_refused(
    tmp_path: Path, tiny_config: Configs, random_checkpoint: Write
) -> None:
    folder = random_checkpoint(tmp_path, tiny_config(dtype="bfloat16"), 0)
    (folder / "config.json").write_text(json.dumps(tiny_config(**INT4).to_json()))
    refused(folder, CheckpointError, "experts.0.down_proj.weight_packed", "instead")


def test_a_folder_without_config_or_weights_or_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tiktoken.model").rename(folder / "elsewhere")
    refused(folder, TokenizerError, "tiktoken.model")
    (folder / "model.safetensors").unlink()
    refused(folder, CheckpointError, "model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, ConfigError, "config.json")
    refused(folder / "nowhere", ConfigError, "nowhere")


# ----------------------------------------------------------------------------------------- places


def test_auto_takes_the_first_placement_that_fits(folder: Path) -> None:
    assert isinstance(load_model(folder).store, Resident)
    few = load_model(folder, Places(device="cpu", device_budget="900kB")).store
    assert isinstance(few, Tiered)
    assert few.offload.device_budget == 900_000
    several = Places(device=("cpu",) * 3, device_budget="1MB")
    assert isinstance(load_model(folder, several).store, Sharded)


def test_a_tiered_store_asks_for_no_more_than_it_can_use(folder: Path) -> None:
    store = load_model(folder, "tiered").store
    assert isinstance(store, Tiered)
    assert store.offload.device_budget <= store.needs.most
    assert store.slots == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": "tensor"}, "expert, layer"),
        ({"device": "moon"}, "torch knows"),
        ({"device": "cuda:99"}, "not in this machine"),
        ({"device": ()}, "not in this machine"),
        ({"device": 0}, "device is 0"),
        ({"device": 1.5}, "torch knows"),
        ({"device_budget": 2e7}, "20GiB"),
        ({"device_budget": 2e7, "placement": "tiered"}, "20GiB"),
        ({"device_budget": "1MB", "placement": "resident"}, "device_budget beside"),
        ({"device_budget": "1MB", "placement": "sharded"}, "device_budget beside"),
        ({"host_budget": 5, "unit": "layer", "placement": "meta"}, "host_budget, unit beside"),
        ({"prefetch": True}, "prefetch beside the placement resident"),
        ({"policy": "lfu"}, "policy beside the placement resident"),
        ({"device_budget": "much", "placement": "tiered"}, "20GiB"),
        ({"policy": "random", "placement": "tiered"}, "lru, lfu"),
    ],
)
def test_places_that_cannot_be_are_refused(
    changes: dict[str, object], words: str, folder: Path
) -> None:
    with pytest.raises(InputError, match=words):
        load_model(folder, Places(**changes))  # type: ignore[arg-type]


def test_options_of_offloading_are_heeded_where_auto_offloads(folder: Path) -> None:
    store = load_model(folder, Places(device_budget="900kB", prefetch=True, host_budget=7)).store
    assert isinstance(store, Tiered)
    assert (store.offload.prefetch, store.offload.host_budget) == (True, 7)


def test_load_takes_all_options(folder: Path) -> None:
    lab = k2lab.load(
        folder, "tiered", device="cpu", device_budget="1100kB", host_budget="50kB", unit="layer"
    )
    store = lab.model.store
    assert isinstance(store, Tiered)
    assert (store.offload.unit, store.offload.host_budget) == ("layer", 50_000)


def test_options_beside_a_store_are_refused(folder: Path) -> None:
    store = k2lab.load(folder, "tiered").model.store
    assert k2lab.load(folder, store).model.store is store
    with pytest.raises(InputError, match="store that is made already"):
        k2lab.load(folder, store, device_budget="1MB")
