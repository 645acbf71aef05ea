"""INT4 groups: packing is exact, and equal to what `compressed-tensors` packs.

Stored results keep the promise where that library is not installed. They were made with

    pytest tests/tensors/test_int4.py --write-golden
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from k2lab.errors import InputError
from k2lab.tensors.int4 import GROUP, dequantise, fake_quantise, pack, quantise, unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "int4.safetensors"


def weight_of(rows: int, columns: int) -> Tensor:
    """The same bfloat16 numbers everywhere, some of them large."""
    i = torch.arange(rows * columns, dtype=torch.int64)
    mixed = ((i * 2654435761) ^ (i * 40503 >> 3)) % 65536
    return ((mixed.double() / 32768 - 1) ** 3).reshape(rows, columns).to(torch.bfloat16)


def compressed(weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """What the library's own compressor writes for an nn.Linear with this weight and scale."""
    library = pytest.importorskip("compressed_tensors", reason="the peer is not installed")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    assert library is not None
    arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    state = {"weight": linear.weight.detach(), "weight_scale": scale}
    compressor: Any = BaseCompressor.get_value_from_registry("pack-quantized")
    return dict(compressor.compress(state, scheme=scheme))


def full_range_scale(weight: Tensor) -> Tensor:
    """absmax / 7.5, the library's own observer's: codes −8 occur."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    return (groups.abs().amax(-1) / 7.5).to(weight.dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            st.lists(st.integers(-8, 7), min_size=16, max_size=16), min_size=rows, max_size=rows
        )
    )
)
def test_unpacking_gives_back_what_was_packed(rows: list[list[int]]) -> None:
    codes = torch.tensor(rows, dtype=torch.int8)
    words = pack(codes)
    assert words.dtype == torch.int32
    assert words.shape == (len(rows), 2)
    assert torch.equal(unpack(words), codes)


def test_the_lowest_nibble_is_the_first_code() -> None:
    codes = torch.tensor([[-8, -7, -1, 0, 1, 2, 6, 7]], dtype=torch.int8)
    assert pack(codes).item() == 0xFEA98710 - 2**32


def test_packing_keeps_leading_axes() -> None:
    codes = torch.arange(2 * 3 * 64).reshape(2, 3, 64) % 16 - 8
    assert pack(codes).shape == (2, 3, 8)
    assert torch.equal(unpack(pack(codes)), codes.to(torch.int8))


def test_codes_use_the_symmetric_range_and_the_rounded_scale() -> None:
    weight = weight_of(16, 128).float()
    codes, scale = quantise(weight)
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (16, 4)
    assert int(codes.min()) == -7
    assert int(codes.max()) == 7
    half = scale.float().repeat_interleave(GROUP, -1) / 2
    # Half a step, and what rounding the scale takes from the largest weight.
    assert ((dequantise(codes, scale) - weight).abs() <= half * 1.06).all()


def test_fewer_levels_round_coarser() -> None:
    weight = weight_of(16, 128).float()
    errors = []
    for levels in (7, 3, 1):
        codes, scale = quantise(weight, levels)
        assert set(codes.flatten().tolist()) == set(range(-levels, levels + 1))
        errors.append(float((dequantise(codes, scale) - weight).norm()))
        assert torch.equal(
            fake_quantise(weight, levels), weight + (dequantise(codes, scale) - weight)
        )
    assert errors == sorted(errors)
    for levels in (0, 8, -1):
        with pytest.raises(InputError, match=f"to {levels} levels"):
            quantise(weight, levels)


def test_quantising_again_changes_nothing() -> None:
    codes, scale = quantise(weight_of(8, 96))
    again, same = quantise(dequantise(codes, scale))
    assert torch.equal(again, codes)
    assert torch.equal(same, scale)


def test_a_group_of_zeros_stays_zero() -> None:
    codes, scale = quantise(torch.zeros(2, 64))
    assert not codes.any()
    assert dequantise(codes, scale).equal(torch.zeros(2, 64))


def test_dequantising_rounds_once() -> None:
    codes, scale = torch.full((1, 32), 7, dtype=torch.int8), torch.tensor([[1.0078125]])
    assert dequantise(codes, scale)[0, 0] == 7 * 1.0078125
    assert dequantise(codes, scale, torch.bfloat16)[0, 0] == torch.tensor(7.0546875).bfloat16()


def test_fake_quantising_shows_int4_and_passes_the_gradient() -> None:
    weight = weight_of(4, 64).float().requires_grad_()
    shown = fake_quantise(weight)
    torch.testing.assert_close(shown, dequantise(*quantise(weight.detach())), rtol=0, atol=1e-7)
    (shown * 3).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 3).all()


@pytest.mark.parametrize("shape", [(8, 32), (24, 96), (3, 256)])
def test_codes_and_words_equal_those_of_compressed_tensors(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape).float()  # the library divides in the weight's own dtype
    codes, scale = quantise(weight)
    theirs = compressed(weight, scale.float())
    assert torch.equal(pack(codes), theirs["weight_packed"])
    assert theirs["weight_shape"].tolist() == list(shape)


def test_minus_eight_is_read_as_compressed_tensors_wrote_it() -> None:
    weight = weight_of(16, 64)
    theirs = compressed(weight, full_range_scale(weight))
    codes = unpack(theirs["weight_packed"])
    assert int(codes.min()) == -8
    assert torch.equal(pack(codes), theirs["weight_packed"])


def test_words_equal_the_stored_ones(pytestconfig: pytest.Config) -> None:
    from safetensors.torch import load_file, save_file

    if pytestconfig.getoption("--write-golden"):
        weight = weight_of(8, 64).float()
        symmetric = compressed(weight, quantise(weight)[1].float())
        full = compressed(weight, full_range_scale(weight))
        entries = {f"symmetric.{key}": value for key, value in symmetric.items()}
        entries |= {f"full.{key}": value for key, value in full.items()}
        made = {"made": "pytest tests/tensors/test_int4.py --write-golden"}
        save_file(entries, GOLDEN, metadata=made)
        GOLDEN.chmod(0o644)
    stored = load_file(GOLDEN)
    codes, scale = quantise(weight_of(8, 64))
    assert torch.equal(pack(codes), stored["symmetric.weight_packed"])
    assert torch.equal(scale.float(), stored["symmetric.weight_scale"])
    read = unpack(stored["full.weight_packed"])
    assert int(read.min()) == -8
    near = dequantise(read, stored["full.weight_scale"]) - weight_of(8, 64).float()
    assert float(near.abs().max()) <= float(stored["full.weight_scale"].max())
