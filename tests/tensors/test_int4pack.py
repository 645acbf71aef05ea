"""INT4 products without expanding: the kernel's order is written right, and the numbers agree."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from k2lab.tensors import int4pack
from k2lab.tensors.int4 import dequantise, pack, quantise
from k2lab.tensors.linear import swiglu


def matrix(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a random matrix."""
    generator = torch.Generator().manual_seed(seed)
    return quantise(torch.randn(rows, columns, generator=generator) * columns**-0.5)


def packed(codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = np.empty(codes.numel() // 2, np.uint8)
    int4pack.pack_into(pack(codes).numpy(), out)
    scales = torch.empty(scale.shape[1], scale.shape[0], 2, dtype=torch.bfloat16)
    int4pack.scales_into(scale, scales)
    return torch.from_numpy(out), scales


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 192), (96, 64), (256, 512)])
def test_codes_are_written_as_torch_writes_them(rows: int, columns: int) -> None:
    codes = torch.arange(rows * columns).mul(7919).remainder(16).view(rows, columns) - 8
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).to(torch.int32), 1)
    out = np.empty(rows * columns // 2, np.uint8)
    int4pack.pack_into(pack(codes).numpy(), out)
    assert np.array_equal(out, theirs.view(torch.uint8).numpy().ravel())


def test_an_unknown_order_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scale = matrix(192, 96)
    fast = packed(codes, scale)[0]
    monkeypatch.setattr(int4pack, "_block", lambda: 0)
    assert torch.equal(packed(codes, scale)[0], fast)


CHECK = """
import numpy as np, torch
from k2lab.tensors import int4pack
from k2lab.tensors.int4 import pack
for rows in (32, 64, 96, 128):
    codes = torch.arange(rows * 64).mul(7919).remainder(16).view(rows, 64) - 8
    out = np.empty(rows * 32, np.uint8)
    int4pack.pack_into(pack(codes).numpy(), out)
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).int(), 1)
    assert np.array_equal(out, theirs.view(torch.uint8).numpy().ravel()), rows
print(int4pack._block())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the names of these processors' units")
@pytest.mark.parametrize("unit", ["avx2", "avx512", "default"])
def test_each_order_that_this_processor_can_run_is_written(unit: str) -> None:
    environment = os.environ | {"ATEN_CPU_CAPABILITY": unit}
    given = [sys.executable, "-c", CHECK]
    done = subprocess.run(given, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) in (*int4pack.BLOCKS, 0)


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_products_agree_with_the_expanded_matrix(tokens: int) -> None:
    codes, scale = matrix(128, 256)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = int4pack.linear(x, *packed(codes, scale)).float()
    exact = x.float() @ dequantise(codes, scale).T
    assert (found - exact).abs().max() <= exact.abs().max() * 2**-8  # one rounding to bfloat16


def test_a_swiglu_agrees_and_keeps_the_dtype() -> None:
    gate_up, down = matrix(128, 64, 2), matrix(64, 64, 3)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
    found = int4pack.swiglu(x, packed(*gate_up), packed(*down))
    wide = dequantise(*gate_up)
    exact = swiglu(x, wide[:64], wide[64:], dequantise(*down))
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= exact.abs().max() * 0.03


def test_only_sizes_that_the_kernel_takes() -> None:
    assert int4pack.available(4096, 7168)
    assert not int4pack.available(48, 64)
    assert not int4pack.available(64, 48)
