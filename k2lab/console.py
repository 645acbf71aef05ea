"""Printing on a terminal: records as JSON or as rows, and a run as the text that a person follows.

Text of a model or a tool is untrusted: what would steer the terminal is replaced before printing.
"""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from k2lab.engine.events import Event, Misread, Stopped, TokenChosen, ToolAnswered, ToolAsked

NAME_WIDTH = 34  # of the first column of figures
LABEL_WIDTH = 9  # of what stands before thinking, calls, results and answers
SHARE = {"accuracy", "n", "low", "high"}  # the fields of evals.stats.Share


def follow(events: Iterable[Event]) -> Iterator[Event]:
    """The same events, each printed as it passes; how a run failed goes to stderr."""
    part = ""  # thinking or answer, while its line is open
    for event in events:
        match event:
            case TokenChosen(kind="thinking" | "answer") if part or event.text.strip():
                if event.kind != part:
                    _label(event.kind, after=part)
                    part = event.kind
                print(visible(event.text), end="", flush=True)
            case ToolAsked():
                _label("call", after=part)
                print(visible(f"{event.name} {event.arguments}"))
                part = ""
            case ToolAnswered():
                _label("result" if event.ok else "failed", after=part)
                print(visible(event.content))
            case Misread():
                print(f"damaged call ({event.problem}): {visible(event.text)}", file=sys.stderr)
            case Stopped():
                if part:
                    print(flush=True)
                if event.reason != "answer":
                    print(f"{event.reason}: {visible(event.detail)}", file=sys.stderr)
        yield event


def print_figures(record: Any) -> None:
    """Print a record, one name and value a line."""
    for name, value in rows(as_record(record)):
        print(f"{name:{NAME_WIDTH}} {value}")


def rows(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a nested record; a share with its interval is one value.

    >>> list(rows({"layers": 61, "parameters": {"total": 1_026_408_232_448}}))
    [('layers', '61'), ('parameters.total', '1,026,408,232,448')]
    """
    for name, value in record.items():
        if isinstance(value, Mapping) and value.keys() == SHARE:
            accuracy = "–" if value["accuracy"] is None else f"{value['accuracy']:.3f}"
            interval = f"{value['low']:.3f}–{value['high']:.3f}"
            yield prefix + name, f"{accuracy}  ({interval}, n = {value['n']})"
        elif isinstance(value, Mapping):
            yield from rows(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield prefix + name, f"{value:.3f}"
        else:
            yield prefix + name, f"{value:,}" if isinstance(value, int) else str(value)


def as_json(value: Any) -> str:
    """A record on one line of JSON."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def as_record(value: Any) -> dict[str, Any]:
    """A dataclass or mapping as JSON types."""
    plain = _plain(value)
    assert isinstance(plain, dict), f"{type(value).__name__} is no record"
    return plain


def visible(text: str) -> str:
    r"""The text without control characters, line ends and tabs apart.

    >>> visible("red \x1b[31m")
    'red �[31m'
    """
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for sign in text
    )


def _label(name: str, *, after: str) -> None:
    """Begin a line, ending the open one."""
    print("\n" if after else "", end="")
    print(f"{name:{LABEL_WIDTH}} ", end="")


def _plain(value: Any) -> Any:
    """JSON types; a number that JSON lacks (nan, infinity) becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if hasattr(value, "tolist"):  # NumPy arrays and numbers
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
