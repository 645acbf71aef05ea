"""Memory: what is free by the system and the limit of a container, and weights moved together."""

from itertools import pairwise
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


def test_tensors_lie_one_after_the_other_and_keep_numbers_and_strides() -> None:
    given = [
        torch.randn(3, 5),
        torch.randn(4, 7, 6).mT,  # as stacks of experts lie
        torch.arange(9, dtype=torch.int16),
        torch.randn(2, 8, dtype=torch.bfloat16),
    ]
    found = memory.together(given)
    for one, other in zip(found, given, strict=True):
        assert torch.equal(one, other)
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
    starts = [each.data_ptr() for each in found]
    assert [later - start for start, later in pairwise(starts)] == [64, 704, 64]
    assert all(start % memory.LINE == 0 for start in starts)


def test_without_huge_pages_tensors_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [torch.ones(3)]
    monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    assert memory.together(given)[0] is given[0]
