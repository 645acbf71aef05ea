"""What a live run gives its widgets: the store behind them, details on demand, actions.

A page may ask for the scores of a token, for what a head read, for a branch, for a control and a
treatment, for a file. Each is one call to a run, an engine or a trace; this module only joins them.
What a page sends is checked where it is used.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np

from k2lab.engine import replay
from k2lab.engine.edits import to_json, unique
from k2lab.engine.events import KINDS
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import watches
from k2lab.errors import BusyError, InputError
from k2lab.spec.sites import Tap
from k2lab.trace.trace import Trace
from k2lab.widgets.details import CapturedDetails, Detail
from k2lab.widgets.store import Store, free_path

if TYPE_CHECKING:
    from k2lab.run import LabRun

LONGEST_WAIT = 20.0  # seconds for the engine, before a person is told that it is busy
LONGEST_QUESTION = 20_000  # characters
LONGEST_REPLAY = 8192  # tokens; a longer prefix would keep the engine busy for too long
TAPPED = (
    "This run has a tap of its own, which would be called again. "
    "Run it with capture='full' to have this recorded."
)

Message = Mapping[str, Any]
Made = TypeVar("Made")


def store_of(run: "LabRun") -> Store:
    """A store that shows the run and answers for it."""
    page = Page()
    store = Store(
        run,
        details=LiveDetails(page.run),
        actions={
            "ask": page.ask,
            "save": page.save,
            "branch": page.branch,
            "treat": page.treat,
            "approve": page.approve,
        },
    )
    page.store = store
    return store


class Page:
    """The actions of one page; they act on the run that its store shows."""

    store: Store

    def __init__(self) -> None:
        self._panes: dict[LabRun, Store] = {}  # of the other runs of the tree

    def run(self) -> "LabRun":
        """The run that is shown."""
        return self.store.source  # type: ignore[return-value]

    def ask(self, message: Message) -> Message:
        """A person asked: a new run takes this one's place in the same widgets."""
        question = message.get("text")
        if not isinstance(question, str) or not 0 < len(question.strip()) <= LONGEST_QUESTION:
            raise InputError(
                "A question that is empty or too long.",
                expected=f"1 … {LONGEST_QUESTION:,} characters.",
                mend="ask in fewer words.",
            )
        asked = when_free(lambda: self.run().ask(question.strip()))
        asked.show_in(self.store)
        self.store.runs = []
        return {"run": asked.name}

    def approve(self, message: Message) -> Message:
        """A person decided about a call that waits."""
        allowed = message.get("allowed") is True
        self.run().desk.decide(str(message.get("digest")), allowed=allowed)
        return {"text": "Allowed." if allowed else "Refused."}

    def save(self, _: Message) -> Message:
        """The trace as a file in the kernel's folder."""
        path = free_path(self.run(), ".k2trace")
        self.run().trace.save(path)
        return {"text": f"Saved as {path.name}."}

    def branch(self, message: Message) -> Message:
        """Another run from a token on, beside this one."""
        at, token, text = (message.get(name) for name in ("at", "token", "text"))
        if not _whole(at) or not (_whole(token) or isinstance(text, str)):
            raise InputError(
                f"A branch at {at!r} with {token!r} and {text!r}.",
                expected="an index, and a token id or a text.",
                mend="click an alternative of a token.",
            )
        given = {"token": token} if _whole(token) else {"text": text}
        child = when_free(lambda: self.run().branch(at, **given))
        self.grow(child)
        return {"text": f"{child.name} goes on from token {at}.", "run": child.name}

    def treat(self, message: Message) -> Message:
        """What the tray's edits do, beside experts of the nearest load; and a run under them.

        The run has all that was given before: a branch's begins where the branch does.
        """
        edits = message.get("edits")
        if not isinstance(edits, list):
            raise InputError(
                "A treatment without a list of edits.",
                expected="the edits of the tray.",
                mend="add an edit first.",
            )
        run = self.run()
        Surgery(unique(edits), run.lab.config)  # refuses what this model cannot do
        found = when_free(lambda: run.experiment(edits))
        begun, given = run.recipe.at, list(run.recipe.given) or None
        at = begun if begun is not None else run.turns[0] if run.turns else 0
        together = [*run.recipe.edits, *edits]
        child = when_free(lambda: run.branch(at, token=given, edits=together))
        self.grow(child)
        words = f"{child.name} is the run under these edits from token {at} on: see Compare."
        report = found.to_json()
        return {"text": " ".join([*found.notes, words]), "report": report, "run": child.name}

    def grow(self, child: "LabRun") -> None:
        """Lets the page know a new branch, with the data of all runs of its tree."""
        root = child.line[0]
        self.store.runs = [self._entry(run) for run in family(root)]

    def _entry(self, run: "LabRun") -> dict[str, Any]:
        given = self.run().lab.tokenizer.decode(list(run.recipe.given)) if run.recipe.given else ""
        at = run.recipe.at
        return {
            "id": self._store_of(run).store_id,
            "name": run.name,
            "parent": self._store_of(run.parent).store_id if run.parent else "",
            "at": -1 if at is None else at,
            "given": given,
            "edits": [to_json(edit) for edit in run.recipe.edits],
        }

    def _store_of(self, run: "LabRun") -> Store:
        if run is self.store.source:
            return self.store
        if run not in self._panes:
            self._panes[run] = Store(run)
        return self._panes[run]


class LiveDetails:
    """Captured numbers where there are any, else the prefix computed again."""

    def __init__(self, run: "Callable[[], LabRun]") -> None:
        self._run = run
        self._captured = CapturedDetails()

    def route(self, trace: Trace, token: int) -> Detail:
        """Scores and choice scores at the token."""
        known = self._captured.route(trace, token)
        if known.provenance == "measured":
            return known
        run = self._run()
        if not watches(run.recipe.tap):
            return Detail("missing", note=TAPPED)
        ids = _prefix(trace, token)
        with run.lab.lock.answering():
            found = replay.routers(run.lab.model, ids, _edits(run, trace, token))
        return Detail("derived", {"scores": found.scores, "choice": found.choice})

    def attention(self, trace: Trace, token: int, layer: int) -> Detail:
        """What the layer's heads read at the token."""
        known = self._captured.attention(trace, token, layer)
        if known.provenance == "measured":
            return known
        run = self._run()
        if not watches(run.recipe.tap):
            return Detail("missing", note=TAPPED)
        ids = _prefix(trace, token)
        with run.lab.lock.answering():
            found = replay.reading(run.lab.model, ids, layer, _edits(run, trace, token))
        gone = trace.context_of(token)  # of what was forgotten nothing can be read
        before = ((0, 0), (gone, 0))
        arrays = {"weights": np.pad(found.weights, before), "rope": found.rope}
        return Detail("derived", arrays | {"norm": np.pad(found.norm, before[1])})


def when_free(act: Callable[[], Made]) -> Made:
    """What `act` gives, once the engine is free of another run or an answer to the page."""
    until = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            return act()
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def family(run: "LabRun") -> "list[LabRun]":
    """The run and all that branches off it."""
    return [run, *(each for child in run.children for each in family(child))]


def _prefix(trace: Trace, token: int) -> list[int]:
    first = trace.context_of(token)
    if token - first >= LONGEST_REPLAY:
        raise InputError(
            f"Token {token} comes after {token - first:,} others.",
            expected=f"at most {LONGEST_REPLAY:,} tokens to compute again.",
            mend="run it with capture='full', or look at an earlier token.",
        )
    return np.asarray(trace.ids[first : token + 1]).tolist()


def _edits(run: "LabRun", trace: Trace, token: int) -> Tap:
    """The edits under which each token of the prefix was read."""
    first = trace.context_of(token)
    kinds = [KINDS[code] for code in trace.kinds[first : token + 1].tolist()]
    return run.surgery().tap(first, kinds, len(kinds))


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
