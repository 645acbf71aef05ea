"""The sandbox: what code can do in there, and what it cannot."""

import os
import threading
import time
from pathlib import Path

import pytest

from k2lab.agent import sandbox
from k2lab.agent.calling import Cancellation, Done, Job, perform_all
from k2lab.agent.sandbox import OUTPUT, Result, Sandbox
from k2lab.agent.tools import call
from k2lab.engine.session import Halted
from k2lab.errors import InputError, SandboxError


def full(code: str, seconds: int = 2) -> Result:
    try:
        return Sandbox(seconds=seconds).run(code)
    except SandboxError as error:
        pytest.skip(f"no user namespaces here: {error.found}")


def processes(mark: str) -> list[str]:
    """Command lines on this machine that hold a text."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(each.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [each for each in found if mark in each]


def test_code_runs_and_what_it_prints_comes_back() -> None:
    found = full(
        "import math, json, sys\nprint(math.comb(10, 5), 'é')\nprint('x', file=sys.stderr)"
    )
    assert (found.output, found.code, found.level, found.why) == ("252 é\nx\n", 0, "full", "")


def test_code_may_use_threads_and_files_of_its_own() -> None:
    code = (
        "import threading\n"
        "t = threading.Thread(target=lambda: open('a', 'w').write('there'))\n"
        "t.start(); t.join(); print(open('/work/a').read())"
    )
    assert full(code).output == "there\n"


def test_nothing_is_left_from_one_run_to_the_next() -> None:
    full("open('/work/a', 'w').write('secret')")
    assert "FileNotFoundError" in full("open('/work/a')").output


ESCAPES = {
    "network": "import socket; s = socket.socket(); s.settimeout(1); s.connect(('1.1.1.1', 80))",
    "the machine's own network": "import socket; s = socket.socket(); s.connect(('127.0.0.1', {port}))",
    "write outside": "open('{folder}/written', 'w').write('x')",
    "write to a library": "import os; open(os.__file__, 'a').write('x')",
    "write to the root": "open('/written', 'w')",
    "read a file": "print(open('{folder}/secret').read())",
    "read the users": "print(open('/etc/passwd').read())",
    "another environment": "print(open('/proc/1/environ').read())",
    "own environment": "import os; print(dict(os.environ)); 1 / 0",
    "fork bomb": "import os\nwhile True: os.fork()",
    "a process": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "4 GB": "x = bytearray(4 * 2**30)",
    "fill the disk": "open('/work/x', 'wb').write(bytes(2**26))",
    "sleep": "import time; time.sleep(60)",
    "spin": "while True: pass",
    "kill the parent": "import os; os.kill({parent}, 9)",
    "kill everything": "import os; os.kill(-1, 9)",
    "leave the group": "import os; os.setsid()",
    "another namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes; l = ctypes.CDLL(None); assert l.mount(b'x', b'/work', b'tmpfs', 0, 0) == 0",
    "trace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "old fork": "import ctypes; assert ctypes.CDLL(None).syscall(57) >= 0",
    "new fork": "import ctypes; assert ctypes.CDLL(None).syscall(435, 0, 0) >= 0",
    "live on": "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "become root": "import os; os.setuid(0)",
    "speak as the jail": "import os; os.write(3, b'x')",
    "a descriptor left open": "import contextlib, os\nleft = []\nfor n in range(3, 64):\n"
    "    with contextlib.suppress(OSError): left.append(os.fstat(n))\nassert left",
    "a socket of any kind": "import socket; socket.socket(socket.AF_UNIX)",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_succeeds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("K2LAB_TEST_SECRET", "swordfish")
    (tmp_path / "secret").write_text("swordfish")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {"port": str(server.getsockname()[1]), "folder": str(tmp_path)}
        values |= {"secret": "swordfish", "parent": str(os.getpid())}
        code = ESCAPES[name]
        for key, value in values.items():
            code = code.replace(f"{{{key}}}", value)
        began = time.monotonic()
        found = full(f"{code}\nprint('ESC' 'APED')")
    assert found.level == "full"
    assert found.code != 0 and "ESCAPED" not in found.output and "swordfish" not in found.output
    assert time.monotonic() - began < 10
    assert not (tmp_path / "written").exists()


def test_the_interpreter_is_the_same_and_sees_nothing_else() -> None:
    import platform

    found = full("import os, platform; print(platform.python_version(), os.getpid(), os.getuid())")
    assert found.output == f"{platform.python_version()} 1 1000\n"


def test_endless_output_is_cut_and_ends_the_code() -> None:
    found = full("while True: print('x' * 1000)")
    assert found.why == "output" and len(found.output) == OUTPUT


def test_code_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    found = full(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", 1
    )
    assert found.why == "time" and 1 <= found.seconds < 4
    assert not processes("jail.py")


def test_stop_ends_the_code_within_200_ms_and_leaves_no_process() -> None:
    full("pass")
    tool, times = Sandbox(seconds=30).tool(), list[float]()

    def check() -> None:
        if processes("code.py"):
            times.append(time.monotonic())
            raise Halted

    job = Job("0.0", tool, {"code": "import time; time.sleep(30)"})
    with pytest.raises(Halted):
        list(perform_all([job], check, lambda _: None))
    while processes("code.py") and time.monotonic() - times[0] < 5:
        time.sleep(0.005)
    assert time.monotonic() - times[0] < 0.2
    assert not processes("jail.py")


def test_below_the_asked_level_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "jail.py"
    for report in ('{"level": "none", "why": "not allowed"}', '{"level": "limits"}', ""):
        fake.write_text(f"import os\nos.write(3, {report.encode()!r})")
        monkeypatch.setattr(sandbox, "JAIL", fake)
        with pytest.raises(SandboxError, match="not 'full'"):
            Sandbox().run("print('ran')")


def test_limits_alone_are_a_level_of_their_own() -> None:
    found = Sandbox(level="limits", seconds=1).run("print(1)\nx = bytearray(2**31)")
    assert found.level == "limits" and "MemoryError" in found.output


def test_what_leaves_the_group_at_limits_does_not_hold_up_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "GRACE", 0.1)
    code = "import os, time\nif not os.fork():\n    os.setsid(); time.sleep(3); print('late')"
    found = Sandbox(level="limits", seconds=1).run(code)
    assert (found.output, found.why) == ("", "time")


def test_the_tool_tells_the_model_what_went_wrong() -> None:
    full("pass")
    python = Sandbox(seconds=1).tool()
    assert (python.name, python.effect) == ("python", "reads")
    assert call(python, '{"code": "print(6 * 7)"}').content == "42\n"
    failed = call(python, '{"code": "1 / 0"}')
    assert not failed.ok and "ZeroDivisionError" in failed.content
    late = call(python, '{"code": "while True: pass"}')
    assert late.content.startswith("error: ended (time) after")
    done = list(perform_all([Job("0.0", python, {"code": "while True: pass"})],
                            lambda: None, lambda _: None))  # fmt: skip
    assert [type(each) for each in done] == [Done]  # what was too long once is not tried again


@pytest.mark.parametrize(
    "wrong", [{"level": "none"}, {"seconds": 0}, {"memory": 1}, {"seconds": 1.5}]
)
def test_a_sandbox_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Sandbox(**wrong)  # type: ignore[arg-type]


def test_many_at_the_same_time_do_not_disturb_each_other() -> None:
    full("pass")
    results: dict[int, str] = {}

    def work(n: int) -> None:
        results[n] = Sandbox(seconds=10).run(f"print({n} ** 2)").output

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == {n: f"{n * n}\n" for n in range(6)}
    assert not Cancellation().cancelled
