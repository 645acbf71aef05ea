"""A matrix as a checkpoint stores it, made plain: INT4 words, FP8 bytes, or numbers as they are.

Not here: what the codes mean (`int4.py`, `fp8.py`) and which tensors are coded (`spec/keys.py`).
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from k2lab.spec.config import Fp8, K2Config
from k2lab.tensors import fp8, int4


def leaves(config: K2Config) -> tuple[str, ...]:
    """Names of the tensors of one expert matrix that are computed with: codes first, then scales.

    >>> from k2lab.spec.config import K2_THINKING
    >>> leaves(K2_THINKING)
    ('weight_packed', 'weight_scale')
    """
    if config.quantization_config is None:
        return ("weight",)
    coded = isinstance(config.quantization_config, Fp8)
    return ("weight", "weight_scale_inv") if coded else ("weight_packed", "weight_scale")


def raw(value: Tensor) -> Tensor:
    """The tensor, FP8 as its bytes: torch joins and picks bytes on any device, FP8 only on some."""
    return value.view(torch.uint8) if value.dtype == fp8.CODE else value


def plain(codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights [..., out, in] in `dtype` from codes as `raw` gives them, or from plain numbers."""
    if scale is None:
        return codes.to(dtype)
    if codes.dtype == torch.uint8:
        return fp8.dequantise(codes, scale, dtype)
    if (kernels := gpu_kernels(codes.device)) is not None:
        expanded: Tensor = kernels.expand(codes, scale, dtype)
        return expanded
    return int4.dequantise(int4.unpack(codes), scale, dtype)


@cache
def gpu_kernels(device: torch.device) -> ModuleType | None:
    """The module `int4gpu`, imported where it is of use: on a GPU, with Triton installed."""
    there = device.type == "cuda" and find_spec("triton") is not None
    return import_module("k2lab.tensors.int4gpu") if there else None
