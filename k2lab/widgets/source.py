"""What a store shows: a run that goes on, or a recorded trace in its place, and its status.

Not here: the store itself, which sends it to the page.
"""

from dataclasses import fields
from typing import Any, Literal, Protocol

import numpy as np

from k2lab.errors import InputError
from k2lab.trace.trace import Facts as Facts
from k2lab.trace.trace import Trace

FACTS = tuple(each.name for each in fields(Facts))


class RunLike(Protocol):
    """What a store needs of a run; `k2lab.engine.session.Run` has it."""

    trace: Trace
    error: str

    @property
    def state(self) -> str:
        """Running, paused, done, stopped or error."""
        ...

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def stop(self) -> object:
        """End it at the next layer."""
        ...

    def pause(self) -> object:
        """Hold it at the next layer."""
        ...

    def resume(self) -> object:
        """Let it go on."""
        ...

    def step(self, unit: Literal["token", "layer"]) -> object:
        """Let one token or layer through."""
        ...

    def pace(self, rate: float) -> object:
        """At most so many tokens a second; 0: as fast as it can."""
        ...

    def wait(self, timeout: float | None = None) -> object:
        """Return once it has ended."""
        ...


class Recorded:
    """A finished trace in the place of a run: it cannot be controlled."""

    error = ""
    done = True

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    @property
    def state(self) -> str:
        """`stopped` or `error` as recorded, else `done`."""
        reason = self.trace.stopped.reason if self.trace.stopped else "answer"
        return reason if reason in ("stopped", "error") else "done"

    def wait(self, timeout: float | None = None) -> None:
        """Returns at once."""

    def stop(self) -> None:
        """Refused, like every control."""
        raise refused("A control for a recorded trace", "a run that is going on")

    pause = resume = stop

    def step(self, _unit: str) -> None:
        """Refused."""
        self.stop()

    def pace(self, _rate: float) -> None:
        """Refused."""
        self.stop()


def status_of(run: RunLike, facts: Facts) -> dict[str, Any]:
    """The `status` trait: state, speed and origin, for the status line and the buttons."""
    stopped = run.trace.stopped
    error = ""
    if run.error or (stopped and stopped.reason == "error"):
        last = run.error.strip().splitlines()[-1:] or [""]
        error = (stopped.detail if stopped else "") or last[0] or "The run failed."
    return {
        "state": run.state,
        "reason": stopped.reason if stopped else "",
        "detail": stopped.detail if stopped else "",
        "error": error,
        "traceback": run.error,
        "speed": speed(run.trace, whole=run.done),
        "controls": not isinstance(run, Recorded) and not run.done,
        "contexts": [[each.start, each.agent] for each in list(run.trace.contexts)],
        **cost_of(run.trace),
        **{name: getattr(facts, name) for name in FACTS},
    }


def cost_of(trace: Trace) -> dict[str, float]:
    """What recording has cost so far: bytes per token, and its share of the run's time."""
    times = trace.seconds[~np.isnan(trace.seconds)]
    seconds = float(times[-1]) if len(times) else 0.0
    held = trace.experts.nbytes + trace.weights.nbytes + trace.margin.nbytes + trace.captured.nbytes
    return {
        "capture_bytes": round(held / trace.routed, 1) if trace.routed else 0.0,
        "capture_share": round(min(1.0, trace.capture_seconds / seconds), 4) if seconds else 0.0,
    }


def code_of(run: RunLike) -> str:
    """Code that gives the run again, where the run can tell it; else a comment on why not."""
    tell = getattr(run, "code", None)
    if not callable(tell):
        return ""
    try:
        return str(tell())
    except InputError as error:
        return f"# {error.found} {error.mend}\n"


def speed(trace: Trace, *, whole: bool) -> float:
    """Chosen tokens per second, rounded: of the whole run or of its last 24 tokens; 0 unknown."""
    times = trace.seconds[~np.isnan(trace.seconds)]
    times = times if whole else times[-24:]
    if len(times) < 2 or times[-1] <= times[0]:
        return 0.0
    return round((len(times) - 1) / float(times[-1] - times[0]), 1)


def refused(found: str, expected: str) -> InputError:
    """The error of a message that makes no sense."""
    return InputError(
        f"{found}.", expected=f"{expected}.", mend="reload the page, or run the cell."
    )
