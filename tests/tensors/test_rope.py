"""Rotary positions: the numbers of YaRN, and that only distances count."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config, RopeScaling
from k2lab.tensors.rope import Rotary, frequencies, rotate, softmax_scale

CPU = torch.device("cpu")

assert K2_THINKING.rope_scaling is not None
FACTOR_32 = replace(K2_THINKING, rope_scaling=replace(K2_THINKING.rope_scaling, factor=32.0))
DEEPSEEK = replace(
    K2_THINKING,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(
        factor=40.0,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=4096,
    ),
)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (K2_THINKING, 0.1446796258),
        (FACTOR_32, 0.1308607968),
        (K2_NANO, 64**-0.5 * (0.1 * math.log(8) + 1) ** 2),
    ],
)
def test_the_softmax_scale_is_the_published_one(config: K2Config, scale: float) -> None:
    assert softmax_scale(config) == pytest.approx(scale, abs=5e-9)


def test_without_mscale_all_dim_the_scale_is_plain() -> None:
    assert K2_THINKING.rope_scaling is not None
    scaling = replace(K2_THINKING.rope_scaling, mscale_all_dim=0.0)
    assert softmax_scale(replace(K2_THINKING, rope_scaling=scaling)) == 192**-0.5


def test_k2_thinking_keeps_pairs_to_19_and_divides_those_from_20() -> None:
    plain = frequencies(replace(K2_THINKING, rope_scaling=None))
    ratio = plain / frequencies(K2_THINKING)
    torch.testing.assert_close(ratio[:20], torch.ones(20))
    torch.testing.assert_close(ratio[20:], torch.full((12,), 64.0))


def test_a_ramp_joins_fast_and_slow_pairs() -> None:
    ratio = frequencies(replace(DEEPSEEK, rope_scaling=None)) / frequencies(DEEPSEEK)
    assert (ratio.diff() >= 0).all()
    torch.testing.assert_close(ratio[:11], torch.ones(11))  # correction range [10, 23]
    assert 1.0 < float(ratio[11]) < 40.0
    assert 1.0 < float(ratio[22]) < 39.9
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0))


@pytest.mark.parametrize("config", [K2_THINKING, K2_NANO])
def test_only_the_distance_of_two_tokens_counts(config: K2Config) -> None:
    rope = Rotary(config)
    generator = torch.Generator().manual_seed(0)
    size = config.qk_rope_head_dim
    query, key = torch.randn(2, 1, 1, size, generator=generator)
    products = [
        (
            rotate(query, rope(start + 5, start + 6, CPU))
            * rotate(key, rope(start, start + 1, CPU))
        ).sum()
        for start in (0, 1, 100, 1000)
    ]
    torch.testing.assert_close(torch.stack(products), products[0].expand(4), rtol=0, atol=2e-3)


def test_position_zero_turns_nothing_and_turning_keeps_length() -> None:
    rope = Rotary(K2_NANO)
    x = torch.arange(2 * 3 * 32.0).reshape(2, 3, 32)  # token, head, rope
    turned = rotate(x, torch.cat([rope(0, 1, CPU), rope(9, 10, CPU)]))
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[1], x[1])


def test_pairs_are_neighbours() -> None:
    rope = Rotary(K2_NANO)
    x = torch.zeros(1, 1, 32)
    x[0, 0, 4] = 1.0  # real part of pair 2
    turned = rotate(x, rope(7, 8, CPU))[0, 0]
    angle = 7 * 10000 ** (-4 / 32)
    expected = torch.tensor([math.cos(angle), math.sin(angle)])
    torch.testing.assert_close(turned[4:6], expected)
    assert int((turned != 0).sum()) == 2


def test_angles_of_far_positions_are_taken_in_float32() -> None:
    rope = Rotary(K2_THINKING)
    far = rope(262_143, 262_144, CPU)
    assert far.dtype == torch.complex64
    exact = 262_143 * frequencies(K2_THINKING).double()
    torch.testing.assert_close(
        far[0, 0].real.double(), exact.float().double().cos(), rtol=0, atol=1e-6
    )


def test_a_growing_table_keeps_its_values() -> None:
    rope = Rotary(K2_NANO)
    first = rope(0, 5, CPU).clone()
    rope(5, 400, CPU)
    assert torch.equal(rope(0, 5, CPU), first)
    assert torch.equal(rope(3, 9, CPU), Rotary(K2_NANO)(3, 9, CPU))


def test_a_device_by_another_name_does_not_make_the_table_grow() -> None:
    rope, named = Rotary(K2_NANO), torch.device("cpu:0")
    assert named != rope(0, 1, CPU).device  # as "cuda" is not "cuda:0"
    sizes = {rope(at, at + 1, named).untyped_storage().nbytes() for at in [5] * 40}
    assert len(sizes) == 1


def test_bfloat16_stays_bfloat16(tiny_config: Callable[..., K2Config]) -> None:
    config = tiny_config()
    x = torch.ones(1, 1, config.qk_rope_head_dim, dtype=torch.bfloat16)
    assert rotate(x, Rotary(config)(3, 4, CPU)).dtype == torch.bfloat16


def test_a_slice_at_an_odd_place_can_be_turned() -> None:
    x = torch.arange(2 * 3 * 39.0).reshape(2, 3, 39)[..., 7:]  # strides and offset are odd
    rotation = Rotary(K2_NANO)(4, 6, CPU)
    assert torch.equal(rotate(x, rotation), rotate(x.clone(), rotation))
