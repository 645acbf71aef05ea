"""Memory: how much of a GPU's or of this machine's is free, and weights close together in it."""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of this process in a container
HUGE_PAGE = 2**21  # bytes
LINE = 64  # bytes that a processor reads at once


def free(device: torch.device) -> int:
    """Bytes that can be taken now; pages that only cache files count as free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine(), _group())


def together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers in CPU memory, one tensor after the other in huge pages.

    A token of K2-nano reads from two thousand pages of the usual size otherwise, and looking up
    where they lie takes 2 to 3 % of its time (measured). Where the system has no huge pages, the
    tensors themselves.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return list(tensors)
    sizes = [-(-each.nbytes // LINE) * LINE for each in tensors]
    pages = mmap.mmap(-1, sum(sizes) + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(advice)
    except OSError:  # a kernel without them
        return list(tensors)
    room = torch.frombuffer(pages, dtype=torch.uint8)
    at, copies = -room.data_ptr() % HUGE_PAGE, []
    for each, size in zip(tensors, sizes, strict=True):
        place = room[at : at + each.nbytes].view(each.dtype)
        copies.append(place.as_strided(each.shape, each.stride(), place.storage_offset()))
        copies[-1].copy_(each)
        at += size
    return copies


def _machine() -> int:
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Not Linux: half of all there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _group() -> int:
    """What the limit of the control group leaves; no limit is as good as all."""
    try:
        limit = (GROUP / "memory.max").read_text().strip()
        used = int((GROUP / "memory.current").read_text())
        files = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return 2**63
    cached = int(files.get("inactive_file", 0))
    return 2**63 if limit == "max" else max(0, int(limit) - used + cached)
