"""Slabs from shards: the right bytes, few reads, and lost files named."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from k2lab.errors import CheckpointError
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.tensors.shards import Shards
from k2lab.weights import slab
from k2lab.weights.slab import Slabs

Write = Callable[..., Path]
INT4: dict[str, Any] = {"quantization_config": K2_NANO.quantization_config, "dtype": "bfloat16"}
FILES = Path("/proc/self/fd")  # what this process has open


@pytest.fixture(params=[INT4, {}, {"dtype": "bfloat16"}], ids=["int4", "float32", "bfloat16"])
def config(request: pytest.FixtureRequest, tiny_config: Callable[..., K2Config]) -> K2Config:
    return tiny_config(**request.param)


@pytest.fixture
def folder(tmp_path: Path, config: K2Config, random_checkpoint: Write) -> Path:
    return random_checkpoint(tmp_path / "whole", config, 5)


def slabs_of(folder: Path, config: K2Config) -> Slabs:
    return Slabs(Shards(folder), config)


def test_a_slab_holds_the_tensors_of_its_expert(folder: Path, config: K2Config) -> None:
    slabs, shards = slabs_of(folder, config), Shards(folder)
    memory = np.zeros(slabs.layout.nbytes, np.uint8)
    for layer, expert in ((1, 0), (1, 15), (2, 7)):
        read = slabs.read_into(layer, expert, memory)
        assert slabs.layout.nbytes <= read <= slabs.layout.nbytes + 2 * 8
        views = slabs.layout.view(torch.from_numpy(memory))
        for name, view in views.items():
            key = f"model.layers.{layer}.mlp.experts.{expert}.{name}"
            assert torch.equal(view, shards.read(key)), key
        leaf = slabs.layout.parts[0].name.split(".")[1]
        both = slabs.layout.gate_up(torch.from_numpy(memory), leaf)
        gate, up = (views[f"{name}.{leaf}"] for name in ("gate_proj", "up_proj"))
        assert torch.equal(both, torch.stack([gate, up]))


def test_neighbours_are_one_read(
    folder: Path, config: K2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = slabs_of(folder, config)
    calls = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: calls.append(given) or real(*given))
    slabs.read_into(1, 3, np.empty(slabs.layout.nbytes, np.uint8))
    # Codes lie together and scales lie together, each with 8 bytes of shape between; plain
    # matrices of one expert lie side by side.
    assert len(calls) <= (2 if config.quantization_config else 1)


def test_reads_that_stop_half_way_go_on(
    folder: Path, config: K2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = slabs_of(folder, config)
    whole = np.zeros(slabs.layout.nbytes, np.uint8)
    slabs.read_into(2, 4, whole)

    def short(fd: int, buffers: list[Any], offset: int) -> int:
        done = os.pread(fd, min(len(buffers[0]), 777), offset)
        buffers[0][: len(done)] = done
        return len(done)

    monkeypatch.setattr(os, "preadv", short)
    parts = np.zeros_like(whole)
    slabs.read_into(2, 4, parts)
    assert np.array_equal(parts, whole)


def test_any_other_tensor_is_read_into_its_own_memory(folder: Path, config: K2Config) -> None:
    slabs, shards = slabs_of(folder, config), Shards(folder)
    for key in ("model.embed_tokens.weight", "model.layers.1.mlp.gate.e_score_correction_bias"):
        assert torch.equal(slabs.read(key), shards.read(key))


def lose(file: Path) -> None:
    file.rename(file.with_suffix(".away"))


def shrink(file: Path) -> None:
    file.with_suffix(".away").write_bytes(file.read_bytes())
    os.truncate(file, 5000)


def swap(file: Path) -> None:
    """Another file of the same length."""
    lose(file)
    named = load_file(file.with_suffix(".away"))
    save_file({key: torch.zeros(1) for key in named}, file)
    os.truncate(file, file.with_suffix(".away").stat().st_size)


def retrain(file: Path) -> None:
    """Other numbers under the same header."""
    lose(file)
    named = load_file(file.with_suffix(".away"))
    changed = {key: value.flip(0).contiguous() for key, value in named.items()}
    save_file(changed, file, metadata={"format": "pt"})


def forbid(file: Path) -> None:
    """What stands in its place cannot be read as a file, even by a superuser."""
    lose(file)
    file.mkdir()


@pytest.mark.parametrize("damage", [lose, shrink, swap, retrain, forbid])
def test_a_lost_file_is_named_with_its_tensor_and_may_come_back(
    damage: Callable[[Path], None], folder: Path, config: K2Config
) -> None:
    slabs = slabs_of(folder, config)
    memory = np.zeros(slabs.layout.nbytes, np.uint8)
    slabs.read_into(1, 3, memory)
    before = memory.copy()
    file = folder / "model.safetensors"
    damage(file)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors.*layers\.1\.mlp\.experts\.3"
        ):
            slabs.read_into(1, 3, memory)
    if file.is_dir():
        file.rmdir()
    file.with_suffix(".away").replace(file)
    slabs.read_into(1, 3, memory)
    assert np.array_equal(memory, before)


def test_an_error_of_the_disk_names_the_tensor_it_fell_on(
    folder: Path, config: K2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = slabs_of(folder, config)

    def broken(fd: int, buffers: list[Any], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts\.9\..*Input/output error"):
        slabs.read_into(2, 9, np.empty(slabs.layout.nbytes, np.uint8))


def test_no_file_stays_open(folder: Path, config: K2Config) -> None:
    count = len(list(FILES.iterdir())) if FILES.is_dir() else None
    if count is None:
        pytest.skip("the system does not list open files")
    slabs = slabs_of(folder, config)
    assert len(list(FILES.iterdir())) == count + 1
    del slabs
    assert len(list(FILES.iterdir())) == count


def test_the_scrap_between_two_tensors_is_small() -> None:
    assert slab.SCRAP <= 4096
