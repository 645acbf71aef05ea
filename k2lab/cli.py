"""The command line: thin, each command a call into the package and a way to print its result.

Figures print as a table, or with `--json` as JSON (`run`: one event a line). An error that k2lab
raises on purpose is printed as its three parts, with exit code 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from k2lab import __version__
from k2lab.commands import ask, checkpoints, measure, plan, train
from k2lab.commands.form import FAILED, INTERRUPTED, REFUSED
from k2lab.errors import K2LabError


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command that the arguments name."""
    # Before torch is loaded: its waiting threads must sleep, or shared cores slow down tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a sign that it has no code for ends no command
            stream.reconfigure(errors="backslashreplace")
    parser = command_line()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not ask.open_lab:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        code: int = options.command(options)
    except K2LabError as error:
        return _refuse(error.found, error.expected, error.mend)
    except KeyboardInterrupt as interrupt:
        print(*interrupt.args, sep="\n", end="\n" * bool(interrupt.args), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a path, a right or the disk
        if error.strerror is None:
            raise
        named = " → ".join(str(each) for each in (error.filename, error.filename2) if each)
        return _refuse(
            f"{named or 'A file'}: {error.strerror}.",
            "a file or folder that can be read and written.",
            "Check the path, the rights to it, and the room on disk.",
        )
    return code


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="k2lab", description="A laboratory for the Kimi K2 Thinking architecture."
    )
    parser.add_argument("--version", action="version", version=f"k2lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for subject in (ask, checkpoints, plan, measure, train):
        subject.add_commands(commands)
    return parser


def _refuse(found: str, expected: str, mend: str) -> int:
    """Tells the three parts of an error; its exit code."""
    print(f"found:    {found}\nexpected: {expected}\nmend:     {mend}", file=sys.stderr)
    return REFUSED
