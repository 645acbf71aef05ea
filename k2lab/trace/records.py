"""Frozen records out of JSON that nobody vouches for."""

from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Kept = TypeVar("Kept")


def record(kind: type[Kept], values: Any) -> Kept:
    """The record of these values; ValueError unless it has all fields, of the right types."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ValueError(f"a record of {kind.__name__} has other fields")
    wrong = [name for name, hint in hints.items() if not _fits(values[name], hint)]
    if wrong:
        raise ValueError(f"'{wrong[0]}' of {kind.__name__} is {values[wrong[0]]!r:.40}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
