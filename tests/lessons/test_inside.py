"""Ways into the network: they see what the network did, and a divergence is one."""

import pytest
import torch

import k2lab
from k2lab.errors import InputError
from k2lab.lessons.inside import divergence, forward, look


def test_looking_shows_what_was_computed() -> None:
    lab = k2lab.load()
    ids = torch.tensor([lab.tokenizer.encode("What is 3 * 14?")])
    logits = forward(lab, ids)
    assert torch.equal(logits, lab.logits(ids)[0])
    seen = look(lab, ids, "layers.2.mlp.router.*")
    assert set(seen) >= {f"layers.2.mlp.router.{name}" for name in ("scores", "choice", "experts")}
    chosen = seen["layers.2.mlp.router.choice"].topk(lab.config.num_experts_per_tok).indices
    assert torch.equal(chosen, seen["layers.2.mlp.router.experts"])
    absorbed = forward(lab, ids, form="absorbed")
    assert float((absorbed - logits).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([5, 6]),
        torch.tensor([[5], [6]]),
        torch.tensor([[5.0]]),
        torch.tensor([[5, 10**6]]),
        torch.zeros(1, 0, dtype=torch.int64),
        [[5, 6]],
    ],
)
def test_ids_that_are_no_text_are_refused(ids: object) -> None:
    lab = k2lab.load()
    with pytest.raises(InputError):
        forward(lab, ids)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        look(lab, ids, "layers.2.mlp.router.*")  # type: ignore[arg-type]


def test_a_form_that_is_none_is_refused() -> None:
    lab = k2lab.load()
    with pytest.raises(InputError, match="expanded, absorbed, fused"):
        forward(lab, torch.tensor([[5, 6]]), form="foo")  # type: ignore[arg-type]


def test_a_divergence_is_that_of_the_distributions() -> None:
    plain = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    assert divergence(plain, plain) == 0
    assert divergence(plain, plain + 5) < 1e-6, "a constant changes no probability"
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = float((p * (p / q).log()).sum())
    assert abs(divergence(p.log()[None], q.log()[None]) - expected) < 1e-6
