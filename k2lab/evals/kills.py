"""Kills a run at every point where it could be lost, resumes it, and counts what happened.

A child process runs a scripted model (`puppet.py`) with a journal and is killed (SIGKILL) before,
in the middle of and after each write, before, between and after what a tool does, and before and
after each result that compaction puts into the memory. Another resumes it. Right is: the run
finishes, the journal verifies, what changes the world was done once (the model looks where an
outcome is unknown), what only reads was done at most once more, and where every outcome is known
the whole run has the very tokens of a run that was not killed.
"""

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from k2lab.agent.budget import Budget
from k2lab.agent.journal import Journal, Record, read, verify
from k2lab.agent.keys import Key
from k2lab.agent.loop import Mind, carry_on, opening
from k2lab.agent.memory import Memory
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
NEVER = -1  # the point at which a run that may live is killed
SECONDS = 300.0  # that one process may take, on a machine that others keep busy
SIDE_BY_SIDE = 4  # survivors, each with a folder of its own

_RESULT = re.compile(r"## Return of functions\.(?:note|look):(\d+)\n([^<]*)<")
_KNOWN = ("kept", "there", "[hidden")


Conversation = dict[str, Any]
"""What was said, by its place, as a journal writes it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A kind of run that is killed."""

    points: int  # at which a run can be killed; a few more are after its end
    context: int | None = None  # tokens; None: it is never filled
    words: int = 0  # in each result
    wide: int = 0  # words in the result that is larger than the context
    thought: int = 0  # words in the thought that fills it


SCENES = {
    "roomy": Scene(122),
    "narrow": Scene(182, context=1500, words=40, wide=2000, thought=300),
}
"""`narrow` compacts: between turns, in the middle of one, and for a result that has to be cut."""


@dataclass(frozen=True, slots=True)
class Kills:
    """What became of the runs that were killed."""

    points: int  # at which a run was killed, each once
    finished: int  # of those: resumed and ended with an answer
    verified: int  # of those: with a journal that is whole
    once: int  # of those: every change of the world made exactly once
    at_most_once_more: int  # of those: nothing that only reads made more than twice
    same: int  # of those: the tokens of a run that was not killed, unless an outcome is unknown
    compacted: int  # times that a survivor was compacted, all together
    unknown: int  # calls whose outcome was told to be unknown
    cut: int  # journals whose torn last line was cut and recorded
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether every run survived."""
        counted = (self.finished, self.verified, self.once, self.at_most_once_more, self.same)
        return all(each == self.points for each in counted)


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


class _FusedMemory(Memory):
    """A memory in whose taking in a process can be killed."""

    def __init__(self, path: Path, fuse: _Fuse) -> None:
        super().__init__(path)
        self._fuse = fuse

    def keep(self, text: str) -> str:
        self._fuse.pass_by()
        citation = super().keep(text)
        self._fuse.pass_by()
        return citation


def _tools(folder: Path, fuse: _Fuse, scene: Scene) -> list[Tool]:
    """`note` changes the world, which is a file; `look` tells what is in it."""

    def add(name: str, n: int) -> None:
        fuse.pass_by()
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{n}\n".encode())
        os.close(file)
        fuse.pass_by()

    def page(n: int) -> str:
        return f" {n}, page" * (scene.wide if n == 1 else scene.words)

    @tool(effect="writes")
    def note(n: int) -> str:
        """Keep an entry."""
        add("kept", n)
        return "kept" + page(n)

    @tool(effect="reads")
    def look(n: int) -> str:
        """Whether an entry is there."""
        add("looked", n)
        there = n in (2, 3) or _lines(folder / "kept")[n]
        return "there" + page(n) if there else "not there"

    return [note, look]


def _reply(text: str, scene: Scene) -> str:
    """The model's next turn: it keeps what is not kept, and looks where it does not know."""
    results = {int(n): result for n, result in _RESULT.findall(text)}  # the latest of each
    known = {n for n, result in results.items() if result.startswith(_KNOWN)}
    entry = next((n for n in range(ENTRIES) if n not in known), None)
    if entry is None:
        return "<think>All there.</think>Done."
    more = " and on" * (scene.thought if entry == ENTRIES - 1 and entry not in results else 0)
    thought = f"<think>Now {entry}{more}.</think>"
    if entry in (2, 3):
        return thought + calls(*(("look", str(n), f'{{"n": {n}}}') for n in (2, 3)))
    name = "look" if results.get(entry, "").startswith(UNKNOWN) else "note"
    return thought + calls((name, str(entry), f'{{"n": {entry}}}'))


def live(folder: Path, point: int, scene: Scene) -> int:
    """Run, or go on with the run, in a folder; killed at a point. The number of points passed."""
    fuse = _Fuse(point)
    _Fused.fuse = fuse
    shape, path, key = asset("k2-nano"), folder / "run.journal", Key.own(folder / "key.pem")
    config = replace(K2Config.from_json(shape), max_position_embeddings=CONTEXT)
    tokenizer = Tokenizer.from_folder(shape)
    puppet = Puppet(config, tokenizer, partial(_reply, scene=scene))
    mind = Mind(puppet, tokenizer)  # type: ignore[arg-type]
    if path.exists() and verify(path).ended == "answer":  # killed after all was done
        return 0
    settings = Settings(max_tokens=CONTEXT, capture=LEVELS["off"])
    tools, memory = _tools(folder, fuse, scene), _FusedMemory(folder / "memory.db", fuse)
    try:
        journal, records = _Fused.reopen(path, tokenizer, key=key)
        found = stand(records, journal, mind)
        journal.note("resumed", unknown=list(found.unknown))
        place, recalled = found.place, dict(found.recalled)
    except (JournalError, FileNotFoundError):  # killed before anything could happen
        path.unlink(missing_ok=True)
        journal = _Fused.begin(path, tokenizer, key=key)
        place, recalled = opening(mind, [{"role": "user", "content": "Keep 0 to 5."}], tools), {}
    budget = Budget(context=scene.context)
    terms = Terms(witness=journal, recalled=recalled, memory=memory, budget=budget)
    for _ in carry_on(mind, place, tools, settings, terms):
        pass
    return fuse.passed


def _live(folder: str, point: int, scene: Scene, passed: Any) -> None:
    passed.value = live(Path(folder), point, scene)


def kills(
    scene: str = "roomy", points: Iterable[int] | None = None, *, again: bool = False
) -> Kills:
    """Kill a run of this scene at these points, by default at each of its own.

    `again` kills the resumed run too, at the same.
    """
    context = multiprocessing.get_context("forkserver")  # a child starts without loading torch
    context.set_forkserver_preload(["k2lab.evals.kills"])
    began, total, played = time.perf_counter(), Counter[str](), SCENES[scene]

    def run(folder: str, point: int) -> tuple[int | None, int]:
        passed = context.Value("i", -1)
        child = context.Process(target=_live, args=(folder, point, played, passed))
        child.start()
        child.join(SECONDS)
        code = child.exitcode  # None: it hangs
        child.kill()
        return code, passed.value

    def survivor(point: int) -> Counter[str]:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(1 + again):
                run(folder, point)
            code, _ = run(folder, NEVER)
            return _found(Path(folder), code, whole)

    with tempfile.TemporaryDirectory() as folder:
        code, every = run(folder, NEVER)
        assert code == 0, "the run without a kill failed"
        assert every >= played.points, f"it has {every} points"
        whole = _conversation(read(Path(folder) / "run.journal"))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:  # children wait for the disk most of the time
        for each in pool.map(survivor, range(played.points) if points is None else points):
            total += each
    return Kills(
        points=total["points"],
        finished=total["finished"],
        verified=total["verified"],
        once=total["once"],
        at_most_once_more=total["reads"],
        same=total["same"],
        compacted=total["compacted"],
        unknown=total["unknown"],
        cut=total["cut"],
        seconds=time.perf_counter() - began,
    )


def _found(folder: Path, code: int | None, whole: Conversation) -> Counter[str]:
    """What one survivor left behind, beside the conversation that nobody killed."""
    path, key = folder / "run.journal", Key.own(folder / "key.pem")
    verdict, records = verify(path, trusted=[key.public]), read(path)
    kept, looked = _lines(folder / "kept"), _lines(folder / "looked")
    answers = [each.facts["content"] for each in records if each.kind == "answered"]
    return Counter(
        points=1,
        finished=int(code == 0 and verdict.ended == "answer"),
        verified=int(verdict.whole and verdict.checkpoint and verdict.known_signer),
        once=int(kept == {n: 1 for n in range(ENTRIES) if n not in (2, 3)}),
        reads=int(all(looked[n] in (1, 2) for n in (2, 3))),
        same=int(UNKNOWN in answers or _conversation(records) == whole),
        compacted=max(each.facts["context"] for each in records if each.kind == "turn"),
        unknown=answers.count(UNKNOWN),
        cut=sum(each.kind == "cut" for each in records),
    )


def _conversation(records: Sequence[Record]) -> Conversation:
    """What was read and written, token by token, and what came back of each call."""
    told = Conversation()
    for each in records:
        match each.kind:
            case "opened":
                told["opened"] = each.facts["given"]
            case "turn":  # one that was gone on with stands there again, longer
                place = f"turn {each.facts['step']}, context {each.facts['context']}"
                given = told.get(place, [each.facts["given"]])[0]
                told[place] = [given, each.facts["chosen"]]
            case "answered":
                told[f"answer {each.facts['key']}"] = each.facts["content"]
    return told


def _lines(path: Path) -> Counter[int]:
    return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()
