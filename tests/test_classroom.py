"""The copy of the course that an installed package makes."""

import json
import os
from pathlib import Path

import jupyterlab
import pytest

from k2lab import classroom, paths


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package's notebooks."""
    package = tmp_path / "k2lab"
    (package / "_notebooks").mkdir(parents=True)
    (package / "_notebooks" / "01_hello.ipynb").write_text("one")
    (package / "_notebooks" / "02_tokens.ipynb").write_text("two")
    monkeypatch.setattr(paths, "PACKAGE", package)
    return package / "_notebooks"


def test_checkout_is_used_as_it_is(tmp_path: Path) -> None:
    assert classroom.course(tmp_path) == paths.notebooks()
    assert not list(tmp_path.iterdir())


def test_copy_never_overwrites_what_somebody_changed(wheel: Path, tmp_path: Path) -> None:
    copy = classroom.course(tmp_path)
    assert copy == tmp_path / classroom.COPY
    (copy / "01_hello.ipynb").write_text("my notes")
    (wheel / "01_hello.ipynb").write_text("one, revised")
    (wheel / "02_tokens.ipynb").write_text("two, revised")
    (wheel / "03_template.ipynb").write_text("three")
    classroom.course(tmp_path)
    assert (copy / "01_hello.ipynb").read_text() == "my notes"
    assert (copy / "02_tokens.ipynb").read_text() == "two, revised"
    assert (copy / "03_template.ipynb").read_text() == "three"


def test_a_file_that_was_there_before_is_somebodys(wheel: Path, tmp_path: Path) -> None:
    copy = tmp_path / classroom.COPY
    copy.mkdir()
    (copy / "01_hello.ipynb").write_text("mine")
    classroom.course(tmp_path)
    classroom.course(tmp_path)
    assert (copy / "01_hello.ipynb").read_text() == "mine"


def test_a_copy_that_was_interrupted_is_made_whole(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, content: bytes) -> None:
        path.write_text(content.decode()[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", half)
        classroom.course(tmp_path)
    copy = classroom.course(tmp_path)
    assert (copy / "01_hello.ipynb").read_text() == "one"
    (copy / classroom.RECORD).write_text('{"01_')  # cut off
    classroom.course(tmp_path)
    (wheel / "01_hello.ipynb").write_text("one, revised")
    classroom.course(tmp_path)
    assert (copy / "01_hello.ipynb").read_text() == "one, revised"


def test_jupyterlab_opens_on_the_first_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    started = []
    monkeypatch.setattr(classroom.os, "execv", lambda _, command: started.append(command))
    monkeypatch.setattr(classroom.subprocess, "call", lambda command: started.append(command) or 0)
    classroom.open_course(tmp_path, ["--no-browser"])
    assert started[0][1:3] == ["-m", "jupyterlab"]
    assert started[0][3] == f"--ServerApp.root_dir={paths.notebooks()}"
    assert started[0][4].endswith("=/lab/tree/01_hello.ipynb")
    assert started[0][5:] == ["--no-browser"]
    own, users = os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert Path(own) == paths.asset("jupyter") and users == "mine"


def test_what_jupyterlab_is_told_not_to_ask_is_a_setting_of_its_own() -> None:
    folder = paths.asset("jupyter") / "labconfig"
    told = json.loads((folder / "default_setting_overrides.json").read_text())
    schemas = Path(jupyterlab.__file__).parent / "schemas"
    for plugin, settings in told.items():
        extension, name = plugin.split(":")
        schema = json.loads((schemas / extension / f"{name}.json").read_text())
        for key, value in settings.items():
            assert value != schema["properties"][key]["default"]
