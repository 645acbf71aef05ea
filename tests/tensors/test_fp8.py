"""FP8 in blocks: every element times the scale of its block, edges that are cut off among them."""

import pytest
import torch

from k2lab.tensors.fp8 import BLOCK, CODE, LARGEST, dequantise, quantise


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 128), (129, 300), (576, 64)])
def test_each_element_has_the_scale_of_its_block(rows: int, columns: int) -> None:
    codes, scale = quantise(matrix(rows, columns))
    assert codes.dtype == CODE
    assert scale.shape == (-(-rows // BLOCK), -(-columns // BLOCK))
    found = dequantise(codes, scale)
    for row, column in {(0, 0), (rows - 1, 0), (0, columns - 1), (rows - 1, columns - 1)}:
        exact = codes[row, column].float() * scale[row // BLOCK, column // BLOCK]
        assert found[row, column] == exact


def test_bytes_and_stacks_give_the_same() -> None:
    codes, scale = quantise(matrix(200, 130))
    both = torch.stack([codes.view(torch.uint8)] * 2), torch.stack([scale] * 2)
    assert torch.equal(dequantise(*both), torch.stack([dequantise(codes, scale)] * 2))


def test_what_is_widened_is_near_and_rounded_once() -> None:
    weight = matrix(256, 256)
    codes, scale = quantise(weight)
    wide = dequantise(codes, scale)
    assert (wide - weight).abs().max() <= weight.abs().max() / 16  # three bits of mantissa
    assert float(codes.float().abs().max()) == LARGEST
    assert torch.equal(dequantise(codes, scale, torch.bfloat16), wide.to(torch.bfloat16))


def test_nothing_stays_nothing() -> None:
    codes, scale = quantise(torch.zeros(3, 3))
    assert not dequantise(codes, scale).any()
