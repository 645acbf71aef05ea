"""Experts in their stored form: the kernels that read codes give every store the same rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_NANO, K2Config
from k2lab.tensors import int4
from k2lab.tensors.linear import expert_rows
from k2lab.tensors.shards import Shards
from k2lab.weights import stacks
from k2lab.weights.budget import Offload, needs
from k2lab.weights.resident import Resident
from k2lab.weights.slab import Slabs
from k2lab.weights.stacks import Stack
from k2lab.weights.tiered import Tiered

CPU = torch.device("cpu")
INT4: dict[str, Any] = {"quantization_config": K2_NANO.quantization_config, "dtype": "bfloat16"}


def outputs(model: K2) -> list[Tensor]:
    """Logits of two tokens and of one after them."""
    cache, found = LatentCache(model.config), []
    with torch.inference_mode():
        for ids in ([3, 44], [77]):
            step = model.step(len(ids), cache=cache, tap=untouched)
            found.append(model(torch.tensor([ids]), step))
    return found


def test_kernels_that_read_codes_give_all_stores_the_same_bits(
    tmp_path: Path, tiny_config: Callable[..., K2Config], random_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: test_links.py runs the kernels on it")
    from k2lab.tensors import int4gpu

    config = tiny_config(**INT4, num_hidden_layers=2, num_experts_per_tok=3)
    folder = random_checkpoint(tmp_path / "tiny", config, 3)
    read, slabs = Shards(folder).read, Slabs(Shards(folder), config)
    expanded = outputs(K2(config, Resident(config, read)))
    monkeypatch.setattr(stacks, "gpu_kernels", lambda _: int4gpu)
    expected = outputs(K2(config, Resident(config, read, keeping="packed")))
    for one, other in zip(expected, expanded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    plain = Offload(device=CPU, dtype=torch.float32, device_budget=0, form="packed")
    for slots in (3, 5):  # with three, two tokens come in waves
        need = needs(config, slabs.layout, plain)
        budget = need.smallest + (slots - 3) * need.slot
        offload = Offload(device=CPU, dtype=torch.float32, device_budget=budget, form="packed")
        store = Tiered(config, slabs, offload)
        assert all(map(torch.equal, outputs(K2(config, store)), expected)), f"{slots} slots"
        store.close()


def test_no_more_are_expanded_at_once_than_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(torch.randn(7, 2, 8, 16), torch.randn(7, 16, 8))
    x, places = torch.randn(5, 16), torch.randint(0, 7, (5, 3))
    whole = stack.rows(x, places, at_once=7)
    sizes, real = [], Stack.expand

    def noted(self: Stack, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        sizes.append(len(self.down))
        return real(self, dtype)

    monkeypatch.setattr(Stack, "expand", noted)
    assert torch.equal(stack.rows(x, places, at_once=2), whole)
    assert max(sizes) == 2
    assert sum(sizes) == len(places.unique())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_of_another_dtype_are_read_as_what_they_are(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "LARGE", 0)
    (gate_up, some), (down, others) = map(int4.quantise, torch.randn(2, 4 * 64, 64))
    words = int4.pack(gate_up).view(2, 2, 64, 8), int4.pack(down)[:128].view(2, 64, 8)
    scales = some.to(dtype).view(2, 2, 64, 2), others[:128].to(dtype).view(2, 64, 2)
    stack, x, places = Stack(*words, *scales), torch.randn(3, 64), torch.tensor([[0], [1], [0]])
    expected = expert_rows(x, places, *stack.expand(torch.float32))
    assert torch.equal(stack.rows(x, places, at_once=2), expected)
