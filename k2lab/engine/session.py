"""A run in a worker thread that a person can stop, pause and step.

The controls are events checked once per token and once per layer (at the site
`layers.{i}.input`), so Stop acts within one layer even when layers come from a disk. What was seen
of the tokens before is told first, however a run is held or ends. Not here: what is run (any
iterator of events) and who looks (`trace/`, `widgets/`).
"""

import contextvars
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self, TypeVar, get_args

from k2lab.engine.events import Captured, Dropped, Event, Reason, Routed, Stopped, TokenChosen
from k2lab.errors import BusyError, InputError
from k2lab.spec.sites import looking_at

State = Literal["running", "paused", "done", "stopped", "error"]
Unit = Literal["token", "layer"]
Value = TypeVar("Value")

LEAVE_SECONDS = 5.0  # that the end of the interpreter waits: a layer from a slow disk takes as long


class Halted(Exception):  # noqa: N818 - not an error: the person pressed Stop
    """Raised inside a forward to leave it when the person stops the run."""


def nothing_waits() -> bool:
    """Whether something waits to be told, where nothing is held back: no."""
    return False


class Control:
    """Stop, pause and step, shared by the person's thread and the worker."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._held = False
        self._unit: Unit | None = None  # what one step lets through; None: no stepping
        self._gap = 0.0  # seconds from one token to the next, at least
        self._last = 0.0  # when the last token was let through
        self.untold: Callable[[], bool] = nothing_waits
        """Whether something that was seen waits to be told: a pause lets that come first."""
        begins: dict[str, bool] = {}  # whether a site is where a layer begins
        look = begins.get

        def tap(site: str, value: Value) -> Value:
            """The check at each layer: a hundred calls a token, so asked and not worked out."""
            inside = look(site)
            if inside is None:
                inside = begins[site] = site.endswith(".input")
            if inside:
                self.check("layer")
            return value

        self.tap = looking_at(tap, ("layers.{i}.input",), arrays=True)

    def stop(self) -> None:
        """Leave at the next layer or token, also out of a pause; nothing takes it back."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether the person pressed Stop."""
        return self._stopped

    def pause(self) -> None:
        """Wait at the next layer or token."""
        self._set(held=True, unit=None)

    def resume(self) -> None:
        """Go on until further notice."""
        self._set(held=False, unit=None)

    def step(self, unit: Unit) -> None:
        """Let one token or one layer through, then wait."""
        if unit not in get_args(Unit):
            raise InputError(
                f"A step of {unit!r}.", expected="'token' or 'layer'.", mend="Name one of them."
            )
        self._set(held=False, unit=unit)

    def pace(self, rate: float) -> None:
        """At most so many tokens a second, for eyes to follow; 0: as fast as it can."""
        if not rate >= 0:
            raise InputError(
                f"A pace of {rate!r}.",
                expected="tokens a second; 0: as fast as it can.",
                mend="Give a number from 0 up.",
            )
        with self._changed:
            self._gap = 1 / rate if rate else 0.0
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the worker waits, or will at the next check."""
        return self._held

    @property
    def watchful(self) -> bool:
        """Whether a person looks at each token, of which is told at once: held, stepped, slowed."""
        return self._held or self._unit is not None or self._gap > 0

    def check(self, unit: Unit) -> None:
        """Wait while paused; raise Halted once stopped; spend a step of this unit."""
        with self._changed:
            if unit == "token":
                self._keep_pace()
            if self._held and not self.untold():
                self._changed.wait_for(lambda: self._stopped or not self._held)
            if self._stopped:
                raise Halted
            if self._unit == unit:
                self._unit, self._held = None, True

    def _keep_pace(self) -> None:
        """Wait until the next token is due; a stop, or another pace, is heard meanwhile."""
        while not self._stopped and (left := self._last + self._gap - time.monotonic()) > 0:
            if self.untold():
                break
            self._changed.wait(left)
        self._last = time.monotonic()

    def _set(self, *, held: bool, unit: Unit | None) -> None:
        with self._changed:
            self._held, self._unit = held, unit
            self._changed.notify_all()


_HERE: contextvars.ContextVar[Control | None] = contextvars.ContextVar("control", default=None)


def controls() -> Control:
    """Of the run that this thread does; outside of runs, those that nobody uses."""
    return _HERE.get() or Control()


class EngineLock:
    """Held by the run that goes on, or by an answer to the page, for which a run waits.

    An answer, such as what a token read, takes a moment that nobody sees: a run that began within
    it would be refused without a reason that a person can find.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: Literal["", "run", "answer"] = ""
        self._waiting = 0  # runs

    def take(self) -> None:
        """Hold it for a run; BusyError while another one does."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._holder != "answer")
            finally:
                self._waiting -= 1
            self._take("run")

    def wait(self, seconds: float) -> bool:
        """Hold it for a run once nobody else does; whether that was so within these seconds."""
        with self._changed:
            free = self._changed.wait_for(lambda: not self._holder, seconds)
            if free:
                self._take("run")
            return free

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While the block is open, an answer has the engine; BusyError if a run has or wants it."""
        with self._changed:
            self._take("answer")
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let the next one have it."""
        with self._changed:
            self._holder = ""
            self._changed.notify_all()

    @property
    def held(self) -> bool:
        """Whether anybody has it."""
        return bool(self._holder)

    def _take(self, holder: Literal["run", "answer"]) -> None:
        if self._holder or (self._waiting and holder == "answer"):
            raise BusyError(
                "A run is still going on this engine.",
                expected="one run at a time.",
                mend="Wait for it with `run.wait()`, or stop it with `run.stop()`.",
            )
        self._holder = holder


class Run:
    """A running (or finished) iterator of events, with its growing trace."""

    def __init__(self, trace: Any, control: Control) -> None:
        """`trace` is anything with `append(event)`; the worker fills it."""
        self.trace = trace
        self.control = control
        self.error = ""  # traceback text, where the run failed
        self.cpu_seconds = 0.0  # processor time of the thread that did the work, once it has ended
        self._ended: State | None = None
        self._finished = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, events: Iterator[Event], lock: EngineLock) -> None:
        """Run `events` in a worker thread while holding the engine's lock; returns at once."""
        lock.take()
        work = partial(self._work, events, lock.release)
        self._thread = start_worker("k2lab-run", work, self.control.stop)

    @property
    def state(self) -> State:
        """What the run is doing now."""
        if self._ended:
            return self._ended
        return "paused" if self.control.paused else "running"

    @property
    def done(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self._finished.is_set()

    def stop(self) -> None:
        """End the run at the next layer."""
        self.control.stop()

    def pause(self) -> None:
        """Hold the run at the next layer."""
        self.control.pause()

    def resume(self) -> None:
        """Let a paused run go on."""
        self.control.resume()

    def pace(self, rate: float) -> None:
        """Slow the run down to so many tokens a second; 0: as fast as it can."""
        self.control.pace(rate)

    def step(self, unit: Unit = "token") -> None:
        """Let a paused run do one token or one layer."""
        self.control.step(unit)

    def wait(self, timeout: float | None = None) -> Self:
        """This run, once it has ended (or `timeout` seconds are over).

        An interrupt of the waiting (the notebook's ■) stops the run too.
        """
        try:
            # Short waits, so that the interrupt is seen on every platform.
            remaining = timeout
            while not self._finished.wait(0.05 if remaining is None else min(0.05, remaining)):
                if remaining is not None:
                    remaining -= 0.05
                    if remaining <= 0:
                        break
        except KeyboardInterrupt:
            self.stop()
            raise
        return self

    def wait_for_change(self, timeout: float) -> None:
        """Return when an event arrived or the run ended, at the latest after `timeout` seconds."""
        with self._changed:
            if not self.done:
                self._changed.wait(timeout)

    def _work(self, events: Iterator[Event], release: Callable[[], None]) -> None:
        tokens, ended, began, spent = 0, "done", time.perf_counter(), time.thread_time()
        halted = False  # at a token: the events get to tell what was seen before, and no more
        _HERE.set(self.control)  # of this thread, which does nothing else

        def stopped(reason: Reason, detail: str) -> Stopped:
            return Stopped(reason, detail, tokens, time.perf_counter() - began)

        try:
            for event in events:
                if halted and not isinstance(event, Routed | Captured | Dropped):
                    break
                self._append(event)
                if isinstance(event, TokenChosen):
                    tokens += 1
                    halted = self._halts()
            if halted:
                raise Halted
        except Halted:
            ended = "stopped"
            self._append(stopped("stopped", "Stopped by the person."))
        except Exception as error:  # noqa: BLE001 - whatever it is, the person gets to read it
            ended = "error"
            self.error = traceback.format_exc()
            self._append(stopped("error", str(error)))
        finally:
            self.cpu_seconds = time.thread_time() - spent
            release()
            self._ended = ended  # type: ignore[assignment]
            self._finished.set()
            with self._changed:
                self._changed.notify_all()

    def _halts(self) -> bool:
        """Whether the person stopped the run at this token, after a pause and the pace."""
        try:
            self.control.check("token")
        except Halted:
            return True
        return False

    def _append(self, event: Event) -> None:
        self.trace.append(event)
        with self._changed:
            self._changed.notify_all()


def start_worker(
    name: str, work: Callable[[], object], stop: Callable[[], object] = lambda: None
) -> threading.Thread:
    """A thread that does the work; the end of the interpreter stops it and waits for it a while.

    A daemon thread that the interpreter takes down within torch aborts the process.
    """

    def whole() -> None:
        try:
            work()
        finally:
            leaving.detach()

    thread = threading.Thread(target=whole, name=name, daemon=True)
    leaving = weakref.finalize(thread, _leave, thread, stop, os.getpid())
    thread.start()
    return thread


def _leave(thread: threading.Thread, stop: Callable[[], object], process: int) -> None:
    if os.getpid() == process and thread is not threading.current_thread():  # a fork has no thread
        stop()
        thread.join(LEAVE_SECONDS)
