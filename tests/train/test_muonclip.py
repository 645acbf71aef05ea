"""MuonClip: directions are orthogonal, sizes as AdamW's, logits are brought down to τ."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config
from k2lab.train.muonclip import RMS, Muon, orthogonal, qk_clip
from k2lab.train.store import Trainable

Configs = Callable[..., K2Config]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16), (5, 12, 30), (2, 3, 30, 12)])
def test_the_update_is_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonal(noise(*shape)))
    # The quintic is fast, not exact: singular values end between about 0.7 and 1.2.
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.65
    if shape[-1] != shape[-2]:
        assert float(values.min()) > 0.5


def test_the_update_keeps_the_singular_vectors() -> None:
    matrix = noise(12, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ orthogonal(matrix) @ v.mT
    off = turned - turned.diagonal().diag()
    assert float(off.abs().max()) < 1e-3


def test_each_matrix_of_a_stack_is_treated_alone() -> None:
    stack = noise(3, 8, 20)
    alone = torch.stack([orthogonal(each) for each in stack])
    torch.testing.assert_close(orthogonal(stack), alone)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert not orthogonal(torch.zeros(4, 8)).any()


@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_an_update_has_the_size_of_adamws(shape: tuple[int, int]) -> None:
    weight = torch.zeros(shape, requires_grad=True)
    weight.grad = noise(*shape)
    Muon({"o_proj": weight}, decay=0.0).step(1.0)
    size = float(weight.detach().square().mean().sqrt())
    assert size == pytest.approx(RMS, rel=0.2)
    assert weight.grad is None


def test_gate_and_up_are_two_matrices() -> None:
    weight = torch.zeros(2, 8, 30, requires_grad=True)
    gradient = noise(2, 8, 30)
    weight.grad = gradient.clone()
    Muon({"experts.gate_up": weight}, decay=0.0).step(1.0)
    gate, up = weight.detach().chunk(2, 1)
    for half, its in ((gate, gradient[:, :4]), (up, gradient[:, 4:])):
        torch.testing.assert_close(half, -RMS * 30**0.5 * orthogonal(its * 1.95))


def test_momentum_is_nesterovs_and_decay_is_decoupled() -> None:
    weight = torch.ones(4, 8, requires_grad=True)
    first, second = noise(4, 8, seed=1), noise(4, 8, seed=2)
    muon = Muon({"o_proj": weight}, momentum=0.9, decay=0.1)
    size, expected = RMS * 8**0.5, torch.ones(4, 8)
    weight.grad = first.clone()
    muon.step(0.01)
    expected = expected * (1 - 0.001) - 0.01 * size * orthogonal(first + 0.9 * first)
    weight.grad = second.clone()
    muon.step(0.01)
    moment = 0.9 * first + second
    expected = expected * (1 - 0.001) - 0.01 * size * orthogonal(second + 0.9 * moment)
    torch.testing.assert_close(weight.detach(), expected)


def test_a_saved_state_continues_exactly() -> None:
    def make() -> tuple[Tensor, Muon]:
        weight = noise(6, 10).requires_grad_()
        return weight, Muon({"o_proj": weight})

    (one, first), (two, second) = make(), make()
    for step in range(4):
        one.grad = noise(6, 10, seed=step)
        first.step(0.1)
        if step == 1:
            saved = {key: value.clone() for key, value in first.state_dict().items()}
            middle = one.detach().clone()
    with torch.no_grad():
        two.copy_(middle)
    second.load_state_dict(saved)
    for step in (2, 3):
        two.grad = noise(6, 10, seed=step)
        second.step(0.1)
    assert torch.equal(one, two)


def largest(store: Trainable, ids: Tensor) -> dict[int, Tensor]:
    """Largest attention logit of each head, by layer."""
    found: dict[int, Tensor] = {}

    def tap(site: str, value: Tensor) -> Tensor:
        if site.endswith("scores") and "self_attn" in site:
            found[int(site.split(".")[1])] = value.amax((0, 2, 3))
        return value

    model = K2(store.config, store)
    with torch.no_grad():
        model(ids, model.step(ids.shape[1], cache=None, tap=tap))
    return found


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}])
def test_the_clip_brings_the_logit_down_to_tau(
    changes: dict[str, Any], tiny_config: Configs
) -> None:
    config = tiny_config(**changes)
    store = Trainable(config, seed=4)
    ids = torch.arange(60).reshape(2, 30) * 9 % 640
    before = largest(store, ids)[0]
    tau = float(before.median())
    over = before > tau
    assert over.any()
    assert not over.all()
    clipped = qk_clip(store.parameters, {0: before}, config, tau)
    after = largest(store, ids)[0]
    assert clipped == int(over.sum())
    torch.testing.assert_close(after[over], torch.full_like(after[over], tau), rtol=1e-4, atol=0)
    torch.testing.assert_close(after[~over], before[~over])  # other heads keep theirs


def test_below_tau_the_clip_changes_nothing(tiny_config: Configs) -> None:
    config = tiny_config()
    store = Trainable(config, seed=4)
    saved = {key: value.detach().clone() for key, value in store.parameters.items()}
    logits = {layer: torch.tensor([99.0, -5.0, 0.0, 100.0]) for layer in range(3)}
    assert qk_clip(store.parameters, logits, config, 100.0) == 0
    assert all(torch.equal(saved[key], value) for key, value in store.parameters.items())


def test_the_shared_rotary_key_is_left_alone(tiny_config: Configs) -> None:
    config = tiny_config()
    store = Trainable(config, seed=4)
    saved = {key: value.detach().clone() for key, value in store.parameters.items()}
    qk_clip(store.parameters, {1: torch.tensor([1.0, 50.0, 1.0, 1.0])}, config, 25.0)
    changed = {key for key, value in store.parameters.items() if not torch.equal(saved[key], value)}
    prefix = "model.layers.1.self_attn"
    assert changed == {f"{prefix}.q_b_proj.weight", f"{prefix}.kv_b_proj.weight"}
    queries = store.parameters[f"{prefix}.q_b_proj.weight"].detach().unflatten(0, (4, 24))
    ratio = queries / saved[f"{prefix}.q_b_proj.weight"].unflatten(0, (4, 24))
    torch.testing.assert_close(ratio[1, :16], torch.full((16, 32), 0.5**0.5))
    torch.testing.assert_close(ratio[1, 16:], torch.full((8, 32), 0.5))
    values = store.parameters[f"{prefix}.kv_b_proj.weight"].detach().unflatten(0, (4, 28))
    ratio = values / saved[f"{prefix}.kv_b_proj.weight"].unflatten(0, (4, 28))
    torch.testing.assert_close(ratio[1, :16], torch.full((16, 32), 0.5**0.5))
    torch.testing.assert_close(ratio[1, 16:], torch.ones(12, 32))
