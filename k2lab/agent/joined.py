"""The runs of a workflow as one: its events for one trace, one axis and one selection.

    run of A | run of B | run of A | …        indices and the clock go on, each run is a context

Runs that went on at the same time come one after the other, in the order in which they began, and
so does their time. Not here: who speaks when (`workflow.py`).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from k2lab.agent.workflow import Moment
from k2lab.engine.events import (
    ApprovalAsked,
    ApprovalGiven,
    Captured,
    Dropped,
    Event,
    ExpertsMoved,
    PromptRead,
    Retried,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)


def joined(moments: Iterable[Moment]) -> Iterator[Event]:
    """The events of all runs, one run after the other; a single Stopped at the end."""
    waiting: dict[int, deque[Moment]] = {}  # by run, in the order in which they began
    seam, ended = _Seam(), list[Stopped]()
    for each in moments:
        waiting.setdefault(each.run, deque()).append(each)
        yield from _ready(waiting, seam, ended)
    while waiting:  # from here on, the one that has its turn was broken off
        yield from _ready(waiting, seam, ended)
        waiting.pop(next(iter(waiting), -1), None)
    if ended:
        tokens = sum(each.tokens for each in ended)
        yield replace(ended[-1], tokens=tokens, seconds=seam.last)


def _ready(
    waiting: dict[int, deque[Moment]], seam: "_Seam", ended: list[Stopped]
) -> Iterator[Event]:
    """What is next of the run that has its turn, and of those after it once it has ended."""
    while waiting:
        run, queue = next(iter(waiting.items()))
        while queue:
            moment = queue.popleft()
            seam.open(moment)
            if isinstance(moment.event, Stopped):
                ended.append(moment.event)
                del waiting[run]
                break
            yield from seam.passed(moment)
        else:
            return


@dataclass(slots=True)
class _Seam:
    """Where the run that has its turn stands in the whole."""

    run: int = -1
    number: int = -1  # of the run, from 0
    first: int = 0  # index of its first token
    length: int = 0  # tokens so far, of all runs
    routed: int = 0  # of them with routes
    captured: int = 0
    began: float | None = None  # of the first run, on the clock of the moments
    lag: float = 0.0  # of this run behind that clock: it went on beside another one
    last: float = 0.0  # seconds so far

    def open(self, moment: Moment) -> None:
        """Another run begins, if this is a moment of one."""
        if self.began is None:
            self.began = moment.seconds
        if moment.run != self.run:
            self.run, self.number, self.first = moment.run, self.number + 1, self.length
            self.lag = max(0.0, self.last - (moment.seconds - self.began))
        self.last = moment.seconds - self.began + self.lag

    def passed(self, moment: Moment) -> Iterator[Event]:
        """The event at its place in the whole; without routes that would leave a gap."""
        first, key = self.first, f"{self.number}."
        match moment.event:
            case PromptRead() as event:
                self.length = max(self.length, first + event.start + len(event.ids))
                start, context = first + event.start, first + event.context
                yield replace(event, start=start, context=context, agent=moment.agent)
            case TokenChosen() as event:
                self.length = first + event.index + 1
                yield replace(event, index=first + event.index, seconds=self.last)
            case Routed() as event if first + event.start == self.routed:
                self.routed += len(event.experts)
                yield replace(event, start=first + event.start)
            case Captured() as event if first + event.start == self.captured:
                self.captured += len(next(iter(event.arrays.values())))
                yield replace(event, start=first + event.start)
            case Routed() | Captured():
                pass  # a run before was broken off between a token and its routes
            case ExpertsMoved() as event:
                yield replace(event, start=first + event.start)
            case Dropped() as event:
                yield replace(event, first=first + event.first)
            case ToolAsked() as event:
                yield replace(event, key=key + event.key, index=first + event.index)
            case ToolAnswered() | ApprovalAsked() | ApprovalGiven() | Retried() as event:
                yield replace(event, key=key + event.key)
            case event:
                yield event
