"""The GPU's kernels: without a GPU in Triton's interpreter, which runs the same code."""

import pytest
import torch
import torch.nn.functional as F

from k2lab.tensors import int4

pytest.importorskip("triton")
from k2lab.tensors import int4gpu  # after the skip, as it imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter cuts numbers off where a GPU rounds them to bfloat16.
DTYPES = (torch.float32, torch.bfloat16) if DEVICE.type == "cuda" else (torch.float32,)


def stack(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words and scales of random matrices, and codes at both ends of the range."""
    generator = torch.Generator().manual_seed(sum(shape))
    codes, scale = int4.quantise(torch.randn(shape, generator=generator))
    codes.view(-1)[:2] = torch.tensor([-8, 7], dtype=torch.int8)
    return int4.pack(codes).to(DEVICE), scale.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 32), (2, 3, 7, 96), (1, 2048 + 3, 64)])
def test_expanding_gives_the_bits_of_the_readable_way(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    words, scale = stack(*shape)
    expected = int4.dequantise(int4.unpack(words), scale, dtype)
    assert torch.equal(int4gpu.expand(words, scale, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outer", "inner"), [(5, 32), (12, 160), (3, 2048 + 32)])
def test_products_are_those_of_the_expanded_matrices(
    outer: int, inner: int, dtype: torch.dtype
) -> None:
    words, scale = stack(4, outer, inner)
    places = torch.tensor([2, 0, 3, 2], device=DEVICE)
    x = torch.randn(4, inner, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    found = int4gpu.linear(x, places, words, scale)
    whole = int4.dequantise(int4.unpack(words), scale, torch.float64)
    expected = torch.einsum("ri,roi->ro", x.double(), whole[places])
    assert found.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near * inner**0.5)


def test_a_row_has_the_same_bits_wherever_its_matrix_lies() -> None:
    words, scale = stack(6, 8, 96)
    x = torch.randn(3, 96, device=DEVICE)
    places = torch.tensor([5, 1, 4], device=DEVICE)
    expected = int4gpu.linear(x, places, words, scale)
    # In slabs: apart from each other, another order, others asked for beside them.
    slabs = torch.zeros(4, 4 * words[0].numel() + 2 * scale[0].numel() + 16, dtype=torch.uint8)
    slabs = slabs.to(DEVICE)
    inside = slabs[:, : 4 * words[0].numel()].view(torch.int32).unflatten(1, words.shape[1:])
    beside = slabs[:, 4 * words[0].numel() : -16].view(torch.bfloat16)
    beside = beside.unflatten(1, scale.shape[1:])
    order = torch.tensor([4, 0, 1, 5], device=DEVICE)
    inside.copy_(words[order])
    beside.copy_(scale[order])
    local = torch.tensor([3, -1, 0, 2], device=DEVICE)  # experts 5, nobody, 4, 1
    found = int4gpu.linear(x[[0, 0, 2, 1]], local, inside, beside)
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 1]])


def test_swiglu_rows_are_those_of_each_expert() -> None:
    gate_up, down = stack(5, 2 * 32, 64), stack(5, 64, 32)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    places = torch.tensor([[4, 0, 2], [2, 1, 4]], device=DEVICE)
    found = int4gpu.swiglu_rows(x, places, gate_up, down)
    first, second = (int4.dequantise(int4.unpack(words), scale) for words, scale in (gate_up, down))
    for token, chosen in enumerate(places.tolist()):
        for slot, expert in enumerate(chosen):
            gate, up = (first[expert] @ x[token]).chunk(2)
            expected = second[expert] @ (F.silu(gate) * up)
            torch.testing.assert_close(found[token, slot], expected, rtol=1e-4, atol=1e-4)


def test_kernels_run_on_the_gpu_of_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], torch.cuda.device_of

    def noted(tensor: torch.Tensor) -> object:
        asked.append(tensor)
        return real(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", noted)
    words, scale = stack(2, 5, 32)
    int4gpu.expand(words, scale, torch.float32)
    int4gpu.linear(torch.ones(1, 32).to(DEVICE), torch.tensor([1]).to(DEVICE), words, scale)
    assert len(asked) == 2
    assert all(each is words for each in asked)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_the_second_gpu_gives_the_bits_of_the_first() -> None:
    words, scale = stack(2, 5, 32)
    x, places = torch.ones(2, 32), torch.tensor([1, 0])
    first, second = (
        int4gpu.linear(x.to(gpu), places.to(gpu), words.to(gpu), scale.to(gpu)).cpu()
        for gpu in ("cuda:0", "cuda:1")
    )
    assert torch.equal(first, second)
