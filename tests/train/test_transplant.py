"""Another vocabulary: what both spell keeps its row, what is new starts from its old spelling."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from k2lab.spec.config import K2_NANO, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data
from k2lab.train.plan import Plan
from k2lab.train.sft import Training
from k2lab.train.transplant import ROWS, transplant

PLAN = Plan(seed=3, steps=2, batch_tokens=800, batches_per_step=1, warmup=1)


@pytest.fixture
def other_tokenizer(tiny_tokenizer: Tokenizer) -> Tokenizer:
    """Two ordinary tokens swap their ids, and a third is spelled in a new way."""
    count = tiny_tokenizer.n_vocab - 256
    pieces = [tiny_tokenizer.decode_bytes([number]) for number in range(count)]
    pieces[300], pieces[301] = pieces[301], pieces[300]
    pieces[302] = b"zebra"
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    specials = dict(tiny_tokenizer.specials)
    return Tokenizer(ranks, specials, pattern=tiny_tokenizer.pattern)


def test_rows_follow_their_tokens(
    tiny_config: Callable[..., K2Config],
    tiny_tokenizer: Tokenizer,
    other_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "POOL", 16)
    config = replace(
        tiny_config(num_hidden_layers=2, quantization_config=K2_NANO.quantization_config),
        vocab_size=tiny_tokenizer.n_vocab,
        dtype="bfloat16",
        max_position_embeddings=4096,
    )
    tiny_tokenizer.save(tmp_path / "tokenizer")
    before = Training(config, tiny_tokenizer, PLAN)
    before.run(tmp_path, lambda progress: None)

    after = Training(config, other_tokenizer, PLAN)
    transplant(after, tmp_path)
    assert (after.step, after.tokens) == (before.step, before.tokens)
    for key, value in after.store.parameters.items():
        old = before.store.parameters[key]
        if key not in ROWS:
            assert torch.equal(value, old)
            continue
        assert torch.equal(value[[300, 301]], old[[301, 300]])
        spelled = tiny_tokenizer.encode("zebra")
        assert len(spelled) > 1
        assert torch.equal(value[302], old[spelled].mean(0))
        kept = [i for i in range(config.vocab_size) if i not in (300, 301, 302)]
        assert torch.equal(value[kept], old[kept])
        state, past = after.adam.state[value], before.adam.state[old]
        assert torch.equal(state["exp_avg"][300], past["exp_avg"][301])
    after.plan = replace(PLAN, steps=3)
    after.run(tmp_path / "new", lambda progress: None)
    assert after.step == 3
