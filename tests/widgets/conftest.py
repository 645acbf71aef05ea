"""A small run that a test can let grow, shared by the widgets' tests."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from k2lab.engine.events import (
    Answered,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.trace.trace import About, Trace

ABOUT = About("nano", layers=6, dense_layers=1, experts=64, slots=8, scaling=2.827, vocab=2048)


@dataclass
class FakeRun:
    """Stands for an engine's run; `grow` appends tokens, `end` ends it."""

    trace: Trace = field(default_factory=lambda: Trace(ABOUT))
    error: str = ""
    state: str = "running"
    done: bool = False
    asked: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def grow(self, count: int, kind: str = "thinking", text: str = " word") -> None:
        for _ in range(count):
            index = len(self.trace)
            top = ((1, text, 0.5), (2, " <b>", 0.25))
            self.trace.append(TokenChosen(index, 1, text, kind, -0.7, 1.0, top, 0.1 * index))
            experts = ((np.arange(40) * 7 + index) % 64).astype(np.uint16).reshape(1, 5, 8)
            weights = np.full((1, 5, 8), 32, np.uint8)
            self.trace.append(Routed(index, experts, weights, np.full((1, 5), 0.01, np.float16)))

    def end(self, reason: str = "answer", state: str = "done") -> None:
        self.trace.append(Stopped(reason, "", len(self.trace), 1.0))
        self.state, self.done = state, True
        self.ended.set()

    def stop(self) -> None:
        self.asked.append("stop")

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def step(self, unit: str) -> None:
        self.asked.append(f"step {unit}")

    def pace(self, rate: float) -> None:
        self.asked.append(f"pace {rate}")

    def wait(self, timeout: float | None = None) -> None:
        self.ended.wait(timeout)


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def finished() -> Callable[[], FakeRun]:
    def make() -> FakeRun:
        run = FakeRun()
        kinds = ("marker", "user", "user")
        run.trace.append(PromptRead(0, (9, 1, 2), ("<|im_user|>", "3 * ", "14?"), kinds, 0.1))
        rows = np.zeros((3, 5, 8), np.uint16)
        margin = np.zeros((3, 5), np.float16)
        run.trace.append(Routed(0, rows, rows.astype(np.uint8), margin))
        run.grow(30)
        run.grow(1, "call", "f{}")
        run.trace.append(ToolAsked("k", "f:0", "f", "{}", len(run.trace) - 1))
        run.trace.append(ToolAnswered("k", "f", "<script>42</script>", True, 0.01))
        run.grow(5, "answer", " 42")
        run.trace.append(Answered("42", "word"))
        run.end()
        return run

    return make
