"""The disk itself: how fast it gives a file in order, and how to make the system forget one.

Read through the page cache, as everything here reads: two processes that load one folder share it.
What it is not: a benchmark of drives; other programs on the machine are measured along.
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

BLOCK = 8 * 2**20  # bytes of one read
STRETCH = 2**28  # bytes read in order before another place is looked up
SAMPLE = 2**30  # bytes after which the measurement has seen enough


def disk_rate(files: Sequence[Path]) -> float:
    """Bytes per second of reading stretches of the files in order, their pages evicted before.

    The places are drawn anew each time, as what was read lately may still lie in a cache further
    down. All is done twice and the first time is thrown away: it pays for the page cache's memory,
    which the host of a virtual machine has to find (two thirds of the time, measured), and a store
    that runs uses again what it has just given back.
    """
    places = [(file, start) for file in files for start in range(0, _size(file), STRETCH)]
    random.shuffle(places)
    count = max(1, SAMPLE // STRETCH)
    # Other places the second time, where there are enough of them.
    _read(places[:count])
    evict(files)
    began = time.perf_counter()
    read = _read(places[-count:])
    seconds = time.perf_counter() - began
    evict(files)
    return read / seconds


def _size(file: Path) -> int:
    return file.stat().st_size


def _read(places: Sequence[tuple[Path, int]]) -> int:
    buffer, total = bytearray(BLOCK), 0
    for file, start in places:
        with file.open("rb", buffering=0) as stream:
            stream.seek(start)
            count = 0
            while count < STRETCH and (read := stream.readinto(buffer)):
                count += read
        total += count
    return total


def evict(files: Sequence[Path]) -> None:
    """Ask the system to forget the pages of these files; others keep theirs."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are still to be written are kept otherwise
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def device_bytes() -> int | None:
    """Bytes that this process has read from block devices; None where nobody counts."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return int(next(line for line in lines if line.startswith("read_bytes:")).split()[1])
