"""What watching costs, and when the first picture comes: in a real JupyterLab and Chromium.

Costs are processor time of the kernel, in which the feeding of the widgets is included. Between two
runs a busy machine makes more of a difference than watching does. So the arms (nothing recorded,
routes, everything; and routes with the dashboard looking on) are conversations that go on side by
side, a few tokens each in turn; what an arm takes is compared with what the other one took for the
same tokens, and the median of all turns is told with its interval. They decode on over the end of
the answer: nothing is read or asked in between. What a dashboard takes beside
the thread that computes is also told apart. What a run costs once, at its beginning and its end,
belongs to the first picture. That counts from Run to the first token in the page: in a kernel that
has imported nothing, and in one that has answered before.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from k2lab.engine.capture import FULL, OFF, ROUTE, Level
from k2lab.engine.sampling import Sampler, greedy
from k2lab.evals.jupyter import chromium, jupyterlab, open_notebook, write_notebook
from k2lab.evals.stats import Middle, middle
from k2lab.spec.sites import looking_at
from k2lab.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from k2lab.widgets.store import Store

QUESTION = "What do 3 x lamp and 2 x rope cost?"
PATIENCE = 600_000  # ms, for what takes seconds
LONGEST = 7_200_000  # ms, for all turns
REPEATS = 300  # turns with the dashboard
BESIDE = 5  # turns of capture for each of them
LENGTH = 1000  # tokens of a conversation, after which it begins anew
BLOCK = 24  # tokens of a turn of capture: as many as are told at once
LOOK = 150  # of a turn with the dashboard: two frames or three
SETTLE = 0.03  # seconds in which the kernel sends what the store has given it
TOKEN = (
    "() => document.querySelectorAll('.k2-dashboard')[{}]?.querySelector('.k2-thinking .k2-token')"
)
ENDED = "() => [...document.querySelectorAll('.k2-state')].every(e => !/run/.test(e.textContent))"
SHOW = f"run = lab.run({QUESTION!r})\nlab.show(run)"
CELLS = (
    f"import k2lab\nlab = k2lab.load({{folder}})\n{SHOW}",
    SHOW,
    "from k2lab.evals.watching import costs, told\ntold(costs(lab, run.wait().store, {repeats}))",
)
BEGIN = "k2lab-costs "  # marks the figures in the cell's output


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor time that is added, as shares, each within a turn."""

    token_microseconds: float  # nothing recorded, nobody looks
    route_capture: Middle  # routes against nothing
    full_capture: Middle  # everything against nothing
    live_view: Middle  # routes with a dashboard against routes
    live_microseconds: Middle  # per token, of threads that do not compute, for the dashboard


@dataclass(frozen=True, slots=True)
class Watching:
    """Costs, and seconds from Run to the first token in the page."""

    costs: Costs
    fresh_seconds: float
    warm_seconds: float  # median
    branch: "Branching"


@dataclass(frozen=True, slots=True)
class Branching:
    """What a branch shares: nothing of the prefix is read again."""

    prefix_tokens: int
    read_tokens: int  # by the branch, before it chooses
    branch_seconds: float  # until it has chosen and read one token
    anew_seconds: float  # the same for a run that reads the prefix


def watching(*, folder: str | None = None, repeats: int = REPEATS) -> Watching:
    """The figures, from a JupyterLab that is started for them."""
    cells = [each.format(folder=repr(folder) if folder else "", repeats=repeats) for each in CELLS]
    with TemporaryDirectory(prefix="k2lab-watching-") as place:
        course, home = Path(place) / "course", Path(place) / "home"
        course.mkdir()
        home.mkdir()
        with jupyterlab(course, home) as address, chromium() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(PATIENCE)
            open_notebook(page, address, write_notebook(course / "watching.ipynb", cells))
            fresh = _first(page, 0, 0)
            warm = [_first(page, 1, 1) for _ in range(3)]
            _run(page, 2)
            output = f"() => /{BEGIN}.*}}/.exec(document.body.textContent)?.[0]"
            figures = page.wait_for_function(output, timeout=LONGEST).json_value()
    found = json.loads(figures.removeprefix(BEGIN))
    return Watching(read(found["costs"]), fresh, median(warm), Branching(**found["branch"]))


class Gate:
    """A tap that lets a run go on for so many forwards at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left, self._waits = 0, False
        self.spent = 0.0  # processor seconds of the run's thread when it last came to wait

        def tap(site: str, value: Any) -> Any:
            if site == "embed":
                self._wait()
            return value

        self.tap = looking_at(tap, ("embed",), arrays=True)

    def open(self, forwards: int, run: Any) -> bool:
        """Let so many through, and return once they are; whether the run wants to go on."""
        with self._changed:
            self._left, self._waits = forwards, False
            self._changed.notify_all()
            while not self._waits and not run.done:
                self._changed.wait(0.1)
        return not run.done

    def _wait(self) -> None:
        with self._changed:
            if not self._left:
                self.spent, self._waits = time.thread_time(), True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._left)
            self._left -= 1


class Arm:
    """One way to watch a conversation, which goes on some tokens at a time."""

    def __init__(self, lab: Any, capture: Level, store: "Store | None" = None) -> None:
        self.store = store
        self._lab, self._capture = lab.beside(), capture

    def begin(self) -> None:
        """The conversation from its beginning, up to its first token."""
        self._gate = Gate()
        self._run = self._lab.run(
            QUESTION,
            sampler=on_and_on(self._lab.tokenizer),
            max_tokens=LENGTH,
            capture=self._capture,
            store=self.store,
            tap=self._gate.tap,
        )
        self._gate.open(2, self._run)
        self._settle()

    def go_on(self, forwards: int) -> tuple[float, float] | None:
        """Processor seconds that they took: all, and beside the run's own thread; None: ended."""
        began, spent = time.process_time(), self._gate.spent
        if not self._gate.open(forwards, self._run):
            return None
        self._settle()
        whole = time.process_time() - began
        return whole, whole - (self._gate.spent - spent)

    def end(self) -> None:
        """Leave the conversation where it is."""
        self._run.stop()
        while not self._run.done:
            self._gate.open(1, self._run)

    def _settle(self) -> None:
        """Wait until the kernel has sent what there is."""
        while self.store and self.store.pending:
            time.sleep(SETTLE)
        if self.store:
            time.sleep(SETTLE)


def on_and_on(tokenizer: Tokenizer) -> Sampler:
    """The likeliest token that is no marker: nothing ends, nothing is called."""
    markers = torch.tensor([i for i in range(tokenizer.n_vocab) if tokenizer.is_special(i)])

    def sampler(logits: torch.Tensor) -> int:
        return greedy(logits.index_fill(0, markers, -torch.inf))

    return sampler


def costs(lab: Any, store: "Store", repeats: int) -> dict[str, Any]:
    """Costs and the branch, measured in this process; the store's widgets look on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the other core is for those who look
    captures = [Arm(lab, level) for level in (OFF, ROUTE, FULL)]
    turns = _turns(captures, BLOCK, repeats * BESIDE)
    off, route, full = ([whole for whole, _ in each] for each in turns)
    unseen, seen = _turns([Arm(lab, ROUTE), Arm(lab, ROUTE, store)], LOOK, repeats)
    torch.set_num_threads(before)
    measured = Costs(
        token_microseconds=round(median(off) / BLOCK * 1e6),
        route_capture=_added(route, off),
        full_capture=_added(full, off),
        live_view=_added([whole for whole, _ in seen], [whole for whole, _ in unseen]),
        live_microseconds=middle(
            [
                round((view - rest) / LOOK * 1e6, 1)
                for (_, view), (_, rest) in zip(seen, unseen, strict=True)
            ]
        ),
    )
    return {"costs": asdict(measured), "branch": asdict(branching(lab))}


def _turns(arms: Sequence[Arm], forwards: int, turns: int) -> list[list[tuple[float, float]]]:
    """What each arm took in each turn; conversations that end begin anew."""
    found: list[list[tuple[float, float]]] = [[] for _ in arms]
    while len(found[0]) < turns:
        for arm in arms:
            arm.begin()
        while len(found[0]) < turns:
            turn = len(found[0])
            order = [(place + turn) % len(arms) for place in range(len(arms))]  # all come first
            taken = [(place, arms[place].go_on(forwards)) for place in order]
            whole = [(place, seconds) for place, seconds in taken if seconds]
            if len(whole) < len(arms):
                break
            for place, seconds in whole:
                found[place].append(seconds)
        for arm in arms:
            arm.end()
    return found


def _added(seconds: Sequence[float], others: Sequence[float]) -> Middle:
    """The share that one arm takes more than the other of the same turn."""
    return middle([round(one / other - 1, 4) for one, other in zip(seconds, others, strict=True)])


def branching(lab: Any) -> Branching:
    """A branch at the end of a long thought, against reading all of it again."""
    read: list[int] = []

    def count(site: str, value: Any) -> Any:
        if site == "embed":
            read.append(value.shape[1])
        return value

    question = " ".join(["What do 3 x lamp and 2 x rope cost?"] * 60)
    run = lab.run(question, max_tokens=4, tap=count).wait()
    at = run.turns[0]
    read.clear()
    run.branch(at, max_tokens=1).wait()
    first = read[0]
    anew = _seconds(lambda: lab.run(question, max_tokens=1).wait())
    again = _seconds(lambda: run.branch(at, max_tokens=1).wait())
    return Branching(at, first, again, anew)


def read(costs: dict[str, Any]) -> Costs:
    """Costs from what `asdict` made of them."""
    made: dict[str, Any] = {k: Middle(**v) if isinstance(v, dict) else v for k, v in costs.items()}
    return Costs(**made)


def told(figures: dict[str, Any]) -> None:
    """Prints the figures where `watching` finds them."""
    print(BEGIN + json.dumps(figures))  # noqa: T201 - the cell's output is the way back


def _seconds(act: Callable[[], object], repeats: int = 3) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return round(median(taken), 4)


def _first(page: Any, cell: int, board: int) -> float:
    """Seconds from Run of a cell to the first token of the dashboard at this place."""
    page.evaluate("() => document.querySelectorAll('.k2-dashboard')[1]?.remove()")
    began = time.monotonic()
    _run(page, cell)
    page.wait_for_function(TOKEN.format(board))
    taken = time.monotonic() - began
    page.wait_for_function(ENDED)
    return round(taken, 2)


def _run(page: Any, cell: int) -> None:
    """Runs one cell of the open notebook."""
    page.evaluate(
        "cell => { const notebook = jupyterapp.shell.currentWidget.content;"
        " notebook.activeCellIndex = cell; notebook.deselectAll();"
        " jupyterapp.commands.execute('notebook:run-cell'); }",
        cell,
    )
