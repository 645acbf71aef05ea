"""The wheel alone is a whole laboratory: built offline, installed by itself, used from elsewhere."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NANO = ROOT / "assets" / "k2-nano"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("k2lab-*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*install, "--target", str(folder), str(wheel)], check=True)
    return folder


def python(site: Path, elsewhere: Path, *arguments: str) -> str:
    """What Python prints with the wheel in front of every other k2lab, in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_carries_what_the_lab_needs_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"k2lab"}
    listed = [
        *(f"k2lab/_front/{path.name}" for path in (ROOT / "widgets").glob("*.js")),
        *(f"k2lab/_front/{path.name}" for path in (ROOT / "widgets").glob("*.css")),
        *(f"k2lab/_notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")),
        *(f"k2lab/_assets/k2-nano/{path.name}" for path in NANO.glob("*") if path.is_file()),
        "k2lab/_assets/k2-thinking/config.json",
        "k2lab/py.typed",
    ]
    assert not set(listed) - names
    assert not [name for name in names if name.endswith((".test.mjs", "package.json", ".pyc"))]


def test_installed_package_is_the_wheels(site: Path, tmp_path: Path) -> None:
    printed = python(site, tmp_path, "-c", "import k2lab; print(k2lab.__file__)")
    assert Path(printed.strip()).is_relative_to(site)


def test_info_of_the_full_model_needs_no_weights(site: Path, tmp_path: Path) -> None:
    printed = python(site, tmp_path, "-m", "k2lab", "info", "k2-thinking", "--json")
    assert json.loads(printed)["parameters_total"] == 1_026_408_232_448


def test_front_end_and_course_are_found(site: Path, tmp_path: Path) -> None:
    code = "from k2lab import paths; print(paths.front()); print(paths.notebooks())"
    front, notebooks = map(Path, python(site, tmp_path, "-c", code).split())
    assert front == site / "k2lab" / "_front"
    assert notebooks == site / "k2lab" / "_notebooks"
    assert (front / "_kit.js").is_file()


def test_nano_runs_from_the_wheel(site: Path, tmp_path: Path) -> None:
    if not list(NANO.glob("model*.safetensors")):
        pytest.skip("K2-nano's weights are not in this checkout")
    arguments = ("-m", "k2lab", "run", "What is 3 + 4?", "--json", "--greedy", "--max-tokens", "8")
    events = [json.loads(line) for line in python(site, tmp_path, *arguments).splitlines()]
    assert events[0]["event"] == "PromptRead"
    assert events[-1]["event"] == "Stopped"
