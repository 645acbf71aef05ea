"""The disk is read whole or up to a sample, and forgetting changes no byte."""

import os
from pathlib import Path

import pytest

from k2lab.evals import disk
from k2lab.evals.disk import disk_rate, evict

needs_linux = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise")


@needs_linux
def test_the_disk_is_read_whole_or_up_to_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(3 * 2**20))
    monkeypatch.setattr(disk, "BLOCK", 2**20)
    monkeypatch.setattr(disk, "SAMPLE", 2**21)
    assert disk_rate([file]) > 0
    evict([file])
    assert len(file.read_bytes()) == 3 * 2**20
