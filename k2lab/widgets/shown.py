"""The views of a run by name: what a live run and a watched workflow show in the same way.

The views are imported where they are made, so that a run without a picture starts quickly. Not
here: what a store holds (`store.py`), and which of the views a run shows by itself.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from k2lab.widgets.attention import AttentionCache
    from k2lab.widgets.base import Column
    from k2lab.widgets.dashboard import Dashboard
    from k2lab.widgets.experts import ExpertMap
    from k2lab.widgets.lens import RouteLens
    from k2lab.widgets.store import Store
    from k2lab.widgets.thoughts import ThoughtStream
    from k2lab.widgets.timeline import Timeline


class Shown(ABC):
    """All its widgets share one selection."""

    _store: "Store | None" = None

    @property
    def store(self) -> "Store":
        """Data and selection behind the widgets."""
        if self._store is None:
            self._store = self._new_store()
        return self._store

    @abstractmethod
    def _new_store(self) -> "Store":
        """A store that shows this."""

    @abstractmethod
    def show(self) -> "Column":
        """The views that say most, below each other."""

    def thoughts(self) -> "ThoughtStream":
        """The tokens as they appear: thinking, tool calls, answer."""
        from k2lab.widgets.thoughts import ThoughtStream

        return ThoughtStream(self.store)

    def experts(self) -> "ExpertMap":
        """Which experts computed what, layer by layer."""
        from k2lab.widgets.experts import ExpertMap

        return ExpertMap(self.store)

    def routes(self) -> "RouteLens":
        """Why one token went to its experts, and edits of that."""
        from k2lab.widgets.lens import RouteLens

        return RouteLens(self.store)

    def attention(self) -> "AttentionCache":
        """What the heads read at a token, and what the cache costs."""
        from k2lab.widgets.attention import AttentionCache

        return AttentionCache(self.store)

    def timeline(self) -> "Timeline":
        """Parts, tool calls, time and memory on one axis; each agent has a lane of its own."""
        from k2lab.widgets.timeline import Timeline

        return Timeline(self.store)

    def dashboard(self) -> "Dashboard":
        """All views on one page."""
        from k2lab.widgets.dashboard import Dashboard

        return Dashboard(self.store)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """As the last line of a cell, it shows its widgets."""
        return self.show()._repr_mimebundle_(**kwargs)

    def _ipython_display_(self) -> None:
        self.show()._ipython_display_()
