"""Damaged checkpoints are found, each by its own check."""

import json
import shutil
from pathlib import Path

import pytest

from k2lab.errors import CheckpointError, ConfigError, K2LabError, TokenizerError
from k2lab.model.export import SUMS
from k2lab.model.verify import verify

CHECKS = ["config", "headers", "tensors", "tokenizer", "sha256"]


@pytest.fixture
def copy(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))


def passed_before(folder: Path, error: type[K2LabError]) -> list[str]:
    """The checks that passed before this error was raised."""
    checks, passed = verify(folder), []
    with pytest.raises(error):
        while True:
            passed.append(next(checks).check)
    return passed


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_whole_checkpoint_passes_all(copy: Path) -> None:
    assert [passed.check for passed in verify(copy)] == CHECKS


def test_missing_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert passed_before(copy, ConfigError) == []


def test_cut_file(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert passed_before(copy, CheckpointError) == CHECKS[:1]


def test_config_of_another_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "n_routed_experts": 7}))
    assert passed_before(copy, CheckpointError) == CHECKS[:2]


def test_cut_tokenizer(copy: Path) -> None:
    file = copy / "tiktoken.model"
    file.write_bytes(file.read_bytes()[:-7])
    assert passed_before(copy, TokenizerError) == CHECKS[:3]


def test_flipped_bit_in_the_data(copy: Path) -> None:
    flip(copy / "model.safetensors", -5)
    assert passed_before(copy, CheckpointError) == CHECKS[:4]


def test_sum_in_a_card_counts(copy: Path) -> None:
    sums = dict(reversed(line.split()) for line in (copy / SUMS).read_text().splitlines())
    (copy / SUMS).unlink()
    flip(copy / "model.safetensors", -5)
    detail = list(verify(copy))[-1].detail
    assert detail.startswith("none stated")
    row = f"| `model.safetensors` | `{sums['model.safetensors']}` |\n"
    (copy / "CARD.md").write_text(f"# Card\n\n{row}")
    assert passed_before(copy, CheckpointError) == CHECKS[:4]


def test_sums_in_capitals_count(copy: Path) -> None:
    sums = (copy / SUMS).read_text().split("\n")
    lines = [f"{line[:64].upper()}{line[64:]}" for line in sums]
    (copy / SUMS).write_text("\n".join(lines))
    assert [passed.check for passed in verify(copy)] == CHECKS
    flip(copy / "model.safetensors", -5)
    assert passed_before(copy, CheckpointError) == CHECKS[:4]


def test_a_shard_without_a_sum_is_told(copy: Path) -> None:
    lines = (copy / SUMS).read_text().splitlines(keepends=True)
    (copy / SUMS).write_text("".join(line for line in lines if ".safetensors" not in line))
    detail = list(verify(copy))[-1].detail
    assert "files; none stated for 1 of 1 shards" in detail


def test_the_folders_own_sums_count_more_than_a_card(copy: Path) -> None:
    (copy / "CARD.md").write_text(f"| `model.safetensors` | `{'0' * 64}` |\n")
    assert [passed.check for passed in verify(copy)] == CHECKS
    flip(copy / "model.safetensors", -5)
    assert passed_before(copy, CheckpointError) == CHECKS[:4]
