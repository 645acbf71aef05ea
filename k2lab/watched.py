"""A workflow that goes on in a worker thread: several agents, one trace, one selection.

    watched = lab.watch(together([buyer, seller], question, turns=6, done=...))
    watched.timeline()

Not here: what the agents say to each other (`agent/workflow.py`).
"""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Self

from k2lab.agent.calling import Cancellation, within
from k2lab.agent.joined import joined
from k2lab.agent.workflow import Moment, Outcome, Workflow
from k2lab.engine.events import Event
from k2lab.engine.session import Control, EngineLock, Run, Unit
from k2lab.trace.trace import About, Facts, Trace
from k2lab.widgets.shown import Shown

if TYPE_CHECKING:
    from k2lab.widgets.base import Column
    from k2lab.widgets.store import Store


class Watched(Run, Shown):
    """A workflow as a run; all its widgets share one selection."""

    def __init__(self, workflow: Workflow, about: About, facts: Facts) -> None:
        trace = Trace(about)
        trace.facts = facts
        super().__init__(trace, Control())
        self.moments: list[Moment] = []  # so far
        self.outcome: Outcome | None = None  # once it has ended by itself
        self._workflow, self._given_up = workflow, Cancellation()

    def __repr__(self) -> str:
        agents = ", ".join(dict.fromkeys(each.agent for each in list(self.moments)))
        return f"Watched(agents=[{agents}], tokens={len(self.trace)}, state={self.state})"

    def begin(self) -> Self:
        """This workflow, started; its runs take the engine in their turn."""
        self.start(self._events(), EngineLock())
        return self

    def stop(self) -> None:
        """End all runs of the workflow at their next token, and the calls that they wait for."""
        super().stop()
        self._given_up.cancel()

    def step(self, unit: Unit = "token") -> None:
        """Let a paused workflow do one token; its runs' layers are not held one by one."""
        super().step("token" if unit == "layer" else unit)

    def _new_store(self) -> "Store":
        from k2lab.widgets.store import Store

        return Store(self)

    def show(self) -> "Column":
        """Text and timeline below each other."""
        from k2lab.widgets.base import Column

        return Column([self.thoughts(), self.timeline()])

    def _events(self) -> Iterator[Event]:
        with within(self._given_up):
            yield from joined(self._kept())

    def _kept(self) -> Generator[Moment, None, None]:
        """The moments, kept; the outcome once it is there."""
        while True:
            try:
                moment = next(self._workflow)
            except StopIteration as stop:
                self.outcome = stop.value
                return
            self.moments.append(moment)
            yield moment
