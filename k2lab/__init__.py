"""k2lab: watch a Kimi-K2-Thinking-shaped model think, and touch it.

>>> import k2lab
>>> lab = k2lab.load()          # K2-nano; or a checkpoint folder
>>> run = lab.run("What is 3 * 14?").wait()

Importing this package loads neither torch nor Jupyter; `load` does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from typing import Unpack

    from k2lab.lab import Lab
    from k2lab.model.load import Placement
    from k2lab.rules import Resumed
    from k2lab.run import LabRun
    from k2lab.trace.trace import Trace
    from k2lab.weights.budget import Unit
    from k2lab.weights.store import WeightStore

__all__ = ["load", "open", "resume"]
__version__ = "0.1.0"


def load(
    path: str | Path | None = None,
    placement: Union["Placement", "WeightStore"] = "auto",
    *,
    device: str | tuple[str, ...] | None = None,
    device_budget: str | int | None = None,
    host_budget: str | int = 0,
    unit: "Unit" = "expert",
    prefetch: bool = False,
) -> "Lab":
    """The lab around a checkpoint folder; without a path, around the shipped K2-nano.

    `placement` says where weights go: "resident", "sharded" over several devices, "tiered" (from
    disk when they are asked for), or "auto", the first of these that fits. Budgets are bytes or
    texts such as "20GiB": of the device for all weights on it, and of host memory for experts that
    are kept on their way to it. `unit` is what comes and goes, an expert or a layer.
    """
    from k2lab.errors import InputError
    from k2lab.lab import Lab
    from k2lab.model.load import Places
    from k2lab.paths import asset

    folder = Path(path) if path is not None else asset("k2-nano")
    named: Placement = placement if isinstance(placement, str) else "auto"
    places = Places(
        placement=named,
        device=device,
        device_budget=device_budget,
        host_budget=host_budget,
        unit=unit,
        prefetch=prefetch,
    )
    if places == Places(placement=named):
        return Lab.open(folder, placement)
    if not isinstance(placement, str):
        raise InputError(
            "Devices or budgets beside a store that is made already.",
            expected="a placement by its name, or a store alone.",
            mend="Make the store with them, or leave them out.",
        )
    return Lab.open(folder, places)


def open(path: str | Path) -> "Trace":  # noqa: A001 - k2lab.open is what it does
    """The trace in a `.k2trace` file, memory-mapped; neither torch nor a checkpoint is needed."""
    from k2lab.trace.file import open_trace

    return open_trace(path)


def resume(path: str | Path, *, lab: "Lab | None" = None, **given: "Unpack[Resumed]") -> "LabRun":
    """The run of a journal, gone on with where a crash, a kill or Stop interrupted it.

    Without a lab, the checkpoint is loaded that the journal names. Tools and a tap of one's own,
    policies, mandates and secrets are given again, as to `lab.run`.
    """
    from k2lab.agent.journal import read

    path = Path(path)
    if lab is None:
        records = read(path) if path.exists() else []
        folder = records[0].facts.get("folder") if records else None
        lab = load(folder)
    return lab.resume(path, **given)
