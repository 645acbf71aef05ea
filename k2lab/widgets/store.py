"""Store: the hidden widget that holds a run's data and the shared selection.

Views carry only its id. A daemon thread sends what the run's growing trace has beyond what was
sent, at most 12 frames and a status update a second, fewer where they cost much; the front end asks
for `resync` when it misses something. The thread prints nothing: what fails goes to the `status`
trait. Not here: the engine. Handlers run on any thread (JupyterLab uses a subshell), so they
validate, then set events.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import traitlets

from k2lab.engine.session import start_worker
from k2lab.errors import BusyError, K2LabError
from k2lab.trace.trace import CallRecord, Trace
from k2lab.widgets import wire
from k2lab.widgets.base import K2Widget
from k2lab.widgets.details import CapturedDetails, Desk, Detail, Details, Question
from k2lab.widgets.page import write_tree
from k2lab.widgets.source import Facts as Facts
from k2lab.widgets.source import Recorded, RunLike, code_of, refused, status_of
from k2lab.widgets.source import speed as speed
from k2lab.widgets.tree import tree_of

FRAME_SECONDS = 1 / 12
SLOWEST_SECONDS = 1 / 5  # from one frame to the next, on a machine on which a frame costs much
KEPT_ACTS = 4  # of those who wait for the end of a run: the newest, as each cell may be run again
ENDED_THREAD = "k2lab-ended"  # the name of those in which they act
SHARE = 0.003  # of a core that frames may cost; what the thread takes, the engine waits for
STATUS_SECONDS = 1.0
FRAME_BYTES = 2_000_000  # a resync of a long run comes in frames of about this size

Action = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Does what the page asks for with this message; what it returns goes to the page as outcome."""

ACTIONS = ("ask", "branch", "treat", "save", "export", "approve")
"""What a page can ask for besides controls: run a question in this run's place; continue from a
token; run control and treatment with edits; write the trace; write the page as HTML, which every
store can; decide about a call that waits."""

MESSAGES = ("stop", "pause", "resume", "step", "pace", "resync", "detail", *ACTIONS)


class Store(K2Widget):
    """Data and selection of one run, shared by its views. `Store(run)` or `Store(trace)`."""

    stem = "store"

    store_id = traitlets.Unicode().tag(sync=True)
    epoch = traitlets.Int(0).tag(sync=True)  # grows with each attached run
    about = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    runs = traitlets.List(traitlets.Dict()).tag(sync=True)  # the tree: id, name, parent, at, edits
    code = traitlets.Unicode("").tag(sync=True)  # a cell that gives this run again

    run = traitlets.Unicode("").tag(sync=True, echo_update=False)
    range = traitlets.List(traitlets.Int()).tag(sync=True, echo_update=False)  # tokens [a, b)
    layer = traitlets.Int(-1).tag(sync=True, echo_update=False)  # as in site names; −1: none
    expert = traitlets.Int(-1).tag(sync=True, echo_update=False)
    head = traitlets.Int(-1).tag(sync=True, echo_update=False)
    segment = traitlets.Unicode("").tag(sync=True, echo_update=False)
    compare = traitlets.Unicode("").tag(sync=True, echo_update=False)
    playhead = traitlets.Int(-1).tag(sync=True, echo_update=False)  # token; −1: the last
    palette = traitlets.Enum(["cividis", "viridis"], "cividis").tag(sync=True, echo_update=False)
    pin = traitlets.List(traitlets.Int(), [-1, -1, -1]).tag(sync=True, echo_update=False)
    # pin: token, layer, expert to go back to when the pointer leaves
    edits = traitlets.List(traitlets.Dict()).tag(sync=True, echo_update=False)  # the tray

    def __init__(
        self,
        run: RunLike | Trace,
        *,
        facts: Facts | None = None,
        details: Details | None = None,
        actions: Mapping[str, Action] | None = None,
    ) -> None:
        self.source: RunLike = Recorded(run) if isinstance(run, Trace) else run
        self._facts = facts
        self.actions = {**(actions or {}), "export": self._export}
        self.details = details or CapturedDetails()
        self._desk = Desk(self.details, self.send)
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._cursor = Cursor()
        self._seen_end: RunLike | None = self.source if self.source.done else None
        self._acts: deque[Callable[[], object]] = deque(maxlen=KEPT_ACTS)
        super().__init__(store_id=uuid4().hex, about=wire.about(self.source.trace.about))
        self.on_msg(self._on_message)
        _hear_beside_cells(self.comm)
        self.attach(self.source)

    def attach(self, run: RunLike | Trace) -> None:
        """Shows another run from its beginning; the selection is cleared."""
        with self._lock:
            self.source = Recorded(run) if isinstance(run, Trace) else run
            self._cursor = Cursor()
            with self.hold_sync():
                self.epoch += 1
                self.about = wire.about(self.source.trace.about)
                self.status = self._status()
                self.code = code_of(self.source)
                self.playhead = self.layer = self.expert = self.head = -1
                self.pin, self.range = [-1, -1, -1], []
        self._ensure_feeding()

    @property
    def facts(self) -> Facts:
        """Where the numbers come from: as given, else as the trace says."""
        return self._facts or self.source.trace.facts

    def summary(self) -> str:
        """Tokens and state, as in every view of this store."""
        return f"Store({self.counts()})"

    def counts(self) -> str:
        """`tokens=93, state=done`, for the views' summaries."""
        return f"tokens={len(self.source.trace)}, state={self.source.state}"

    def pictures(self) -> tuple[()]:
        """None: a store is not shown."""
        return ()

    def finish(self) -> None:
        """Waits for the run."""
        self.source.wait(None)

    def to_html(self, path: str | Path) -> Path:
        """Writes the dashboard as one HTML file, with all runs of the tree for CompareBranch."""
        name = getattr(self.source, "name", "run")
        runs = [
            replace(each, facts=self.facts) if each.name == name else each
            for each in tree_of(self.source)
        ]
        return write_tree(runs, Path(path), shown=name, details=self._looked_at())

    @property
    def pending(self) -> bool:
        """Whether the page has not been sent all tokens yet."""
        trace, cursor = self.source.trace, self._cursor
        there = len(trace), min(trace.routed, len(trace)), len(trace.moved)
        return (cursor.token, cursor.routed, cursor.moved) != there

    def when_done(self, act: Callable[[], object]) -> None:
        """Calls `act` in a thread of its own when a run has ended: this one, or one after it."""
        self._acts.append(act)

    def flush(self) -> None:
        """Sends all that is not sent yet, in this thread."""
        while self._send_frame():
            pass
        self._send_status()

    def close(self) -> None:
        """Ends the thread and the front end's half."""
        self._thread = None
        super().close()

    def _ensure_feeding(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._feed, name="k2lab-feed", daemon=True)
                self._thread.start()

    def _feed(self) -> None:
        me, told, pause = threading.current_thread(), time.monotonic(), threading.Event()
        while self._thread is me:
            began, now = time.thread_time(), time.monotonic()
            try:
                source = self.source  # another may take its place meanwhile
                done = source.done  # before looking: what comes after it is not missed
                more = self._send_frame()
                changed = self.source.state != self.status.get("state")
                if changed or now - told >= STATUS_SECONDS or (done and not more):
                    self._send_status()
                    told = now
                with self._lock:
                    if source is self.source and done and not more and not self.pending:
                        self._thread = None
                        self._ended()
                        return
            except Exception as error:  # noqa: BLE001 - a thread must not die silently
                self.status = {**self.status, "error": f"The view has stopped: {error!r}."}
                self._thread = None
                return
            cost = (time.thread_time() - began) / SHARE
            pause.wait(min(max(FRAME_SECONDS, cost), SLOWEST_SECONDS))

    def _ended(self) -> None:
        """Tells those who wait for the end of a run, once for each."""
        if self._seen_end is not self.source:
            self._seen_end = self.source
            for act in self._acts:
                start_worker(ENDED_THREAD, act)

    def _send_frame(self) -> bool:
        """Sends one frame; whether there is more to send right away."""
        with self._lock:
            trace, cursor = self.source.trace, self._cursor
            calls = [
                wire.call(place, record)
                for place, record in enumerate(list(trace.calls))
                if place >= len(cursor.calls) or cursor.calls[place] is not record
            ]
            if not calls and not self.pending:
                return False
            cursor.calls = list(trace.calls)
            length = len(trace)
            token = min(length, cursor.token + cursor.rows(trace))
            routed = min(token, trace.routed, cursor.routed + cursor.rows(trace))
            moved = min(len(trace.moved), cursor.moved + cursor.rows(trace))
            header, buffers = wire.frame(
                trace,
                slice(cursor.token, token),
                slice(cursor.routed, routed),
                slice(cursor.moved, moved),
            )
            header |= {"epoch": self.epoch, "calls": calls}
            if cursor.token == 0:
                header["about"] = self.about
            cursor.token, cursor.routed, cursor.moved = token, routed, moved
            self.send(header, buffers)
            return self.pending

    def _status(self) -> dict[str, Any]:
        can = [name for name in ACTIONS if name in self.actions]
        return status_of(self.source, self.facts) | {"can": can}

    def _send_status(self) -> None:
        with self._lock:  # else it could be of a run whose place another one has taken
            status, before = self._status(), self.status.get("state")
            if before != status["state"] == "stopped":  # which is another run than was begun
                self.code = code_of(self.source)  # first: who sees it stopped finds its code
            if status != self.status:
                self.status = status

    def _on_message(self, _: Any, content: Any, __: Any) -> None:
        try:
            self._obey(content)
        except K2LabError as error:
            self.send({"type": "error", "found": error.found, "expected": error.expected})
        except Exception as error:  # noqa: BLE001 - a bad message must not end the kernel's handler
            self.send(
                {"type": "error", "found": f"That failed: {error!r}.", "expected": "success."}
            )

    def _obey(self, content: Any) -> None:
        kind = content.get("type") if isinstance(content, Mapping) else None
        match kind:
            case "stop":
                self.source.stop()
            case "pause":
                self.source.pause()
            case "resume":
                self.source.resume()
            case "step":
                self.source.step(_unit(content.get("unit")))
            case "pace":
                self.source.pace(_rate(content.get("rate")))
            case "resync":
                self._resync(content)
            case "detail":
                trace = self.source.trace
                self._desk.ask(Question.of(content, trace), trace, self.epoch)
            case "ask" | "branch" | "treat" | "save" | "export" | "approve":
                self._act(kind, content)
            case _:
                raise refused(f"A message of type {kind!r}", f"one of {', '.join(MESSAGES)}")
        if kind not in ("resync", "detail"):
            self._send_status()
            self._ensure_feeding()

    def _resync(self, content: Mapping[str, Any]) -> None:
        start, moved = content.get("from"), content.get("moved", 0)
        routed = content.get("routed", start)
        with self._lock:
            length = len(self.source.trace)
            if content.get("epoch", self.epoch) != self.epoch:
                start = routed = moved = 0
            if not all(_index(place, length) for place in (start, routed, moved)):
                raise refused(f"A resync from {start!r}, {routed!r}", f"positions in 0 … {length}")
            self._cursor = Cursor(start, routed, moved)  # type: ignore[arg-type]
        self._ensure_feeding()

    def _act(self, name: str, content: Mapping[str, Any]) -> None:
        action = self.actions.get(name)
        if action is None:
            raise refused(f"The action '{name}' on a view that has none", "a live lab behind it")

        def work() -> None:  # writing a file or running a control takes its time
            try:
                outcome: Mapping[str, Any] = action(content)
            except K2LabError as error:
                outcome = {"error": f"{error.found} {error.mend}"}
            except Exception as error:  # noqa: BLE001 - the person gets to read it
                outcome = {"error": f"That failed: {error!r}."}
            self.send({"type": "outcome", "action": name, **outcome})

        start_worker(f"k2lab-{name}", work)

    def _export(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        """The page as one HTML file in the kernel's folder."""
        path = self.to_html(free_path(self.source, ".html"))
        return {"text": f"Written as {path.name}."}

    def _looked_at(self) -> dict[str, Detail]:
        """Scores and attention of the pinned token, else of the last: a page cannot ask."""
        trace, layers = self.source.trace, range(self.source.trace.about.layers)
        token = self.pin[0] if 0 <= self.pin[0] < trace.routed else trace.routed - 1
        if token < 0 or not self.source.done:
            return {}
        asked = [Question(f"route:{token}:-1", "route", token, -1)]
        asked += [Question(f"attention:{token}:{i}", "attention", token, i) for i in layers]
        try:
            found = {each.key: self._desk.answer(each, trace) for each in asked}
        except BusyError:
            return {}
        return {key: each for key, each in found.items() if each.provenance != "missing"}


class Cursor:
    """What of a trace has been sent."""

    def __init__(self, token: int = 0, routed: int = 0, moved: int = 0) -> None:
        self.token, self.routed, self.moved = token, routed, moved
        self.calls: list[CallRecord] = []

    @staticmethod
    def rows(trace: Trace) -> int:
        """Tokens per frame, so that a frame stays of moderate size."""
        about = trace.about
        return max(64, FRAME_BYTES // (64 + about.moe_layers * (3 * about.slots + 2)))


def store_of(source: "Store | RunLike | Trace") -> Store:
    """The store itself, or a new one around a run or trace."""
    return source if isinstance(source, Store) else Store(source)


def _hear_beside_cells(comm: Any) -> None:
    """Lets the page's messages come in by the subshell that the page chose.

    ipykernel 7.4 brings them to the shell that spoke to the page last, and takes our threads for
    the main one, which is busy while a cell runs: Stop would wait for the end of `run.wait()`.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _, chosen: chosen  # noqa: SLF001


def _unit(unit: Any) -> Literal["token", "layer"]:
    if unit == "token":
        return "token"
    if unit == "layer":
        return "layer"
    raise refused(f"A step of {unit!r}", "'token' or 'layer'")


def _rate(rate: Any) -> float:
    if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1000:
        return float(rate)
    raise refused(f"A pace of {rate!r}", "0 … 1000 tokens a second; 0: as fast as it can")


def _index(value: Any, length: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= length


def free_path(run: RunLike, ending: str) -> Path:
    """A name in the kernel's folder that is not taken yet."""
    name = getattr(run, "name", "run")
    paths = (Path.cwd() / f"{name}-{number}{ending}" for number in count(1))
    return next(path for path in paths if not path.exists())
