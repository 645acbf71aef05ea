"""The feed-forward kernels against the formula, pair by pair."""

import pytest
import torch
from torch import Tensor

from k2lab.tensors.linear import expert_rows, laid, linear, linear_by_head, swiglu

EXPERTS, HIDDEN, WIDTH = 6, 16, 8


def stacks(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator) / 4
    down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) / 3
    return gate_up.to(dtype), down.to(dtype)


def given(tokens: int, slots: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, HIDDEN, generator=generator)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:slots] for _ in range(tokens)])
    return x, ids


def one_by_one(x: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = [
        [swiglu(row, *gate_up[expert].chunk(2), down[expert]) for expert in chosen]
        for row, chosen in zip(x, ids, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def test_swiglu_is_its_formula() -> None:
    (gate_up, down), (x, _) = stacks(), given(3, 1)
    gate, up = gate_up[0].double().chunk(2)
    wide = x.double()
    inner = wide @ gate.T
    expected = (inner * inner.sigmoid() * (wide @ up.T)) @ down[0].double().T
    got = swiglu(x, *gate_up[0].chunk(2), down[0])
    torch.testing.assert_close(got, expected.float())


@pytest.mark.parametrize("lead", [(), (1,), (1, 1), (3,), (2, 4)])
@pytest.mark.parametrize("size", [(5, 7), (96, 160), (300, 2048)])
def test_bfloat16_products_are_rounded_once(lead: tuple[int, ...], size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(size, generator=generator).bfloat16()
    x = torch.randn(*lead, size[1], generator=generator).bfloat16()
    exact = x.double() @ weight.double().T
    got = linear(x, weight)
    assert (got.dtype, got.shape) == (torch.bfloat16, (*lead, size[0]))
    # Half a unit in the last of eight bits, and what float32 loses in the sum.
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-4)


def test_one_row_gives_the_same_bits_whatever_the_threads_and_the_place_in_memory() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(640, 2048, generator=generator).bfloat16()
    x, before = torch.randn(1, 1, 2048, generator=generator).bfloat16(), torch.get_num_threads()
    expected = linear(x, weight)
    moved = torch.empty(weight.numel() + 3, dtype=torch.bfloat16)[3:].view_as(weight)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(linear(x, moved.copy_(weight)), expected)
    finally:
        torch.set_num_threads(before)


def test_float32_products_are_those_of_torch() -> None:
    (gate_up, _), (x, _) = stacks(), given(1, 1)
    assert torch.equal(linear(x, gate_up[0]), torch.nn.functional.linear(x, gate_up[0]))


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 33, 200])
@pytest.mark.parametrize("slots", [1, 4, 6])
def test_rows_are_each_experts_swiglu_in_the_order_of_the_slots(tokens: int, slots: int) -> None:
    x, ids = given(tokens, slots)
    rows = expert_rows(x, ids, *stacks())
    assert rows.shape == (tokens, slots, HIDDEN)
    torch.testing.assert_close(rows, one_by_one(x, ids, *stacks()))


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("slots", [1, 4, 6])
def test_rows_do_not_depend_on_how_the_stacks_lie(tokens: int, slots: int) -> None:
    x, ids = given(tokens, slots)
    small = [laid(stack) for stack in stacks()]
    assert [stack.mT.is_contiguous() for stack in small] == [True, True]
    assert all(map(torch.equal, small, stacks()))
    rows = expert_rows(x, ids, *small)
    assert rows.shape == (tokens, slots, HIDDEN)
    torch.testing.assert_close(rows, expert_rows(x, ids, *stacks()))


def test_one_row_may_be_far_below_zero() -> None:
    """No warning: they are errors in these tests."""
    x, ids = given(1, 4)
    small = [laid(stack) for stack in stacks()]
    rows = expert_rows(x * 1e4, ids, *small)
    torch.testing.assert_close(rows, one_by_one(x * 1e4, ids, *small), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("leaf", [0, 1])
def test_gradients_reach_one_row_however_the_stacks_lie(leaf: int) -> None:
    x, ids = given(1, 3)
    tensors = [x, *map(laid, stacks())]
    tensors[leaf].requires_grad_()
    expert_rows(tensors[0], ids, *tensors[1:]).square().sum().backward()
    got, tensors[leaf].grad = tensors[leaf].grad, None
    one_by_one(tensors[0], ids, *tensors[1:]).square().sum().backward()
    torch.testing.assert_close(got, tensors[leaf].grad, rtol=1e-4, atol=1e-4)


def test_large_and_coarse_matrices_stay_as_they_lie() -> None:
    large, coarse = torch.zeros(2, 512, 256), stacks(torch.bfloat16)[0]
    assert laid(large) is large
    assert laid(coarse) is coarse


def test_an_expert_that_nobody_chose_is_no_trouble() -> None:
    x, _ = given(40, 2)
    ids = torch.tensor([[5, 2]]).expand(40, 2)
    torch.testing.assert_close(expert_rows(x, ids, *stacks()), one_by_one(x, ids, *stacks()))


@pytest.mark.parametrize("tokens", [1, 40])
def test_bfloat16_rows_are_near_the_exact_ones(tokens: int) -> None:
    x, ids = given(tokens, 3)
    rows = expert_rows(x.bfloat16(), ids, *stacks(torch.bfloat16))
    assert rows.dtype == torch.bfloat16
    exact = one_by_one(x, ids, *stacks())
    torch.testing.assert_close(rows.float(), exact, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_head_has_a_product_of_its_own(tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 24, 64, generator=generator).to(dtype)
    x = torch.randn(5, tokens, 64, generator=generator).to(dtype)
    got = linear_by_head(x, weight)
    assert torch.equal(got, torch.bmm(x, weight.mT))
    exact = torch.stack([each @ of.T for each, of in zip(x.double(), weight.double(), strict=True)])
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-4)


def test_gradients_pass_through_one_row_in_bfloat16() -> None:
    (gate_up, _), (x, _) = stacks(torch.bfloat16), given(1, 1)
    weight, row = gate_up[0].requires_grad_(), x.bfloat16().requires_grad_()
    linear(row, weight).sum().backward()
    assert weight.grad is not None and row.grad is not None
    torch.testing.assert_close(weight.grad, row.detach().expand_as(weight))
    torch.testing.assert_close(
        row.grad[0].float(), weight.detach().float().sum(0), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("tokens", [1, 40])
def test_gradients_reach_the_weights_and_the_input(tokens: int) -> None:
    x, ids = given(tokens, 3)
    tensors = [x, *stacks()]
    gradients = []
    for rows in (expert_rows, one_by_one):
        leaves = [value.clone().requires_grad_() for value in tensors]
        rows(leaves[0], ids, *leaves[1:]).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
