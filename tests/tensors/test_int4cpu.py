"""The CPU's INT4 kernel: the numbers of the expanded matrices, in an order that nothing changes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from k2lab.tensors import int4, int4cpu


def matrix(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Words and scales of a random matrix, with codes at both ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    codes, scale = int4.quantise(torch.randn(rows, columns, generator=generator))
    codes[0, :2] = torch.tensor([-8, 7], dtype=torch.int8)
    return int4.pack(codes), scale


def plain(words: Tensor, scale: Tensor) -> Tensor:
    return int4.dequantise(int4.unpack(words), scale, torch.float64)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("rows", "columns"), [(4, 32), (5, 64), (6, 96), (7, 2048), (259, 160)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_expanded_matrix(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    words, scale = matrix(rows, columns)
    x = drawn(3, columns).to(dtype)
    found = int4cpu.linear(x, words, scale)
    assert found.dtype == torch.float32
    expected = x.double() @ plain(words, scale).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * columns**0.5)


def test_each_code_and_each_place_counts_for_itself() -> None:
    words, scale = matrix(8, 64)
    found = int4cpu.linear(torch.eye(64), words, scale)
    assert torch.equal(found.T.double(), plain(words, scale))  # one product each: no rounding


@pytest.mark.parametrize("value", [1e-30, 3e37, 0.0, float("nan")])
def test_scales_may_be_any_number(value: float) -> None:
    words, scale = matrix(4, 32)
    scale[1] = value
    x = torch.zeros(1, 32)
    x[0, 3] = 1.0
    code = float(int4.unpack(words)[1, 3])
    expected = code * float(torch.tensor(value).bfloat16())
    found = float(int4cpu.linear(x, words, scale)[0, 1])
    assert np.array_equal(found, np.float32(expected), equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_row_has_the_same_bits_whoever_computes_it(threads: int) -> None:
    words, scale = matrix(37, 96)
    x, before = drawn(5, 96), torch.get_num_threads()
    expected = torch.cat([int4cpu.linear(row[None], words, scale) for row in x])
    torch.set_num_threads(threads)
    try:
        assert torch.equal(int4cpu.linear(x, words, scale), expected)
        assert torch.equal(int4cpu.linear(x.flip(0), words, scale).flip(0), expected)
    finally:
        torch.set_num_threads(before)
    apart = torch.zeros(4 + words.numel(), dtype=torch.int32)[4:].view(words.shape)
    assert torch.equal(int4cpu.linear(x, apart.copy_(words), scale), expected)  # lying elsewhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_is_that_of_the_expanded_matrices(dtype: torch.dtype) -> None:
    gate_up, down = matrix(2 * 32, 64), matrix(64, 32, seed=2)
    x = drawn(2, 64).to(dtype)
    found = int4cpu.swiglu(x, gate_up, down)
    gate, up = (x.double() @ plain(*gate_up).T).chunk(2, -1)
    expected = (F.silu(gate) * up) @ plain(*down).T
    assert found.dtype == dtype
    near = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near * 8)


def test_a_small_model_never_brings_the_compiler() -> None:
    """It takes 130 MB, where a classroom's computers may have a gigabyte."""
    code = """
import sys, k2lab
for placement in ("resident", "tiered"):
    k2lab.load(placement=placement).run("What is 3 plus 4?", max_tokens=3).wait()
sys.exit("numba" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
