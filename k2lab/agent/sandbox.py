r"""Python code of a model, run where it can do no harm: a process that is shut in (`jail.py`).

    result = Sandbox().run("print(6 * 7)")      # result.output == "42\n", result.level == "full"

`level` is what has to be reached: "full" (namespaces, a file system of its own, limits and a system
call filter) or "limits" (resource limits and a process group, which protect against accidents and
not against malice). Where less is reached, nothing is run. The process group is killed when time is
over, when the output is too long, and when the call is given up.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from k2lab.agent.calling import cancellation
from k2lab.agent.tools import Tool, tool
from k2lab.errors import InputError, SandboxError

Level = Literal["full", "limits"]

SECONDS = 5
MEMORY = 512 * 2**20  # bytes of address space
OUTPUT = 16_384  # bytes that are read; with more the code is ended
JAIL = Path(__file__).with_name("jail.py")
START = 10.0  # seconds that the shutting in may take
GRACE = 2.0  # seconds in which the output has to end once the code was killed


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the code."""

    output: str  # both streams, as they came
    code: int  # 0: it went to its end
    level: str  # reached
    why: str  # it was ended from outside: "time", "output", "given up"; or empty
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where and how long code may run."""

    level: Level = "full"
    seconds: int = SECONDS
    memory: int = MEMORY

    def __post_init__(self) -> None:
        known = self.level in get_args(Level) and type(self.seconds) is type(self.memory) is int
        if not known or self.seconds < 1 or self.memory < 2**26:
            raise InputError(
                f"A sandbox of level {self.level!r}, {self.seconds} s and {self.memory} bytes.",
                expected=f"{' or '.join(get_args(Level))}, whole, at least 1 s and 64 MiB.",
                mend="Correct what `Sandbox(…)` is given.",
            )

    def run(self, code: str) -> Result:
        """What becomes of the code; SandboxError where the level is not reached."""
        with tempfile.TemporaryDirectory(prefix="k2lab-") as folder:
            return _Prison(self, code, folder).run()

    def tool(self) -> Tool:
        """The tool `python`, for a model: it changes nothing and hears nothing from outside."""

        @tool(effect="reads", trusted=True, timeout=START + self.seconds + 5)
        def python(code: Annotated[str, "Python code; what it prints is the result"]) -> str:
            """Run Python code, without network and files; print what should be seen."""
            result = self.run(code)
            if result.why:
                raise SandboxError(
                    f"ended ({result.why}) after {result.seconds:.1f} s: {result.output[-500:]}",
                    expected=f"at most {self.seconds} s and {OUTPUT} bytes of output.",
                    mend="Compute less, or print less.",
                )
            if result.code:
                raise SandboxError(
                    result.output[-1000:] or f"exit code {result.code}",
                    expected="code that goes to its end.",
                    mend="Correct the code.",
                )
            return result.output

        return python


class _Prison:
    """One process, from its start to its end."""

    def __init__(self, sandbox: Sandbox, code: str, folder: str) -> None:
        self._sandbox = sandbox
        self._python = os.path.realpath(sys.executable)
        libraries = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
        readable = [sys.base_prefix, *(each for each in libraries if Path(each).is_dir())]
        self._asked = {
            "code": code,
            "folder": folder,
            "level": sandbox.level,
            "memory": sandbox.memory,
            "python": self._python,
            "readable": _outermost([os.path.realpath(each) for each in readable]),
            "links": [
                [each, str(Path(each).readlink())] for each in libraries if Path(each).is_symlink()
            ],
            "seconds": sandbox.seconds,
        }
        self._output, self._why = bytearray(), ""

    def run(self) -> Result:
        told, tell = os.pipe()
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                [self._python, "-I", "-S", "-B", "-c", _START, str(tell), str(JAIL)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={}, cwd="/", pass_fds=[tell], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(tell)
        try:
            with process, cancellation().calling(lambda: self._end(process, "given up")):
                self._watch(process, told, began)
        finally:
            os.close(told)
        report = self._report
        if report.get("level") != self._sandbox.level:
            raise SandboxError(
                f"The sandbox reached the level {report.get('level', 'none')!r}, not "
                f"{self._sandbox.level!r}: {report.get('why') or self._output.decode()[-300:]}",
                expected="what was asked for, or nothing is run.",
                mend="Allow user namespaces on this machine, or ask for `level='limits'`, which "
                "does not protect against malice.",
            )
        text = self._output[:OUTPUT].decode("utf-8", "replace")
        seconds = time.monotonic() - began
        return Result(text, process.returncode, report["level"], self._why, seconds)

    def _watch(self, process: "subprocess.Popen[bytes]", told: int, began: float) -> None:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(self._asked).encode() + b"\n")
            process.stdin.close()
        self._report: dict[str, str] = {}
        raw, until = b"", began + START
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(told, selectors.EVENT_READ)
            while selector.get_map():
                left = until - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if not ready and self._why:
                    break  # it was killed; what left its group, at `limits`, may hold the output
                if not ready:
                    self._end(process, "time")
                    until = time.monotonic() + GRACE
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fd == told:
                        raw += data
                        until = time.monotonic() + self._sandbox.seconds  # now the code's time runs
                    else:
                        self._output += data[: OUTPUT + 1 - len(self._output)]
                        if len(self._output) > OUTPUT:
                            self._end(process, "output")
        with suppress(ValueError):
            self._report = json.loads(raw)
        self._end(process, "")
        process.wait()

    def _end(self, process: "subprocess.Popen[bytes]", why: str) -> None:
        """Kill the warder's group; with the warder its namespace dies. The first reason counts."""
        self._why = self._why or why
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


_START = "import os,sys,runpy; told=int(sys.argv[1]); os.dup2(told,3)==told or os.close(told); \
sys.argv=sys.argv[2:]; runpy.run_path(sys.argv[0],run_name='__main__')"


def _outermost(paths: list[str]) -> list[str]:
    """The paths without those that lie inside another."""
    kept = {each for each in paths if each != "/"}
    return sorted(each for each in kept if not any(each.startswith(f"{x}/") for x in kept))
