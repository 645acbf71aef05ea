"""Peers run the same model; one that cannot be run says why."""

import importlib.util
from pathlib import Path

import pytest
import torch

from k2lab.evals.peers import peers
from k2lab.spec.config import K2_THINKING, K2Config


def test_a_model_too_large_is_left_out_and_says_why() -> None:
    found, notes = peers(Path("nowhere"), K2_THINKING, [1, 2, 3], torch.device("cpu"))
    assert not found
    assert all("memory suffices" in notes[name] for name in ("accelerate", "airllm"))


def test_those_that_are_installed_decode(small_checkpoint: Path) -> None:
    pytest.importorskip("accelerate", reason="the peer is not installed")
    config = K2Config.from_json(small_checkpoint)
    before = set(small_checkpoint.parent.iterdir())
    found, notes = peers(small_checkpoint, config, list(range(8)), torch.device("cpu"))
    assert set(small_checkpoint.parent.iterdir()) == before
    assert "accelerate" in found[0].name
    assert all(each.cold_tok_s > 0 and each.warm_tok_s > 0 for each in found)
    if importlib.util.find_spec("airllm") is None:
        assert "pip install airllm" in notes["airllm"]
