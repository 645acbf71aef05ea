"""Timeline: what happened when, live; and its static picture.

The live view is widgets/timeline.js on a Store. The picture has the parts of the text, the tool
calls and the time per token over the tokens; never over the clock, so it shows how long each token
took in the recorded run.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import traitlets
from numpy.typing import NDArray

from k2lab.trace.trace import CallRecord, Trace
from k2lab.widgets.base import Picture, png
from k2lab.widgets.thoughts import LOOK, drawable
from k2lab.widgets.view import View

MOST_ROWS = 12  # calls in the static table
SHORT = 60  # characters of arguments and results there


class Timeline(View):
    """Parts, tool calls, time per token and memory on one axis.

    `Timeline(store)`, or of a run or trace alone. `axis`: tokens or time.
    """

    stem = "timeline"

    axis = traitlets.Enum(["tokens", "time"], "tokens").tag(sync=True)

    def summary(self) -> str:
        """`Timeline(calls=3, tokens=93, state=done)`."""
        return f"Timeline(calls={len(self.store.source.trace.calls)}, {self.store.counts()})"

    def pictures(self) -> tuple[Picture]:
        """Lanes over the tokens, and the tool calls as a table."""
        trace = self.store.source.trace
        rows = list(table(trace))
        if len(rows) > MOST_ROWS:
            rows[MOST_ROWS:] = [("…", f"{len(rows) - MOST_ROWS} more", "…", "…", "…")]
        return (
            Picture(
                title=f"Timeline: {len(trace)} tokens, {len(trace.calls)} tool calls{_more(trace)}",
                png=draw(trace) if len(trace) else None,
                head=("token", "tool", "arguments", "state", "result"),
                rows=tuple(rows),
            ),
        )


def table(trace: Trace) -> Iterator[tuple[str, ...]]:
    """One row per tool call: where it ended, what was asked, what came of it."""
    before: CallRecord | None = None
    for call in trace.calls:
        open_ = "running" if trace.stopped is None else "unfinished"
        state = {None: open_, True: "answered", False: "failed"}[call.ok]
        if call.approval:
            state = (
                "waits for approval" if call.approval == "waiting" else f"{call.approval}, {state}"
            )
        if before is not None and before.ok is False and before.name == call.name:
            state += " (retry)"
        agent = _agent_at(trace, call.index)
        name = f"{agent}: {call.name}" if agent else call.name
        yield str(call.index), name, _short(call.arguments), state, _short(call.content or "")
        before = call


def lanes(trace: Trace) -> list[str]:
    """The names of the lanes of text: of each agent, or one for all."""
    return list(dict.fromkeys(each.agent for each in trace.contexts if each.agent)) or ["text"]


def token_seconds(trace: Trace) -> NDArray[np.float64]:
    """How long each chosen token took [token]; NaN for given tokens and the first one."""
    seconds = trace.seconds.astype(np.float64)
    chosen = np.flatnonzero(~np.isnan(seconds))
    lasted = np.full(len(seconds), np.nan)
    lasted[chosen[1:]] = np.diff(seconds[chosen])
    return lasted


def draw(trace: Trace) -> bytes:
    """The picture as PNG; the same trace gives the same bytes."""
    from matplotlib.figure import Figure

    names, starts = lanes(trace), [each.start for each in trace.contexts]
    size = (8, 1.8 + 0.3 * len(names))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    parts, speed = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
    rows = {name: len(names) - place for place, name in enumerate(names)}
    for span in trace.spans():
        letter, colour = LOOK.get(span.kind, ("", "#bbbbbb"))
        inside = [start for start in starts if span.start < start < span.stop]
        for start, stop in pairwise([span.start, *inside, span.stop]):
            width, row = stop - start, rows.get(_agent_at(trace, start) or "text", 1)
            parts.barh(row, width, left=start, height=0.8, color=colour, alpha=0.75, lw=0)
            if letter and width > len(trace) / 60:
                parts.text(start + width / 2, row, letter, ha="center", va="center", size=7)
    for start in starts[1:]:  # what is before is not remembered after it
        parts.axvline(start, color="black", lw=0.7)
    bad = [call for call in trace.calls if call.ok is False]
    good = [call for call in trace.calls if call.ok is not False]
    for calls, mark, colour in ((good, "v", "#cc79a7"), (bad, "x", "#d55e00")):
        parts.scatter([call.index for call in calls], [0] * len(calls), marker=mark, s=28, c=colour)
    labels = ("tool calls", *map(drawable, rows))
    parts.set_yticks((0, *rows.values()), labels, size=8, parse_math=False)
    parts.set_ylim(-0.6, len(names) + 0.6)
    milliseconds = token_seconds(trace) * 1000
    known = np.flatnonzero(~np.isnan(milliseconds))
    speed.bar(known, milliseconds[known], width=1.0, color="#7b8fa8", lw=0)
    speed.set_ylabel("ms / token", size=8)
    speed.set_xlabel("token", size=8)
    speed.set_xlim(0, max(1, len(trace)))
    for axes in (parts, speed):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _agent_at(trace: Trace, token: int) -> str:
    return next(each.agent for each in reversed(trace.contexts) if each.start <= token)


def _more(trace: Trace) -> str:
    names = lanes(trace)
    if names != ["text"]:
        return f", {', '.join(names)}"
    compacted = len(trace.contexts) - 1
    return f", compacted {compacted}×" if compacted else ""


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHORT else f"{flat[:SHORT]} …"
