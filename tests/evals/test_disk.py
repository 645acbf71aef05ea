"""The disk is read whole or up to a sample, and forgetting changes no byte."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from k2lab.evals import disk
from k2lab.evals.disk import device_bytes, disk_rate, evict

needs_linux = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise")


@needs_linux
@pytest.mark.parametrize("sample", [2**21, 2**30])
def test_the_disk_is_read_whole_or_up_to_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(3 * 2**20))
    monkeypatch.setattr(disk, "BLOCK", 2**20)
    monkeypatch.setattr(disk, "STRETCH", 2**20)
    monkeypatch.setattr(disk, "SAMPLE", sample)
    asked, real = [], disk._read

    def counted(places: Sequence[tuple[Path, int]]) -> int:
        asked.append(sorted(place for _, place in places))
        return real(places)

    monkeypatch.setattr(disk, "_read", counted)
    assert disk_rate([file]) > 0
    whole = list(range(0, 3 * 2**20, 2**20))
    if sample > 3 * 2**20:
        assert asked == [whole, whole]
    else:
        assert [len(each) for each in asked] == [2, 2]
        assert sorted({*asked[0], *asked[1]}) == whole  # the second time what was not read yet
    evict([file])
    assert len(file.read_bytes()) == 3 * 2**20


def test_what_is_read_from_the_device_is_counted(tmp_path: Path) -> None:
    file, before = tmp_path / "data", device_bytes()
    if before is None or os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("nobody counts, or the folder lies in memory")
    file.write_bytes(os.urandom(2**22))
    evict([file])
    file.read_bytes()
    after = device_bytes()
    assert after is not None and after - before >= 2**22
