"""Typed reading of a JSON object: each value that is missing or of a wrong type is a ConfigError.

What it is not: it knows no key of its own and checks no value against another; `config.py` and
`quantization.py` do that.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from k2lab.errors import ConfigError

Value = TypeVar("Value")


class Fields:
    """A JSON object, the name it is reported under, and the keys that were asked for so far."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values, self.name = values, name
        self.asked: set[str] = set()

    def get(self, key: str) -> Any:
        """The value as it stands; None where the key is absent or null."""
        self.asked.add(key)
        return self.values.get(key)

    def integer(self, key: str) -> int:
        """The whole number; an absent key is refused."""
        return self._required(key, self.optional_integer(key), "a whole number")

    def number(self, key: str) -> float:
        """The finite number; an absent key is refused."""
        return self._required(key, self.optional_number(key), "a finite number")

    def truth(self, key: str) -> bool:
        """True or false; an absent key is refused."""
        return self._required(key, self.optional_truth(key), "true or false")

    def word(self, key: str) -> str:
        """The string; an absent key is refused."""
        return self._required(key, self.optional_word(key), "a string")

    def optional_integer(self, key: str) -> int | None:
        """The whole number, or None."""
        value = self.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, value, "a whole number")

    def optional_number(self, key: str) -> float | None:
        """The finite number as a float, or None."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise self._wrong(key, value, "a finite number")

    def optional_truth(self, key: str) -> bool | None:
        """True, false or None."""
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, value, "true or false")

    def optional_word(self, key: str) -> str | None:
        """The string, or None."""
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, value, "a string")

    def words(self, key: str) -> tuple[str, ...]:
        """The strings of a list; an absent key is refused."""
        value = self.get(key)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise self._wrong(key, value, "a list of strings")

    def optional_block(self, key: str) -> "Fields | None":
        """The object, to be read in turn, or None."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, Mapping):
            return Fields(value, f"{self.name}, {key}")
        raise self._wrong(key, value, "an object")

    def block(self, key: str) -> "Fields":
        """The object, to be read in turn; an absent key is refused."""
        return self._required(key, self.optional_block(key), "an object")

    def left(self) -> list[str]:
        """The keys that nobody asked for, sorted."""
        return sorted(set(self.values) - self.asked)

    def _required(self, key: str, value: Value | None, kind: str) -> Value:
        if value is not None:
            return value
        state = "null" if key in self.values else "missing"
        raise ConfigError(
            f"In {self.name} the key {key!r} is {state}.",
            expected=f"{key!r} is {kind}.",
            mend="Copy the key from the config.json that was published with the checkpoint.",
        )

    def _wrong(self, key: str, value: object, kind: str) -> ConfigError:
        return ConfigError(
            f"In {self.name} the key {key!r} is {shown(value)}.",
            expected=f"{key!r} is {kind}.",
            mend="Restore the value from the config.json that was published with the checkpoint.",
        )


def shown(value: object) -> str:
    """The value as JSON-like text of at most 80 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file; anything else in it is a ConfigError."""
    mend = "Fetch the file again from where the checkpoint was published."
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{path} cannot be read: {reason}.",
            expected="A readable config.json, or the folder that holds it.",
            mend="Check the path; a checkpoint folder holds a file named config.json.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start}).", expected="A JSON object.", mend=mend
        ) from error
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not JSON: {error}.", expected="A JSON object.", mend=mend
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {shown(value)}.", expected="A JSON object.", mend=mend)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; a key that stands twice is an error, as either value could be meant."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {twice[0]!r} stands twice in one object")
    return values
