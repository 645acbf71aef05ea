"""A real JupyterLab and a real Chromium, for tests that use the lab as a person does.

The course is copied first: JupyterLab saves what it opens. Screenshots are kept in `test-results/`
to be looked at; no test compares them.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "test-results"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "apputils-extension/themes": {"adaptive-theme": True},  # light or dark as the browser asks
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
START_SECONDS = 180
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
        self.page.goto(f"{self.address}/lab/tree/{notebook}?reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
        # Cells given to a session that has no kernel yet would bring up the kernel dialogue.
        context = "window.jupyterapp?.shell.currentWidget?.sessionContext"
        ready = f"() => {context}?.session?.kernel?.status === 'idle'"
        self.page.wait_for_function(ready, timeout=60_000)

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
        content: dict[str, Any] = {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"cell-{place}",
                    "source": source,
                    "metadata": {},
                    "outputs": [],
                    "execution_count": None,
                }
                for place, source in enumerate(cells)
            ],
            "metadata": {
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (folder / name).write_text(json.dumps(content))
        return name

    return write


@pytest.fixture(scope="session")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running JupyterLab."""
    home = tmp_path_factory.mktemp("home")
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
    }
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
    environment.pop("K2LAB_STATIC", None)  # the point here is the live view
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    log = (home / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=environment,
        cwd=folder,
        stdout=log,
        stderr=log,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status", process, Path(log.name))
        yield address
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium, shared; each test has a context of its own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; `apt-get install chromium` brings it.")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def window(chromium: Any) -> Iterator[Any]:
    """A browser window the size of a projector."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    context.close()


@pytest.fixture
def person(server: str, window: Any) -> Person:
    """A person with a browser window and JupyterLab."""
    return Person(window, server)


@pytest.fixture
def reader(window: Any) -> Person:
    """A person with a browser window and no network at all."""
    window.context.set_offline(True)
    return Person(window, "")
