"""View: what each widget on a store has: the store's id for the page, the end of its run."""

from pathlib import Path
from typing import Any

import traitlets

from k2lab.trace.trace import Trace
from k2lab.widgets.base import K2Widget
from k2lab.widgets.source import RunLike
from k2lab.widgets.stills import show
from k2lab.widgets.store import Store, store_of


class View(K2Widget):
    """A widget on a store, on a run or on a trace alone."""

    store_id = traitlets.Unicode().tag(sync=True)

    def __init__(self, source: Store | RunLike | Trace, **values: Any) -> None:
        self.store = store_of(source)
        super().__init__(store_id=self.store.store_id, **values)

    def _ipython_display_(self) -> None:
        show(self, self.store)

    @property
    def growing(self) -> bool:
        """Whether the run goes on."""
        return not self.store.source.done

    def to_html(self, path: str | Path) -> Path:
        """Writes the dashboard of what is shown as one HTML file: no kernel, no network."""
        return self.store.to_html(path)

    def finish(self) -> None:
        """Waits for the run."""
        self.store.finish()
