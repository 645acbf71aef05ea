"""Checkpoints of random weights: real names, files and order, sane numbers, whole or not there."""

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import k2lab
from k2lab import cli
from k2lab.engine.taps import watch
from k2lab.errors import InputError
from k2lab.model import synthetic
from k2lab.model.load import load_model
from k2lab.model.synthetic import cut, write_synthetic
from k2lab.model.verify import verify
from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config
from k2lab.spec.costs import bytes_on_disk
from k2lab.spec.keys import shard_of, tensors
from k2lab.tensors.int4 import unpack
from k2lab.tensors.shards import INDEX, Shards

CONFIG = replace(cut(K2_NANO, 3), n_routed_experts=12, num_experts_per_tok=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(CONFIG, tmp_path_factory.mktemp("synthetic") / "wide")


def test_it_is_a_whole_checkpoint_in_k2s_own_layout(folder: Path) -> None:
    assert [passed.check for passed in verify(folder)][-1] == "sha256"
    assert K2Config.from_json(folder) == CONFIG
    shards = Shards(folder)
    assert {key: shards.header(key).file.name for key in shards.keys} == {
        spec.key: shard_of(spec.key, CONFIG) for spec in tensors(CONFIG)
    }
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == shards.bytes_total == bytes_on_disk(CONFIG)


def test_tensors_lie_in_the_order_in_which_the_library_writes_them(
    folder: Path, tmp_path: Path
) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        save_file(load_file(file), tmp_path / "again", metadata={"format": "pt"})

        def order(path: Path) -> list[str]:
            with path.open("rb") as stream:
                head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            del head["__metadata__"]
            return sorted(head, key=lambda key: head[key]["data_offsets"])

        assert order(tmp_path / "again") == order(file)


def test_values_inside_the_network_neither_vanish_nor_explode(folder: Path) -> None:
    model = load_model(folder)
    seen: dict[str, float] = {}
    tap = watch("*", CONFIG, lambda site, value: seen.update({site: float(value.float().std())}))
    with torch.inference_mode():
        ids = torch.arange(64)[None]
        logits = model(ids, model.step(64, cache=None, tap=tap))
    assert bool(logits.isfinite().all())
    assert 0.3 < float(logits.std()) < 3
    for site in ("layers.0.mlp.output", "layers.2.self_attn.output", "layers.2.mlp.experts.rows"):
        assert 0.01 < seen[site] < 10, site


def test_experts_differ_and_all_are_chosen(folder: Path) -> None:
    model, chosen = load_model(folder), []
    tap = watch("layers.1.mlp.router.experts", CONFIG, lambda _, value: chosen.append(value))
    with torch.inference_mode():
        model(torch.arange(200)[None], model.step(200, cache=None, tap=tap))
    assert set(torch.cat(chosen).flatten().tolist()) == set(range(12))
    shards = Shards(folder)
    base = "model.layers.1.mlp.experts"
    codes = [unpack(shards.read(f"{base}.{n}.up_proj.weight_packed")) for n in range(12)]
    assert len({code.numpy().tobytes() for code in codes}) == 12
    together = torch.stack(codes).float()
    assert (together.min(), together.max()) == (-7, 7)
    assert float(together.std()) == pytest.approx(synthetic.CODE_SPREAD, rel=0.02)


def test_the_same_config_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_synthetic(CONFIG, tmp_path / "wide")
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_every_byte_is_reported(tmp_path: Path) -> None:
    told: list[int] = []
    write_synthetic(CONFIG, tmp_path / "new", told.append)
    assert sum(told) == bytes_on_disk(CONFIG)


def test_writing_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(CONFIG, tmp_path / "new", stop)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_direct_writes_will_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int, *more: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(synthetic, "BLOCK", 2**16)  # several blocks a file
    again = write_synthetic(CONFIG, tmp_path / "wide")
    for file in folder.glob("*.safetensors"):
        assert (again / file.name).stat().st_size == file.stat().st_size
    assert [passed.check for passed in verify(again)][-1] == "sha256"


def test_a_disk_too_small_is_refused_with_the_layers_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = bytes_on_disk(cut(K2_THINKING, 3)) + synthetic.SPARE
    usage = namedtuple("usage", "total used free")(0, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="Ask for 3 layers at most"):
        write_synthetic(K2_THINKING, tmp_path / "k2")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_stays_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "POOL", 2**16)
    monkeypatch.chdir(tmp_path)  # like a disk that is mounted there, nobody can put another for it
    before = tmp_path.stat().st_ino
    write_synthetic(CONFIG, Path())
    assert tmp_path.stat().st_ino == before
    assert [passed.check for passed in verify(Path())][-1] == "sha256"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_synthetic(CONFIG, tmp_path)
    assert (tmp_path / "note").read_text() == "mine"


@pytest.mark.parametrize("layers", [0, 62])
def test_a_model_is_cut_to_what_it_has(layers: int) -> None:
    with pytest.raises(InputError, match="1 to 61"):
        cut(K2_THINKING, layers)
    with pytest.raises(InputError, match="8 to 384"):
        cut(K2_THINKING, 2, experts=4)
    with pytest.raises(InputError, match="512 to 163840"):
        cut(K2_THINKING, 2, vocabulary=200)


def test_fewer_experts_and_tokens_keep_the_width(tmp_path: Path) -> None:
    config = cut(K2_NANO, 2, experts=16, vocabulary=600)
    assert (config.hidden_size, config.num_experts_per_tok) == (192, 8)
    verify(write_synthetic(config, tmp_path / "few"))
    lab = k2lab.load(tmp_path / "few")
    assert lab.tokenizer.n_vocab == 600
    assert lab.config.stop_ids == (lab.tokenizer.special("<|im_end|>"),)
    run = lab.run("Hello", max_tokens=4).wait()
    assert run.state == "done", run.error


def test_a_cut_keeps_width_and_bytes_per_layer() -> None:
    sizes = [bytes_on_disk(cut(K2_THINKING, layers)) for layers in (1, 2, 3)]
    assert len(set(np.diff(sizes).tolist())) == 1
    assert cut(K2_THINKING, 1).moe_layers == ()


def test_the_command_writes_and_prints_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    given = ["export", "--synthetic", "k2-nano", "--layers", "2", str(target)]
    assert cli.main(given) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert K2Config.from_json(target).num_hidden_layers == 2
