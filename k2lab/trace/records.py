"""Frozen records and numbers out of JSON that nobody vouches for."""

import sys
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Kept = TypeVar("Kept")


LARGEST = 2**63 - 1
"""The largest whole number of a record: what an int64 holds."""


def record(kind: type[Kept], values: Any) -> Kept:
    """The record of these values; ValueError unless it has all fields, of the right types."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ValueError(f"a record of {kind.__name__} has other fields")
    return kind(**{name: kept(values, name, hint) for name, hint in hints.items()})


def kept(values: dict[str, Any], name: str, hint: Any) -> Any:
    """The value of this name; ValueError unless it is of the type and finite."""
    if not _fits(values[name], hint):
        raise ValueError(f"'{name}' is {values[name]!r:.40}")
    return values[name]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # no NaN
    return type(value) is hint and (hint is not int or abs(value) <= LARGEST)
