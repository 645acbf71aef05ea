"""Checkpoints written for other programs."""

import json
import shutil
import subprocess
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from k2lab.errors import InputError
from k2lab.model import export
from k2lab.model.load import load_model
from k2lab.model.verify import verify
from k2lab.paths import asset
from k2lab.spec.config import K2Config
from k2lab.spec.keys import shard_of
from k2lab.tensors.shards import INDEX, SINGLE, Shards, check
from k2lab.train.store import Trainable

IDS = torch.tensor([[5, 80, 200, 7, 300, 258, 41]])


def logits(folder: Path) -> torch.Tensor:
    model = load_model(folder)
    with torch.inference_mode():
        return model(IDS, model.step(IDS.shape[1], cache=None, tap=lambda _, value: value))


def test_native_export_is_the_same_checkpoint(small_checkpoint: Path, tmp_path: Path) -> None:
    made = export.export_native(small_checkpoint, tmp_path / "native")
    for file in small_checkpoint.iterdir():
        assert (made / file.name).read_bytes() == file.read_bytes()
    assert [passed.check for passed in verify(made)][-1] == "sha256"


def test_transformers_reads_the_export_and_agrees(small_checkpoint: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the peer is not installed")
    made = export.export_transformers(small_checkpoint, tmp_path / "plain")
    config = json.loads((made / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3"
    assert "quantization_config" not in config
    model, report = transformers.DeepseekV3ForCausalLM.from_pretrained(
        made, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        peer = model.eval()(IDS).logits
    torch.testing.assert_close(logits(made), peer, atol=2e-5, rtol=1e-4)
    # Against INT4 itself: the rounding of code · scale to bfloat16, 2⁻⁹ of each expert weight.
    torch.testing.assert_close(logits(small_checkpoint), peer, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("write", [export.export_native, export.export_transformers])
def test_the_shipped_model_is_whole_in_each_form(write, tmp_path: Path) -> None:
    made = write(asset("k2-nano"), tmp_path / "out")
    assert [passed.check for passed in verify(made)][-1] == "sha256"
    assert SINGLE in (made / export.SUMS).read_text()


def test_a_card_tells_the_form_of_the_copy(small_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_checkpoint, tmp_path / "source"))
    facts, about, size = "---\nlicense: mit\n---\n", "# Small\n\nIts story.\n", "a size\n"
    (source / "README.md").write_text(f"{facts}{about}## Files\n{size}\n## More\n\nmore\n")
    made = export.export_transformers(source, tmp_path / "plain")
    card = (made / "README.md").read_text()
    assert card == f"{facts}{export.FORM}{about}## More\n\nmore\n"
    again = export.export_native(source, tmp_path / "native")
    assert (again / "README.md").read_bytes() == (source / "README.md").read_bytes()


def test_sharded_export_is_read_back(
    small_config: K2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SINGLE_LIMIT", 0)
    tensors = dict(Trainable(small_config).export())
    ordered = sorted(tensors, key=lambda key: shard_of(key, small_config))
    export.write_checkpoint(tmp_path, small_config, ((key, tensors[key]) for key in ordered))
    assert len(list(tmp_path.glob("*.safetensors"))) == small_config.num_hidden_layers + 1
    shards = Shards(tmp_path)
    check(shards, small_config)
    assert all(torch.equal(shards.read(key), value) for key, value in tensors.items())
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == shards.bytes_total


def test_sums_are_those_of_sha256sum(small_checkpoint: Path) -> None:
    subprocess.run(
        ["sha256sum", "--check", "--quiet", export.SUMS], cwd=small_checkpoint, check=True
    )


@pytest.mark.parametrize("write", [export.export_native, export.export_transformers])
def test_a_used_folder_is_never_written_to(small_checkpoint: Path, tmp_path: Path, write) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write(small_checkpoint, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("write", [export.export_native, export.export_transformers])
def test_an_export_that_is_broken_off_leaves_nothing(
    small_checkpoint: Path, tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_sums", stop)
    with pytest.raises(KeyboardInterrupt):
        write(small_checkpoint, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [export.export_native, export.export_transformers])
def test_a_disk_too_small_for_the_export_is_refused_at_once(
    small_checkpoint: Path, tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="where 1,000 are to spare"):
        write(small_checkpoint, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_meanwhile_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        export._save({"x": torch.ones(1)}, tmp_path / "absent" / "x.safetensors")
    assert caught.value.filename.endswith("x.safetensors")


def test_a_copy_of_files_that_nobody_may_write_is_written(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(small_checkpoint, tmp_path / "source"))
    for file in source.iterdir():
        file.chmod(0o444)
    made = export.export_native(source, tmp_path / "made")
    assert all(file.stat().st_mode & 0o200 for file in made.iterdir())


def test_config_survives_the_export(small_checkpoint: Path, tmp_path: Path) -> None:
    before = K2Config.from_json(small_checkpoint)
    after = K2Config.from_json(export.export_transformers(small_checkpoint, tmp_path / "plain"))
    assert after == replace(before, model_type="deepseek_v3", quantization_config=None)
