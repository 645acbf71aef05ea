"""The disk itself: how fast it gives a file in order, and how to make the system forget one.

Read through the page cache, as everything here reads: two processes that load one folder share it.
What it is not: a benchmark of drives; other programs on the machine are measured along.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

BLOCK = 8 * 2**20  # bytes of one read
SAMPLE = 2**30  # bytes after which the measurement has seen enough


def disk_rate(files: Sequence[Path]) -> float:
    """Bytes per second of reading the files in order, their pages evicted before."""
    evict(files)
    buffer, count = bytearray(BLOCK), 0
    began = time.perf_counter()
    for file in sorted(files, key=lambda each: -each.stat().st_size):
        with file.open("rb", buffering=0) as stream:
            while count < SAMPLE and (read := stream.readinto(buffer)):
                count += read
    return count / (time.perf_counter() - began)


def evict(files: Sequence[Path]) -> None:
    """Ask the system to forget the pages of these files; others keep theirs."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are still to be written are kept otherwise
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
