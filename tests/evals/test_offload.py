"""The offload benchmark: its figures agree with each other; how large they are is no test."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from k2lab.errors import InputError
from k2lab.evals import offload as module
from k2lab.evals.machine import settle
from k2lab.evals.offload import Passage, offload
from k2lab.spec.config import K2_NANO

needs_linux = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise")


@needs_linux
def test_figures_of_a_small_checkpoint_agree(small_checkpoint: Path) -> None:
    found = offload(small_checkpoint, tokens=4, peer=False)
    assert (found.experts, found.moe_layers, found.peers) == (8, 2, ())
    assert found.cold.slots == 2
    assert found.cold.hit_rate == found.warm.hit_rate or found.cold.slots < found.experts
    assert [point.slots for point in found.sweep] == [2, 4, 8]
    assert found.sweep[-1].hit_rate == 1.0
    assert found.sweep[-1].bytes_per_token == 0
    assert found.bytes_ratio == pytest.approx(1, abs=0.02)
    assert found.share_of_disk == pytest.approx(found.cold.bytes_s / found.disk_bytes_s)
    cold = found.cold
    assert cold.delivery_bytes_s >= cold.layers_bytes_s >= cold.bytes_s
    assert found.layers_share_of_disk == pytest.approx(cold.layers_bytes_s / found.disk_bytes_s)
    assert all(each.others is not None and each.others >= 0 for each in (found.cold, found.warm))
    budgets = [point.device_budget for point in found.sweep]
    assert budgets == sorted(set(budgets))
    assert [check.what for check in found.checks][:3] == [
        "seconds to load, cold",
        "tokens/s, cold",
        "tokens/s, warm",
    ]
    for check in found.checks:
        assert check.ratio == pytest.approx(check.planned / check.measured)
    assert [check.measured for check in found.checks[3:]] == [each.tok_s for each in found.sweep]


@pytest.mark.parametrize(
    ("device", "cached", "share"),
    [(None, True, 0), (None, False, 1), (0.0, True, 0), (250.0, True, 0.25), (1100.0, False, 1)],
)
def test_the_planner_is_told_what_came_from_the_disk(
    device: float | None, cached: bool, share: float
) -> None:
    passage = Passage(
        slots=8, device_budget=10**6, tok_s=2.0, bytes_per_token=1000.0,
        least_bytes_per_token=1000.0, device_bytes_per_token=device, bytes_s=2000.0,
        layers_bytes_s=2000.0, delivery_bytes_s=2000.0, hit_rate=0.0, stall_ms_per_token=0.0,
        others=None,
    )  # fmt: skip
    assert module._from_disk(passage, cached=cached) == share


def test_a_device_that_is_not_there_is_named(small_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="device is 'abacus'"):
        offload(small_checkpoint, device="abacus")


def test_clocks_are_read_once_a_gpu_has_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        timer = module._Delivery(K2_NANO, partial(settle, device))
        timer("layers.1.mlp.router.weights", torch.zeros(1))
        timer("layers.1.mlp.experts.rows", torch.zeros(1))
        assert timer.seconds > 0
    assert waited == [torch.device("cuda", 1)] * 2
