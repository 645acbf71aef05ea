"""A real JupyterLab and a real Chromium, for tests that use the lab as a person does.

The course is copied first: JupyterLab saves what it opens. Screenshots are kept in `test-results/`
to be looked at; no test compares them.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from k2lab.errors import MissingError
from k2lab.evals import jupyter
from k2lab.evals.jupyter import jupyterlab, open_notebook, write_notebook

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "test-results"
PATIENCE = 60_000  # ms; on a busy machine everything comes late


Notebook = Callable[..., str]


class Person:
    """Somebody in front of a notebook: opens, runs, looks."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def open(self, notebook: str) -> None:
        """The notebook in a fresh workspace, its kernel ready."""
        open_notebook(self.page, self.address, notebook)

    def read(self, file: Path) -> None:
        """A page from a file."""
        self.page.goto(file.as_uri())

    def until(self, condition: str, seconds: float = 60) -> None:
        """Wait for a JavaScript expression to be true."""
        self.page.wait_for_function(f"() => {condition}", timeout=seconds * 1000)

    def press(self, *keys: str) -> None:
        """Keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def focused(self) -> str:
        """What has the focus: its label or text."""
        return str(
            self.page.evaluate(
                "() => { const e = document.activeElement;"
                " return (e.getAttribute('aria-label') ?? e.textContent ?? '').slice(0, 90); }"
            )
        )

    def frames(self) -> None:
        """Two painted frames later."""
        self.page.evaluate(
            "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def run_all(self) -> None:
        """Run all cells; returns at once."""
        self.command("notebook:run-all-cells")

    def command(self, name: str) -> None:
        """Give JupyterLab a command; returns at once, while the command goes on."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)

    def save(self) -> None:
        """Save the notebook; returns when that is done."""
        self.page.evaluate("async () => { await jupyterapp.commands.execute('docmanager:save'); }")

    def theme(self, scheme: str) -> None:
        """`light` or `dark`."""
        self.page.emulate_media(color_scheme=scheme)
        light = str(scheme == "light").lower()
        self.until(f"document.body.dataset.jpThemeLight === '{light}'")
        self.until("!document.querySelector('#jupyterlab-splash')")
        self.frames()

    def picture(self, name: str) -> Path:
        """A screenshot to be looked at."""
        PICTURES.mkdir(exist_ok=True)
        path = PICTURES / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def state(self) -> str:
        """The run's state as the first status line tells it."""
        return str(self.page.locator(".k2-state").first.text_content())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the course, to which tests may add notebooks."""
    return Path(shutil.copytree(ROOT / "notebooks", tmp_path_factory.mktemp("lab") / "course"))


@pytest.fixture
def notebook(folder: Path) -> Notebook:
    """A function that writes a notebook with these cells and returns its name."""

    def write(name: str, *cells: str) -> str:
        return write_notebook(folder / name, cells)

    return write


@pytest.fixture(scope="session")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running JupyterLab."""
    with jupyterlab(folder, tmp_path_factory.mktemp("home")) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium, shared; each test has a context of its own."""
    try:
        running = jupyter.chromium()
        browser = running.__enter__()
    except MissingError as error:
        pytest.skip(str(error))
    yield browser
    running.__exit__(None, None, None)


@pytest.fixture
def window(chromium: Any) -> Iterator[Any]:
    """A browser window the size of a projector."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    context.close()


@pytest.fixture
def person(server: str, window: Any) -> Iterator[Person]:
    """A person with a browser window and JupyterLab; their kernels end with them."""
    yield Person(window, server)
    window.evaluate("async () => { await jupyterapp.serviceManager.sessions.shutdownAll(); }")


@pytest.fixture
def reader(window: Any) -> Person:
    """A person with a browser window and no network at all."""
    window.context.set_offline(True)
    return Person(window, "")
