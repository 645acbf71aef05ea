"""The comparison of training speeds, on a small model: both sides learn, whatever the figures."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from k2lab.spec.config import K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data
from k2lab.train.bench import Variant, _own, _peers, _steps
from k2lab.train.plan import Plan

PLAN = Plan(batch_tokens=700, batches_per_step=2, warmup=1)


@pytest.mark.parametrize("side", ["own", "peer"])
def test_a_step_of_each_side_moves_its_weights(
    side: str,
    tiny_config: Callable[..., K2Config],
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("transformers", reason="the peer is not installed")
    monkeypatch.setattr(data, "POOL", 16)
    config = replace(
        tiny_config(), quantization_config=None, dtype="float32", max_position_embeddings=4096
    )
    variants = (
        list(_own(config, tiny_tokenizer, PLAN)) if side == "own" else list(_peers(config, PLAN))
    )
    before = torch.get_num_threads()
    parts = next(_steps(tiny_tokenizer, PLAN))
    losses: list[float] = []
    cross_entropy = torch.nn.functional.cross_entropy

    def watched(*given: torch.Tensor, **options: str) -> torch.Tensor:
        found = cross_entropy(*given, **options)  # type: ignore[arg-type]
        losses.append(found.item())
        return found

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    variant: Variant = variants[0]
    try:
        assert variant.seconds(parts) > 0
        variant.seconds(parts)
    finally:
        torch.set_num_threads(before)
    assert sum(losses[2:]) / len(parts) < sum(losses[:2]) / len(parts)  # it learned
