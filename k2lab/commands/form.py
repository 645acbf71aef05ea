"""What commands share: exit codes, the way to declare one, and the way to print its figures."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k2lab.console import as_json, print_figures
from k2lab.errors import InputError

if TYPE_CHECKING:
    from k2lab.spec.config import K2Config

Options = argparse.Namespace
Command = Callable[[Options], int]

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: as wished · the run or check went wrong · a K2LabError · ^C."""


def add(commands: Any, name: str, command: Command, text: str) -> Any:
    """The parser of a new command."""
    made = commands.add_parser(name, help=text, description=text)
    made.set_defaults(command=command)
    return made


def add_group(commands: Any, name: str, text: str, metavar: str) -> Any:
    """Where the commands of a group are added, such as those of `k2lab bench`."""
    group = commands.add_parser(name, help=text, description=text)
    return group.add_subparsers(required=True, metavar=metavar)


def add_json(made: Any, text: str = "print JSON") -> None:
    """The option `--json`."""
    made.add_argument("--json", action="store_true", help=text)


def add_model(made: Any, text: str = "a checkpoint folder (default: K2-nano)") -> None:
    """The option `--model`."""
    made.add_argument("--model", metavar="DIR", type=Path, help=text)


def config(name: str | Path | None) -> "tuple[str, K2Config, Path | None]":
    """Name, config and folder (None: no weights here) of a shipped model or a checkpoint folder."""
    from k2lab.paths import asset
    from k2lab.spec.config import K2Config

    if name == "k2-thinking":
        return str(name), K2Config.from_json(asset("k2-thinking")), None
    if name in (None, "k2-nano"):
        folder = asset("k2-nano")
        return "k2-nano", K2Config.from_json(folder), folder
    folder = Path(str(name))
    return folder.resolve().name, K2Config.from_json(folder), folder


def checkpoint(name: str | Path | None) -> Path:
    """The folder of a model that must have weights."""
    folder = config(name)[2]
    if folder is None:
        raise InputError(
            f"{name} is here as a config only.",
            expected="a checkpoint with weights.",
            mend="Name a checkpoint folder.",
        )
    return folder


def show(figures: Any, options: Options) -> None:
    """Print figures as a table or as JSON."""
    if options.json:
        print(as_json(figures))
    else:
        print_figures(figures)


def without(option: str, other: str) -> InputError:
    """The refusal of an option that does nothing without another one."""
    return InputError(
        f"{option} without {other}.",
        expected=f"{option} where it does something.",
        mend=f"Add {other}, or leave out {option}.",
    )


def counted(done: Iterable[Any], n: int) -> Iterator[Any]:
    """The results, their number shown on a terminal while they come."""
    for number, result in enumerate(done, 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{n}", end="\n" if number == n else "", file=sys.stderr, flush=True)
        yield result


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    return _at_least(1, text)


def counting(text: str) -> int:
    """A whole number from 0 up, for argparse."""
    return _at_least(0, text)


def _at_least(low: int, text: str) -> int:
    number = int(text)
    if number < low:
        raise ValueError
    return number
