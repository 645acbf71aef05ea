"""The `quantization_config` of a checkpoint: INT4 routed experts, or FP8 in blocks.

What it is not: no arithmetic; that stands in `tensors/int4.py` and `tensors/fp8.py`.
Source: compressed-tensors, format `pack-quantized`, as Kimi K2 Thinking uses it; the published
config.json of Kimi K2 Instruct and DeepSeek-V3 for FP8.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

from k2lab.errors import QuantizationError
from k2lab.spec.fields import Fields, shown

MEND = (
    "Use a checkpoint with compressed-tensors INT4 experts or FP8 block scales, or one in bfloat16."
)

FP8_BLOCK = (128, 128)
"""Rows and columns of an FP8 matrix that share one scale, in all published checkpoints."""

_FIXED: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 32,
}
_ABSENT = ("dynamic", "actorder", "block_structure", "zp_dtype", "scale_dtype")
_NOT_SET = (None, False)
_MOST_REPEATS = 4  # the published patterns have two
_BOOKKEEPING = ("global_compression_ratio", "version", "ignored_layers")


class ConfigWarning(UserWarning):
    """A key of a config.json that this package does not know, and therefore does not follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Symmetric INT4 in groups along the input: which linear layers, and the group's width."""

    num_bits: int
    group_size: int  # inputs that share one bfloat16 scale
    targets: tuple[str, ...]  # class name `Linear`, module names, or `re:` patterns
    ignore: tuple[str, ...]  # module names or `re:` patterns, stronger than `targets`

    def __post_init__(self) -> None:
        for name in ("num_bits", "group_size"):
            _require("quantization_config", name, getattr(self, name))
        for pattern in self.targets + self.ignore:
            if pattern.startswith("re:") and not _ends_soon(pattern):
                raise QuantizationError(
                    f"In quantization_config the pattern {shown(pattern)} repeats too much.",
                    expected=f"At most {_MOST_REPEATS} of `* + ? {{` and no repeated group.",
                    mend="Write several patterns in its place.",
                )
            try:
                _hits(pattern, "")
            except re.error as error:
                raise QuantizationError(
                    f"In quantization_config the pattern {pattern!r} is malformed: {error}.",
                    expected="A module name, or `re:` and a regular expression.",
                    mend="Restore the pattern from the published config.json.",
                ) from error

    def covers(self, module: str) -> bool:
        """Whether the linear layer of this full name is stored as INT4."""
        aimed = "Linear" in self.targets or any(_hits(item, module) for item in self.targets)
        return aimed and not any(_hits(item, module) for item in self.ignore)

    def to_json(self) -> dict[str, Any]:
        """The block as compressed-tensors writes it."""
        weights: dict[str, Any] = {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": self.group_size,
            "num_bits": self.num_bits,
            "observer": "minmax",
            "observer_kwargs": {},
            "strategy": "group",
            "symmetric": True,
            "type": "int",
        }
        group = {
            "input_activations": None,
            "output_activations": None,
            "targets": list(self.targets),
            "weights": weights,
        }
        return {
            "config_groups": {"group_0": group},
            "format": "pack-quantized",
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8:
    """FP8 (e4m3) with one float32 scale per block: every linear layer but router and head."""

    block: tuple[int, int] = (128, 128)  # rows and columns that share a scale

    def __post_init__(self) -> None:
        if tuple(self.block) != FP8_BLOCK:
            raise _other("quantization_config", "weight_block_size", self.block, list(FP8_BLOCK))

    def to_json(self) -> dict[str, Any]:
        """The block as DeepSeek and Moonshot publish it."""
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": list(self.block),
        }


def read_quantization(block: Fields) -> Quantization | Fp8:
    """The scheme that a `quantization_config` block states; any other kind is refused."""
    if block.word("quant_method") == "fp8":
        return _read_fp8(block)
    _only(block, "quant_method", "compressed-tensors")
    _only(block, "format", "pack-quantized")
    _only(block, "quantization_status", None, "compressed")
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        _only(block, key, None, {})
    for key in _BOOKKEEPING:
        block.get(key)
    groups = block.block("config_groups")
    if len(groups.values) != 1:
        raise QuantizationError(
            f"quantization_config has {len(groups.values)} config_groups.",
            expected="One group, that of the routed experts.",
            mend=MEND,
        )
    group = groups.block(next(iter(groups.values)))
    _only(group, "input_activations", None)
    _only(group, "output_activations", None)
    _only(group, "format", None, "pack-quantized")
    weights = group.block("weights")
    for key in _FIXED:
        _require(weights.name, key, weights.get(key))
    for key in _ABSENT:
        _only(weights, key, *_NOT_SET)
    for key in ("observer", "observer_kwargs"):
        weights.get(key)
    result = Quantization(
        num_bits=weights.integer("num_bits"),
        group_size=weights.integer("group_size"),
        targets=group.words("targets"),
        ignore=block.words("ignore"),
    )
    for part in (block, group, weights):
        warn_unknown(part)
    return result


def _read_fp8(block: Fields) -> Fp8:
    _only(block, "fmt", None, "e4m3")
    # Activations stay as they are here: only how weights are stored is followed.
    _only(block, "activation_scheme", None, "dynamic")
    _only(block, "weight_block_size", list(FP8_BLOCK))
    for key in ("modules_to_not_convert", "dequantize", *_BOOKKEEPING):
        block.get(key)
    warn_unknown(block)
    return Fp8()


def warn_unknown(fields: Fields) -> None:
    """One warning that names the keys of the object that nobody asked for."""
    if unknown := fields.left():
        names = ", ".join(shown(key) for key in unknown)
        keys = "key" if len(unknown) == 1 else "keys"
        message = (
            f"{fields.name} has the unknown {keys} {names}, which this package does not follow."
        )
        warnings.warn(message, ConfigWarning, stacklevel=4)


def _only(fields: Fields, key: str, *allowed: object) -> None:
    """Refuse any value but the allowed ones; None allows an absent key."""
    if (value := fields.get(key)) not in allowed:
        raise _other(fields.name, key, value, allowed[-1])


def _require(where: str, key: str, value: object) -> None:
    expected = _FIXED[key]
    if value != expected or type(value) is not type(expected):
        raise _other(where, key, value, expected)


def _other(where: str, key: str, value: object, expected: object) -> QuantizationError:
    return QuantizationError(
        f"In {where} the key {key!r} is {shown(value)}.",
        expected=f"{key!r} is {expected!r}, the only kind supported.",
        mend=MEND,
    )


def _ends_soon(pattern: str) -> bool:
    """Whether no name can make this expression backtrack for hours."""
    return (
        not re.search(r"\)[*+{]", pattern) and len(re.findall("[*+?{]", pattern)) <= _MOST_REPEATS
    )


def _hits(pattern: str, module: str) -> bool:
    """Matching as in compressed-tensors: `re:` patterns from the start of the name, or equality."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return pattern == module
