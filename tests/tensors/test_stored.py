"""What a checkpoint stores, made plain: one function for INT4, FP8 and plain numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from k2lab.spec.config import K2_NANO, Fp8
from k2lab.spec.keys import expert_leaves
from k2lab.tensors import fp8, int4
from k2lab.tensors.stored import leaves, plain, raw

WEIGHT = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", [None, Fp8(), K2_NANO.quantization_config])
def test_the_leaves_are_those_of_the_checkpoint_without_shapes(scheme: Any) -> None:
    config = replace(K2_NANO, quantization_config=scheme)
    there = {name.partition(".")[2] for name, _, _ in expert_leaves(config)}
    assert set(leaves(config)) == there - {"weight_shape"}


def test_each_scheme_gives_its_own_numbers() -> None:
    codes, scale = int4.quantise(WEIGHT)
    assert torch.equal(plain(int4.pack(codes), scale, torch.float32), int4.dequantise(codes, scale))
    octets, blocks = fp8.quantise(WEIGHT)
    assert raw(octets).dtype == torch.uint8
    assert torch.equal(plain(raw(octets), blocks, torch.float32), fp8.dequantise(octets, blocks))
    assert torch.equal(plain(raw(WEIGHT), None, torch.bfloat16), WEIGHT.to(torch.bfloat16))
