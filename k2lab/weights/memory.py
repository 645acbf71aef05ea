"""How much memory is free: of a GPU, or of this machine as far as this process may use it."""

import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of this process in a container


def free(device: torch.device) -> int:
    """Bytes that can be taken now; pages that only cache files count as free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine(), _group())


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
