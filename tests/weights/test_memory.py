"""Free memory: what the system says, and the limit of a container."""

from pathlib import Path

import pytest
import torch

from k2lab.weights import memory

CPU = torch.device("cpu")


def test_some_memory_is_free_and_less_than_a_petabyte() -> None:
    assert 2**20 < memory.free(CPU) < 2**50


@pytest.mark.parametrize(
    ("limit", "free"), [("1000000\n", 1_000_000 - 400_000 + 300_000), ("max\n", 5000 * 1024)]
)
def test_the_limit_of_a_container_counts(
    limit: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 90000\ninactive_file 300000\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.free(CPU) == free
