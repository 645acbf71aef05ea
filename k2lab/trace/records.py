"""Frozen records and numbers out of JSON that nobody vouches for."""

import sys
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from k2lab.text.messages import without_surrogates

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
    """The value of this name; ValueError unless it is of the type and finite.

    A text comes as the model would have read it: no message to a page can carry half a character.
    """
    if not _fits(values[name], hint):
        raise ValueError(f"'{name}' is {values[name]!r:.40}")
    value = values[name]
    return without_surrogates(value) if isinstance(value, str) else value


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # no NaN
    return type(value) is hint and (hint is not int or abs(value) <= LARGEST)
