"""Kills a run at every point where it could be lost, resumes it, and counts what happened.

A child process runs a scripted model (`puppet.py`) with a journal and is killed (SIGKILL) before,
in the middle of and after each write, and before, between and after what a tool does. Another
resumes it. Right is: the run finishes, the journal verifies, what changes the world was done once
(the model looks where an outcome is unknown), what only reads was done at most once more.
"""

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from k2lab.agent.journal import Journal, read, verify
from k2lab.agent.keys import Key
from k2lab.agent.loop import Mind, carry_on, opening
from k2lab.agent.resume import UNKNOWN, stand
from k2lab.agent.terms import Terms
from k2lab.agent.tools import Tool, tool
from k2lab.engine.capture import LEVELS
from k2lab.engine.generate import Settings
from k2lab.errors import JournalError
from k2lab.evals.puppet import Puppet, calls
from k2lab.paths import asset
from k2lab.spec.config import K2Config
from k2lab.text.tokenizer import Tokenizer

ENTRIES = 6  # entries that the model keeps; the third and the fourth are looked up side by side
CONTEXT = 32_768
POINTS = 122  # at which a run can be killed; a few more are after its end
NEVER = -1  # the point at which a run that may live is killed
SECONDS = 60.0  # that one process may take

_KEPT = re.compile(r"## Return of functions\.(?:note|look):(\d+)\n(?:kept|there)")
_RESULT = re.compile(r"## Return of functions\.(note|look):(\d+)\n([^<]*)<")


@dataclass(frozen=True, slots=True)
class Kills:
    """What became of the runs that were killed."""

    points: int  # at which a run was killed, each once
    finished: int  # of those: resumed and ended with an answer
    verified: int  # of those: with a journal that is whole
    once: int  # of those: every change of the world made exactly once
    at_most_once_more: int  # of those: nothing that only reads made more than twice
    unknown: int  # calls whose outcome was told to be unknown
    cut: int  # journals whose torn last line was cut and recorded
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether every run survived."""
        return self.points == self.finished == self.verified == self.once == self.at_most_once_more


class _Fuse:
    """Counts points; kills this process at one of them."""

    def __init__(self, point: int) -> None:
        self.point, self.passed = point, 0

    def pass_by(self) -> None:
        if self.passed == self.point:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


class _Fused(Journal):
    """A journal in whose writes a process can be killed."""

    fuse = _Fuse(NEVER)

    def _append(self, line: bytes) -> None:
        self.fuse.pass_by()
        if self.fuse.passed == self.fuse.point:  # the next point is in the middle of the line
            os.write(self._file, line[: len(line) // 2])
        self.fuse.pass_by()
        super()._append(line)
        self.fuse.pass_by()

    def _checkpoint(self) -> None:
        super()._checkpoint()
        self.fuse.pass_by()


def _tools(folder: Path, fuse: _Fuse) -> list[Tool]:
    """`note` changes the world, which is a file; `look` tells what is in it."""

    def add(name: str, n: int) -> None:
        fuse.pass_by()
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{n}\n".encode())
        os.close(file)
        fuse.pass_by()

    @tool(effect="writes")
    def note(n: int) -> str:
        """Keep an entry."""
        add("kept", n)
        return "kept"

    @tool(effect="reads")
    def look(n: int) -> str:
        """Whether an entry is there."""
        add("looked", n)
        return "there" if n in (2, 3) or _lines(folder / "kept")[n] else "not there"

    return [note, look]


def _reply(text: str) -> str:
    """The model's next turn: it keeps what is not kept, and looks where it does not know."""
    known = {int(n) for n in _KEPT.findall(text)}
    entry = next((n for n in range(ENTRIES) if n not in known), None)
    if entry is None:
        return "<think>All there.</think>Done."
    thought = f"<think>Now {entry}.</think>"
    if entry in (2, 3):
        return thought + calls(*(("look", str(n), f'{{"n": {n}}}') for n in (2, 3)))
    results = [result for _, n, result in _RESULT.findall(text) if int(n) == entry]
    name = "look" if results and results[-1].startswith(UNKNOWN) else "note"
    return thought + calls((name, str(entry), f'{{"n": {entry}}}'))


def live(folder: Path, point: int) -> int:
    """Run, or go on with the run, in a folder; killed at a point. The number of points passed."""
    fuse = _Fuse(point)
    _Fused.fuse = fuse
    shape, path, key = asset("k2-nano"), folder / "run.journal", Key.own(folder / "key.pem")
    config = replace(K2Config.from_json(shape), max_position_embeddings=CONTEXT)
    tokenizer = Tokenizer.from_folder(shape)
    mind = Mind(Puppet(config, tokenizer, _reply), tokenizer)  # type: ignore[arg-type]
    if path.exists() and verify(path).ended == "answer":  # killed after all was done
        return 0
    tools, settings = _tools(folder, fuse), Settings(max_tokens=CONTEXT, capture=LEVELS["off"])
    try:
        journal, records = _Fused.reopen(path, tokenizer, key=key)
        found = stand(records, journal, mind)
        journal.note("resumed", unknown=list(found.unknown))
        place, recalled = found.place, dict(found.recalled)
    except (JournalError, FileNotFoundError):  # killed before anything could happen
        path.unlink(missing_ok=True)
        journal = _Fused.begin(path, tokenizer, key=key)
        place, recalled = opening(mind, [{"role": "user", "content": "Keep 0 to 5."}], tools), {}
    terms = Terms(witness=journal, recalled=recalled)
    for _ in carry_on(mind, place, tools, settings, terms):
        pass
    return fuse.passed


def _live(folder: str, point: int, passed: Any) -> None:
    passed.value = live(Path(folder), point)


def kills(points: Iterable[int] | None = None, *, again: bool = False) -> Kills:
    """Kill at these points, by default at each; `again` kills the resumed run too, at the same."""
    context = multiprocessing.get_context("forkserver")  # a child starts without loading torch
    context.set_forkserver_preload(["k2lab.evals.kills"])
    began, total = time.perf_counter(), Counter[str]()

    def run(folder: str, point: int) -> tuple[int | None, int]:
        passed = context.Value("i", -1)
        child = context.Process(target=_live, args=(folder, point, passed))
        child.start()
        child.join(SECONDS)
        return child.exitcode, passed.value

    with tempfile.TemporaryDirectory() as folder:
        code, every = run(folder, NEVER)
        assert code == 0, "the run without a kill failed"
    for point in range(every) if points is None else points:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(1 + again):
                code, _ = run(folder, point)
                total["killed"] += code == -signal.SIGKILL
            code, _ = run(folder, NEVER)
            total += _found(Path(folder), code)
            total["points"] += 1
    return Kills(
        points=total["points"],
        finished=total["finished"],
        verified=total["verified"],
        once=total["once"],
        at_most_once_more=total["reads"],
        unknown=total["unknown"],
        cut=total["cut"],
        seconds=time.perf_counter() - began,
    )


def _found(folder: Path, code: int | None) -> Counter[str]:
    """What one survivor left behind."""
    path, key = folder / "run.journal", Key.own(folder / "key.pem")
    verdict, records = verify(path, trusted=[key.public]), read(path)
    kept, looked = _lines(folder / "kept"), _lines(folder / "looked")
    answers = [each.facts["content"] for each in records if each.kind == "answered"]
    return Counter(
        finished=int(code == 0 and verdict.ended == "answer"),
        verified=int(verdict.whole and verdict.checkpoint and verdict.known_signer),
        once=int(kept == {n: 1 for n in range(ENTRIES) if n not in (2, 3)}),
        reads=int(all(looked[n] in (1, 2) for n in (2, 3))),
        unknown=answers.count(UNKNOWN),
        cut=sum(each.kind == "cut" for each in records),
    )


def _lines(path: Path) -> Counter[int]:
    return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()
