"""Tool calls in threads of their own: together where that is safe, with timeouts and retries.

Calls that only read run at the same time; one that changes the world runs alone, in its place. A
failure in passing is tried again where replay is safe: never for a call that changes the world, and
after a wait as long as was asked for, or as the tool's timeout at most.
Python cannot end a thread, so a call that is late or cancelled is told so (`cancellation`), and
whatever it still gives back is dropped. Not here: who may call what (`policy.py`).
"""

import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from k2lab.agent.tools import Outcome, Tool, perform
from k2lab.engine.events import Retried
from k2lab.errors import K2LabError, TransientError

TOGETHER = 8  # calls at the same time
ATTEMPTS = 3  # of a call that fails in passing
PAUSE = 0.05  # seconds before the second attempt, twice as many before the third
POLL = 0.02  # seconds between looks at the clock and at the person's Stop

PASSING = (TimeoutError, ConnectionError)
"""Failures after which the same call may well succeed."""


class Cancellation:
    """Tells a tool that nobody waits for its result any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._actions: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the call was given up."""
        return self._cancelled.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, unless the call is given up before: then true, at once."""
        return self._cancelled.wait(seconds)

    def cancel(self) -> None:
        """Give the call up: what was registered is done, once."""
        with self._lock:
            self._cancelled.set()
            actions, self._actions = self._actions, []
        for action in actions:
            action()

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """While the block is open, giving up does this, such as killing a process."""
        with self._lock:
            late = self._cancelled.is_set()
            if not late:
                self._actions.append(action)
        if late:
            action()
        try:
            yield
        finally:
            with self._lock:
                if action in self._actions:
                    self._actions.remove(action)


_CURRENT: contextvars.ContextVar[Cancellation | None] = contextvars.ContextVar(
    "cancellation", default=None
)


def cancellation() -> Cancellation:
    """Of the call that this thread makes; outside of calls, one that nobody uses."""
    return _CURRENT.get() or Cancellation()


@contextmanager
def within(cancel: Cancellation) -> Iterator[None]:
    """While the block is open, what this thread does is given up with `cancel`."""
    before = _CURRENT.set(cancel)
    try:
        yield
    finally:
        _CURRENT.reset(before)


@dataclass(frozen=True, slots=True)
class Job:
    """A call that may be made."""

    key: str  # unique in the run
    tool: Tool
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """A call that was made."""

    key: str
    outcome: Outcome
    seconds: float


def perform_all(
    jobs: Sequence[Job], check: Callable[[], None], making: Callable[[Job], None]
) -> Iterator[Retried | Done]:
    """One `Done` per job, in the order in which they end.

    `making` is told of each job right before its first attempt; `check` raises to end the waiting.
    When either raises, or when the iterator is closed, every call under way is given up.
    """
    group: list[Job] = []
    for job in jobs:
        if group and not group[0].tool.effect == job.tool.effect == "reads":
            yield from _together(group, check, making)
            group = []
        group.append(job)
    if group:
        yield from _together(group, check, making)


@dataclass(slots=True)
class _Attempt:
    job: Job
    number: int
    began: float  # of the first attempt
    deadline: float
    cancel: Cancellation


_News = tuple[str, int, Outcome | Exception]


def _together(
    jobs: Sequence[Job], check: Callable[[], None], making: Callable[[Job], None]
) -> Iterator[Retried | Done]:
    waiting = [(0.0, job, 1, 0.0) for job in jobs]  # (not before, job, attempt, began)
    running: dict[str, _Attempt] = {}
    news: SimpleQueue[_News] = SimpleQueue()
    try:
        while waiting or running:
            check()
            now = time.monotonic()
            for entry in [each for each in waiting if each[0] <= now]:
                if len(running) < TOGETHER:
                    waiting.remove(entry)
                    _, job, number, began = entry
                    if number == 1:
                        making(job)
                    running[job.key] = _start(job, number, began or now, news)
            for key, number, result in _arrived(running, news):
                attempt = running.get(key)
                if attempt is None or attempt.number != number:
                    continue  # given up before
                del running[key]
                if isinstance(result, PASSING) and _again(attempt):
                    pause = PAUSE * 2 ** (number - 1)
                    if isinstance(result, TransientError):
                        pause = max(pause, min(result.after, attempt.job.tool.timeout))
                    waiting.append(
                        (time.monotonic() + pause, attempt.job, number + 1, attempt.began)
                    )
                    yield Retried(key, number + 1, _reason(result))
                else:
                    yield Done(key, _outcome(result), time.monotonic() - attempt.began)
    finally:
        for attempt in running.values():
            attempt.cancel.cancel()


def _arrived(running: Mapping[str, _Attempt], news: SimpleQueue[_News]) -> Iterator[_News]:
    """What has ended, at the latest after a short wait, and what is late."""
    try:
        yield news.get(timeout=POLL)
        while True:
            yield news.get_nowait()
    except Empty:
        pass
    now = time.monotonic()
    for attempt in list(running.values()):
        if now >= attempt.deadline:
            attempt.cancel.cancel()
            text = f"no answer within {attempt.job.tool.timeout:g} s"
            if attempt.job.tool.effect == "writes":
                text += "; it may have been done all the same"
            yield attempt.job.key, attempt.number, TimeoutError(text)


def _start(job: Job, number: int, began: float, news: SimpleQueue[_News]) -> _Attempt:
    cancel = Cancellation()

    def work() -> None:
        _CURRENT.set(cancel)
        try:
            result: Outcome | Exception = perform(job.tool, job.arguments)
        except SystemExit as error:  # of the tool's thread alone, which would end without a word
            result = RuntimeError(f"it called exit({error})")
        except Exception as error:  # noqa: BLE001 - whatever a tool raises, the model gets to read
            result = error
        news.put((job.key, number, result))

    attempt = _Attempt(job, number, began, time.monotonic() + job.tool.timeout, cancel)
    context = contextvars.copy_context()
    name = f"k2lab-{job.tool.name}-{job.key}"
    threading.Thread(target=context.run, args=(work,), name=name, daemon=True).start()
    return attempt


def _again(attempt: _Attempt) -> bool:
    return attempt.job.tool.effect != "writes" and attempt.number < ATTEMPTS


def _outcome(result: Outcome | Exception) -> Outcome:
    if isinstance(result, Outcome):
        return result
    return Outcome(f"error: {_reason(result)}", ok=False)


def _reason(error: Exception) -> str:
    if isinstance(error, K2LabError):
        return error.found
    return str(error) or type(error).__name__
