"""What a machine is: data sheets by name, and rates that are measured and sane."""

import math
from pathlib import Path

import pytest
import torch

from k2lab.errors import InputError
from k2lab.evals import machine
from k2lab.evals.machine import described, measured
from k2lab.model.synthetic import cut, write_synthetic
from k2lab.spec.config import K2_NANO, K2Config


@pytest.mark.parametrize(
    ("text", "gpus", "size"),
    [("8xH200", 8, 139.7), ("H100", 1, 79.1), ("2 x 24GiB", 2, 24), ("rtx 4090", 1, 23.5)],
)
def test_gpus_are_known_by_name_or_size(text: str, gpus: int, size: float) -> None:
    found = described(text, host=10**9, disk=None, link=None)
    assert (found.gpus, found.device_bytes) == (gpus, int(size * 2**30))
    assert (found.link_rate, found.disk_rate) == (machine.PCIE_RATE, machine.NVME_RATE)
    given = described(text, host=10**9, disk=1e9, link=2e9)
    assert (given.link_rate, given.disk_rate) == (2e9, 1e9)


@pytest.mark.parametrize("rates", [{"disk": 0}, {"link": 0}, {"disk": -1.0}, {"link": math.nan}])
def test_a_rate_of_nothing_is_refused_and_never_replaced(rates: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a rate above 0"):
        described("H100", host=10**9, **{"disk": None, "link": None} | rates)
    if "disk" in rates:
        with pytest.raises(InputError, match="a rate above 0"):
            measured(K2_NANO, None, disk=rates["disk"])


@pytest.mark.parametrize("text", ["", "moon", "0xH100", "8x"])
def test_other_gpus_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InputError):
        described(text, host=10**9, disk=None, link=None)


def test_a_small_model_is_measured_with_its_own_store(small_checkpoint: Path) -> None:
    found = measured(K2Config.from_json(small_checkpoint), small_checkpoint)
    assert found.gpus == 0
    assert found.device_bytes > 0
    assert found.memory_rate > 1e6
    assert found.link_rate > 1e3
    assert 1e-6 < found.layer_seconds < 1
    assert found.miss_seconds >= 0
    assert found.disk_rate > 1e5
    assert found.expert_rate == math.inf  # in the seconds of a layer
    assert 1e5 < found.load_rate < 1e13


def test_large_experts_are_measured_in_the_form_of_their_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "IN_PLACE_LIMIT", 2**17)  # below any size, above none
    found = measured(K2_NANO, None, disk=5e8, memory=10**10)
    assert (found.disk_rate, found.host_bytes, found.device_bytes) == (5e8, 10**10, 10**10)
    assert 1e6 < found.expert_rate < 1e13
    assert 1e5 < found.link_rate < 1e12
    assert found.miss_seconds == 0
    assert found.fetch_rate == math.inf  # no files
    assert found.name == f"CPU, {torch.get_num_threads()} threads"


def test_large_experts_are_brought_from_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cut(K2_NANO, 2)
    folder = write_synthetic(config, tmp_path / "narrow")
    monkeypatch.setattr(machine, "IN_PLACE_LIMIT", 0)
    evicted: list[int] = []
    monkeypatch.setattr(machine, "evict", lambda files: evicted.append(len(files)))
    found = measured(config, folder)
    assert 1e3 < found.fetch_rate < 1e12
    assert 1e3 < found.link_rate < 1e12
    assert evicted == [len(list(folder.glob("*.safetensors")))] * (machine.TRIES + 3)
    assert measured(config, folder, disk=5e8).fetch_rate == math.inf
