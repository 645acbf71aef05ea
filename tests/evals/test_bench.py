"""The comparison with the peer, on a random model: its parts, not its figures."""

from pathlib import Path

import pytest

from k2lab.evals.bench import decode


@pytest.mark.timeout(600)
def test_both_sides_decode_the_same_tokens(small_checkpoint: Path) -> None:
    pytest.importorskip("transformers", reason="the peer is not installed")
    figures = decode(small_checkpoint, tokens=12, repeats=1)
    assert figures.ratio == pytest.approx(figures.k2lab_tok_s / figures.peer_tok_s)
    assert figures.k2lab_tok_s > 0 < figures.first_token_seconds
    assert figures.peer.startswith("transformers ")
    # The export is rounded to bfloat16, so a near tie may fall the other way in the end.
    assert figures.same_tokens >= 1
