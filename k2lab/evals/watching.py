"""What watching costs, and when the first picture comes: in a real JupyterLab and Chromium.

Costs are processor time of the kernel, in which the feeding of the widgets is included: the arms
(nothing recorded, routes, everything, routes with the dashboard looking on) take turns, each is
compared with another one of the same turn, and the median of all turns is told with its interval.
Between two runs a busy machine makes more of a difference than the dashboard does, so what the
dashboard takes is also told apart: the time of all threads but the one that computes. The picture
that the notebook keeps, drawn once a run is over, is left out of both. The first picture counts
from Run to the first token in the page: in a kernel that has imported nothing, and in one that has
answered before.
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

from k2lab.evals.jupyter import chromium, jupyterlab, open_notebook, write_notebook
from k2lab.evals.stats import Middle, middle

if TYPE_CHECKING:
    from k2lab.widgets.store import Store

QUESTION = "What do 3 x lamp and 2 x rope cost?"
PATIENCE = 600_000  # ms
REPEATS = 40  # turns
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

    seconds: float  # nothing recorded, nobody looks
    route_capture: Middle  # routes against nothing
    full_capture: Middle  # everything against nothing
    live_view: Middle  # routes with a dashboard against routes
    live_microseconds: float  # per token, of threads that do not compute, for the dashboard


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
            figures = page.wait_for_function(output).json_value()
    found = json.loads(figures.removeprefix(BEGIN))
    return Watching(read(found["costs"]), fresh, median(warm), Branching(**found["branch"]))


def costs(lab: Any, store: "Store", repeats: int) -> dict[str, Any]:
    """Costs and the branch, measured in this process; the store's widgets look on."""
    import torch

    from k2lab.widgets.store import ENDED_THREAD

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the other core is for those who look

    def seconds(capture: str, looking: "Store | None") -> tuple[float, float]:
        """Of the process, and beside the run's own thread for each token."""
        began = time.process_time()
        run = lab.run(QUESTION, capture=capture, store=looking).wait()
        while looking and looking.status.get("state") != "done":
            time.sleep(0.1)  # looking at it more often would be a cost of its own
        whole = time.process_time() - began
        for thread in threading.enumerate():  # which draws what the notebook keeps of the run
            if thread.name == ENDED_THREAD:
                thread.join()
        return whole, (whole - run.cpu_seconds) / run.trace.stopped.tokens

    arms = [("off", None), ("route", None), ("full", None), ("route", store)]
    found: list[list[tuple[float, float]]] = [[] for _ in arms]
    for turn in range(repeats + 1):
        for place in range(len(arms)):  # another arm begins in each turn
            arm = (place + turn) % len(arms)
            found[arm].append(seconds(*arms[arm]))
    torch.set_num_threads(before)
    # The first turn warms up.
    off, route, full, view = ([whole for whole, _ in each[1:]] for each in found)
    beside = [median(rest for _, rest in each[1:]) for each in found]
    measured = Costs(
        seconds=round(median(off), 3),
        route_capture=_added(route, off),
        full_capture=_added(full, off),
        live_view=_added(view, route),
        live_microseconds=round((beside[3] - beside[1]) * 1e6, 1),
    )
    return {"costs": asdict(measured), "branch": asdict(branching(lab))}


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
