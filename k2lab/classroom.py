"""Opening the course in JupyterLab.

In a checkout that is `notebooks/` itself. From an installed package it is a copy in the current
folder, `k2lab-notebooks`: a notebook that somebody changed is never written over, one that is as
it was copied follows a newer package. JupyterLab neither asks about news nor looks for updates: a
classroom has no network. Not here: JupyterLab's own options, which are passed on.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from k2lab import paths

FIRST = "01_hello.ipynb"
COPY = "k2lab-notebooks"
RECORD = ".copied.json"  # sum of each file as it was copied


def open_course(folder: Path, options: Sequence[str]) -> int:
    """JupyterLab's exit code, after it was open on the first notebook; `options` are its own."""
    place = [f"--ServerApp.root_dir={course(folder)}", f"--LabApp.default_url=/lab/tree/{FIRST}"]
    command = [sys.executable, "-m", "jupyterlab", *place, *options]
    config = [str(paths.asset("jupyter")), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, config))
    if os.name == "posix":  # become JupyterLab, so that ^C and signals are its alone
        os.execv(command[0], command)
    return subprocess.call(command)


def course(folder: Path) -> Path:
    """Where the course is to be opened: the checkout's own, or a copy inside `folder`."""
    source = paths.notebooks()
    if source.parent != paths.PACKAGE:
        return source
    copy = folder / COPY
    copy_course(source, copy)
    return copy


def copy_course(source: Path, copy: Path) -> None:
    """Copy what is missing in `copy`, or still as it was copied before; each file as a whole."""
    copy.mkdir(parents=True, exist_ok=True)
    record = copy / RECORD
    copied = _sums(record)
    for file in sorted(source.glob("*.ipynb")):
        mine = copy / file.name
        # One like the source may lack its record, where copying was interrupted.
        if not mine.exists() or _sum(mine) in (copied.get(file.name), _sum(file)):
            _write(mine, file.read_bytes())
            copied[file.name] = _sum(file)
    _write(record, f"{json.dumps(copied, indent=2)}\n".encode())


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def _sums(record: Path) -> dict[str, str]:
    """Sum of each file by name; none where no record can be read."""
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
