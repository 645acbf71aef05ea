"""The checks of other tools, as tests: style, types, and the front end's own tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> None:
    """Run in the project; fail with what the tool printed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".")


def test_ruff_would_format_nothing() -> None:
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.timeout(900)
def test_mypy_finds_nothing(mypy: "subprocess.Popen[str]") -> None:
    output, _ = mypy.communicate()
    if mypy.returncode:
        pytest.fail(f"mypy\n{output}", pytrace=False)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_front_end_tests_pass() -> None:
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "widgets").glob("*.test.mjs"))
    assert files, "the front end has tests"
    run("node", "--test", *files)
