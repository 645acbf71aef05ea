"""Reading of checkpoint folders: whole ones, and every way of being damaged."""

import json
import random
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from k2lab.errors import CheckpointError
from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config
from k2lab.spec.keys import ITEM_BYTES, TensorSpec, shard_name, shard_of, tensors
from k2lab.tensors.shards import INDEX, SINGLE, TORCH_NAMES, Shards, check

SMALL = replace(
    K2_NANO,
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=96,
    num_attention_heads=2,
    num_key_value_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=4,
    num_experts_per_tok=2,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def value(spec: TensorSpec, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, TORCH_NAMES[spec.dtype])
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(-(2**31), 2**31 - 1, spec.shape, generator=generator).to(dtype)


def values(config: K2Config) -> dict[str, torch.Tensor]:
    return {spec.key: value(spec, i) for i, spec in enumerate(tensors(config))}


def write_sharded(folder: Path, content: dict[str, torch.Tensor], count: int = 3) -> None:
    keys = list(content)
    weight_map = {key: shard_name(i * count // len(keys) + 1, count) for i, key in enumerate(keys)}
    for name in set(weight_map.values()):
        part = {key: content[key] for key in keys if weight_map[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in content.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_sharded(tmp_path, values(SMALL))
    return tmp_path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(values(SMALL), tmp_path / SINGLE, metadata={"format": "pt"})
    return tmp_path


def refused(folder: Path, config: K2Config | None = None) -> str:
    """The error's text, after checking that it has its three parts as sentences."""
    with pytest.raises(CheckpointError) as caught:
        shards = Shards(folder)
        if config is not None:
            check(shards, config)
    error = caught.value
    assert error.found.endswith(".") and error.expected.endswith(".") and error.mend.endswith(".")
    assert str(folder) in error.found
    return str(error)


def edit_header(file: Path, change: Any) -> None:
    """Rewrite the file with `change(header)` as its header, data untouched."""
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    text = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


# whole checkpoints


@pytest.mark.parametrize("layout", ["sharded", "single"])
def test_every_tensor_reads_back_bit_for_bit(layout: str, request: pytest.FixtureRequest) -> None:
    shards = Shards(request.getfixturevalue(layout))
    check(shards, SMALL)
    expected = values(SMALL)
    assert set(shards.keys) == set(expected)
    assert shards.bytes_total == sum(tensor.nbytes for tensor in expected.values())
    for key, tensor in expected.items():
        read = shards.read(key)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), key
        header = shards.header(key)
        assert header.shape == tuple(tensor.shape)
        start, end = shards.span(key)
        assert header.file.read_bytes()[start:end] == read.view(torch.uint8).numpy().tobytes()
        assert key in shards


def test_the_librarys_own_reader_agrees(single: Path) -> None:
    from safetensors import safe_open

    shards = Shards(single)
    with safe_open(single / SINGLE, framework="pt") as reader:
        assert set(reader.keys()) == set(shards.keys)
        for key in reader.keys():  # noqa: SIM118
            assert torch.equal(reader.get_tensor(key), shards.read(key))


@pytest.mark.parametrize("name", sorted(TORCH_NAMES))
def test_every_dtype_reads_back(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, TORCH_NAMES[name])
    data = torch.arange(48, dtype=torch.uint8)[: 6 * ITEM_BYTES[name]]
    tensor = (data % 2).bool() if name == "BOOL" else data.view(dtype)
    save_file({"x": tensor.reshape(2, 3), "scalar": tensor[0].clone()}, tmp_path / SINGLE)
    shards = Shards(tmp_path)
    assert shards.header("x")[:2] == (name, (2, 3))
    raw = shards.read("x").contiguous().view(torch.uint8)
    assert torch.equal(raw, tensor.reshape(2, 3).view(torch.uint8))
    assert shards.read("scalar").shape == ()


def test_empty_tensors_read_back(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(0, 3), "b": torch.ones(2)}, tmp_path / SINGLE)
    shards = Shards(tmp_path)
    assert shards.read("a").shape == (0, 3)
    assert torch.equal(shards.read("b"), torch.ones(2))


def test_data_behind_a_header_of_odd_length_reads_back(single: Path) -> None:
    edit_header(single / SINGLE, lambda header: header | {"__metadata__": {"x": "1234"}})
    raw = (single / SINGLE).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    odd = raw[8 : 8 + length] + b" " * (1 + length % 2)
    (single / SINGLE).write_bytes(struct.pack("<Q", len(odd)) + odd + raw[8 + length :])
    shards, expected = Shards(single), values(SMALL)
    assert any(shards.span(key)[0] % 2 for key in shards.keys)
    assert all(torch.equal(shards.read(key), expected[key]) for key in expected)


def test_writing_to_a_tensor_leaves_the_file_alone(single: Path) -> None:
    before = (single / SINGLE).read_bytes()
    tensor = Shards(single).read("model.norm.weight")
    tensor.zero_()
    assert (single / SINGLE).read_bytes() == before
    assert not torch.equal(Shards(single).read("model.norm.weight"), tensor)


def test_a_tensor_outlives_its_reader(single: Path) -> None:
    tensor = Shards(single).read("model.norm.weight")
    assert torch.equal(tensor, values(SMALL)["model.norm.weight"])


def write_headers(folder: Path, config: K2Config) -> None:
    """All shards of a checkpoint in the published layout, their data a hole in the file."""
    parts: dict[str, list[TensorSpec]] = {}
    weight_map: dict[str, str] = {}
    for spec in tensors(config):
        weight_map[spec.key] = shard_of(spec.key, config)
        parts.setdefault(weight_map[spec.key], []).append(spec)
    for name, specs in parts.items():
        header: dict[str, Any] = {}
        end = 0
        for spec in specs:
            start, end = end, end + spec.nbytes
            offsets = [start, end]
            header[spec.key] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # as the library does, so that data are aligned
        with (folder / name).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_all_208215_tensors_of_k2_thinking_open_and_check_in_seconds(tmp_path: Path) -> None:
    try:
        write_headers(tmp_path, K2_THINKING)
    except OSError as error:
        pytest.skip(f"this file system holds no 594 GB of holes: {error}")
    start = time.perf_counter()
    shards = Shards(tmp_path)
    check(shards, K2_THINKING)
    assert time.perf_counter() - start < 30  # room for shared cores
    assert len(shards.keys) == 208_215
    assert shards.bytes_total == 594_205_904_896
    last = "model.layers.60.mlp.experts.383.down_proj.weight_packed"
    assert shards.read(last)[-1, -1] == 0


# config against shards


def test_stale_frequencies_and_prediction_layers_are_no_error(tmp_path: Path) -> None:
    content = values(SMALL)
    content["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    content["model.layers.2.eh_proj.weight"] = torch.zeros(4)
    save_file(content, tmp_path / SINGLE)
    check(Shards(tmp_path), replace(SMALL, num_nextn_predict_layers=1))
    assert "model.layers.2.eh_proj.weight" in refused(tmp_path, SMALL)


def test_weight_shapes_may_be_int64(tmp_path: Path) -> None:
    content = values(SMALL)
    for key in content:
        if key.endswith("weight_shape"):
            content[key] = content[key].long()
    save_file(content, tmp_path / SINGLE)
    check(Shards(tmp_path), SMALL)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    content = values(SMALL)
    del content["model.norm.weight"]
    write_sharded(tmp_path, content)
    assert "model.norm.weight" in refused(tmp_path, SMALL)


def test_an_extra_tensor_is_named_with_its_file(tmp_path: Path) -> None:
    save_file(values(SMALL) | {"model.extra.weight": torch.zeros(1)}, tmp_path / SINGLE)
    text = refused(tmp_path, SMALL)
    assert "model.extra.weight" in text and SINGLE in text


def test_a_wrong_shape_is_named_with_its_file(tmp_path: Path) -> None:
    content = values(SMALL)
    content["lm_head.weight"] = content["lm_head.weight"].reshape(32, 128)
    write_sharded(tmp_path, content)
    text = refused(tmp_path, SMALL)
    assert "lm_head.weight" in text and "[32, 128]" in text and "[64, 64]" in text
    assert shard_name(3, 3) in text


def test_a_wrong_dtype_is_named_with_its_file(tmp_path: Path) -> None:
    content = values(SMALL)
    content["lm_head.weight"] = content["lm_head.weight"].half()
    write_sharded(tmp_path, content)
    text = refused(tmp_path, SMALL)
    assert "as F16" in text and "BF16" in text and shard_name(3, 3) in text


def test_plain_experts_under_a_quantised_config_are_refused(tmp_path: Path) -> None:
    save_file(values(replace(SMALL, quantization_config=None)), tmp_path / SINGLE)
    assert "weight_packed" in refused(tmp_path, SMALL)


def test_an_unknown_key_is_refused(single: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.bias'"):
        Shards(single).read("lm_head.bias")


# folders and indices


def test_no_folder(tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert INDEX in refused(tmp_path)


def test_both_layouts_at_once(sharded: Path) -> None:
    save_file({"x": torch.zeros(1)}, sharded / SINGLE)
    assert "both" in refused(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / shard_name(2, 3)).unlink()
    assert shard_name(2, 3) in refused(sharded)


def change_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(change(index)))


def test_an_index_that_places_a_tensor_elsewhere(sharded: Path) -> None:
    def change(index: Any) -> Any:
        index["weight_map"]["lm_head.weight"] = shard_name(1, 3)
        return index

    change_index(sharded, change)
    text = refused(sharded)
    assert "lm_head.weight" in text and INDEX in text


def test_an_index_that_lacks_a_tensor(sharded: Path) -> None:
    def change(index: Any) -> Any:
        del index["weight_map"]["lm_head.weight"]
        return index

    change_index(sharded, change)
    assert "lm_head.weight" in refused(sharded)


def test_an_index_with_a_tensor_that_is_nowhere(sharded: Path) -> None:
    def change(index: Any) -> Any:
        index["weight_map"]["lm_head.bias"] = shard_name(1, 3)
        return index

    change_index(sharded, change)
    assert "lm_head.bias" in refused(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/hosts", "", "..", 3, None, "a\\b"])
def test_an_index_that_leaves_its_folder(name: object, sharded: Path) -> None:
    def change(index: Any) -> Any:
        index["weight_map"]["lm_head.weight"] = name
        return index

    change_index(sharded, change)
    assert "lm_head.weight" in refused(sharded)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b"\xff",
        b"[" * 100_000,
        b'{"weight_map": {"a": "x", "a": "y"}}',
    ],
)
def test_a_damaged_index(content: bytes, sharded: Path) -> None:
    (sharded / INDEX).write_bytes(content)
    assert INDEX in refused(sharded)


def test_the_same_tensor_in_two_shards(sharded: Path) -> None:
    first, third = sharded / shard_name(1, 3), sharded / shard_name(3, 3)
    third.write_bytes(first.read_bytes())
    assert shard_name(3, 3) in refused(sharded)


# damaged headers


def entry(header: dict[str, Any], key: str = "model.norm.weight") -> dict[str, Any]:
    inner: dict[str, Any] = header[key]
    return inner


@pytest.mark.parametrize(
    "change",
    [
        lambda h: [],
        lambda h: h | {"__metadata__": 3},
        lambda h: h | {"__metadata__": {"a": 1}},
        lambda h: h | {"model.norm.weight": 3},
        lambda h: h | {"model.norm.weight": {"dtype": "BF16", "shape": [64]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"more": 1}},
        lambda h: h | {"model.norm.weight": entry(h) | {"dtype": "BF17"}},
        lambda h: h | {"model.norm.weight": entry(h) | {"dtype": ["BF16"]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"dtype": "F32"}},
        lambda h: h | {"model.norm.weight": entry(h) | {"shape": [65]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"shape": [-64]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"shape": [64.0]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"shape": [True, 64]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"shape": "64"}},
        lambda h: h | {"model.norm.weight": entry(h) | {"data_offsets": [0]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"data_offsets": [-128, 0]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"data_offsets": [0, 128]}},
        lambda h: h | {"model.norm.weight": entry(h) | {"data_offsets": [10**30, 10**30 + 128]}},
        lambda h: {key: value for key, value in h.items() if key != "model.norm.weight"},
        lambda h: h | {"again": entry(h)},
        lambda h: h | {"nothing": {"dtype": "F32", "shape": [1], "data_offsets": [0, 0]}},
    ],
)
def test_an_inconsistent_header_is_refused(change: Any, single: Path) -> None:
    edit_header(single / SINGLE, change)
    assert SINGLE in refused(single)


def test_a_key_that_stands_twice_is_refused(single: Path) -> None:
    text = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    text += b'"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    (single / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + b"ab")
    assert "twice" in refused(single)


def test_bytes_after_the_last_tensor_are_refused(single: Path) -> None:
    with (single / SINGLE).open("ab") as stream:
        stream.write(b"\0")
    assert SINGLE in refused(single)


def test_a_header_beyond_the_formats_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    file.write_bytes(struct.pack("<Q", 2**40))
    with file.open("r+b") as stream:
        stream.truncate(2**41)  # sparse: no disk is used
    assert "claims a header" in refused(tmp_path)


def test_a_shard_cut_anywhere_is_refused(sharded: Path) -> None:
    file = sharded / shard_name(1, 3)
    raw = file.read_bytes()
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    chance = random.Random(0)
    points = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(raw) - 1}
    points |= {chance.randrange(header) for _ in range(100)}
    points |= {chance.randrange(header, len(raw)) for _ in range(50)}
    for point in sorted(points):
        file.write_bytes(raw[:point])
        assert file.name in refused(sharded), point


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def small_shards(folder: Path) -> dict[str, torch.Tensor]:
    content = {f"t{i}": torch.arange(i * 10, i * 10 + 6.0).reshape(2, 3) for i in range(2)}
    content["h"] = torch.ones(5, dtype=torch.bfloat16)
    write_sharded(folder, content, count=1)
    return content


def test_every_single_bit_of_a_header_under_an_index(tmp_path: Path) -> None:
    """Refused, or the same tensors: only the texts under __metadata__ may change unseen."""
    content = small_shards(tmp_path)
    file = tmp_path / shard_name(1, 1)
    raw = file.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    metadata = raw.index(b'{"__metadata__"'), raw.index(b"}", raw.index(b"__metadata__"))
    passed = 0
    for bit in range(end * 8):
        file.write_bytes(flipped(raw, bit))
        try:
            shards = Shards(tmp_path)
        except CheckpointError:
            continue
        passed += 1
        assert metadata[0] < bit // 8 < metadata[1], bit
        assert set(shards.keys) == set(content)
        for key, tensor in content.items():
            assert torch.equal(shards.read(key), tensor) and shards.read(key).dtype == tensor.dtype
    assert passed < 8 * (metadata[1] - metadata[0])


def test_every_single_bit_of_a_header_without_index_is_refused_or_seen_by_check(
    tmp_path: Path,
) -> None:
    """Without an index a name can change; the tensor under the old name is then missing."""
    content = small_shards(tmp_path)
    file = (tmp_path / shard_name(1, 1)).rename(tmp_path / SINGLE)
    (tmp_path / INDEX).unlink()
    raw = file.read_bytes()
    for bit in range((8 + struct.unpack("<Q", raw[:8])[0]) * 8):
        file.write_bytes(flipped(raw, bit))
        try:
            shards = Shards(tmp_path)
            for key, tensor in content.items():
                read = shards.read(key)
                assert torch.equal(read, tensor) and read.dtype == tensor.dtype, (bit, key)
        except CheckpointError:
            continue


def test_several_flipped_bits_never_raise_anything_else(sharded: Path) -> None:
    file = sharded / shard_name(2, 3)
    raw = file.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    chance = random.Random(1)
    expected = {spec.key: spec for spec in tensors(SMALL)}
    for _ in range(300):
        changed = raw
        for _ in range(chance.randint(1, 4)):
            changed = flipped(changed, chance.randrange(end * 8))
        file.write_bytes(changed)
        try:
            shards = Shards(sharded)
            check(shards, SMALL)
        except CheckpointError:
            continue
        for key, spec in expected.items():
            assert shards.header(key).shape == spec.shape


def test_every_single_bit_of_an_index_is_refused_or_harmless(tmp_path: Path) -> None:
    content = small_shards(tmp_path)
    raw = (tmp_path / INDEX).read_bytes()
    for bit in range(len(raw) * 8):
        (tmp_path / INDEX).write_bytes(flipped(raw, bit))
        try:
            shards = Shards(tmp_path)
        except CheckpointError:
            continue
        assert set(shards.keys) == set(content), bit  # the flip was in the unread total_size
