"""What a notebook keeps of a live view: a picture below it, which is seen once nobody runs it.

JupyterLab shows a widget whose kernel is gone as an error, and nothing else of the same output. So
the picture is an output of its own, hidden by the view while that lives (widgets/_kit.js), and
drawn anew when a run has ended. Not here: the pictures themselves (`base.py`).
"""

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from k2lab.engine.session import start_worker
from k2lab.errors import BusyError

if TYPE_CHECKING:
    from k2lab.widgets.base import Freezable
    from k2lab.widgets.store import Store

LULL = 3.0  # seconds after a run's end in which another one may begin: then nothing is drawn
NOTE = "As the notebook was left: run the cell again for the live view."


def wants_static() -> bool:
    """Whether `K2LAB_STATIC` asks for static bundles (committed notebooks, graders, nbval)."""
    return os.environ.get("K2LAB_STATIC", "") not in ("", "0")


def show(view: "Freezable", store: "Store | None") -> None:
    """Shows the live view in a notebook, and below it the picture that stays.

    NotImplementedError where IPython shall show the view's bundle instead.
    """
    if store is None or wants_static() or not _in_a_notebook():
        raise NotImplementedError
    from IPython.display import display, update_display

    name = uuid4().hex

    def redraw() -> None:
        time.sleep(LULL)
        while store.source.done:
            with suppress(BusyError):  # some of it is computed, and a run has the engine
                update_display(_still(view, store), raw=True, display_id=name)  # type: ignore[no-untyped-call]
                return
            time.sleep(LULL)

    display(view.live(), raw=True)  # type: ignore[no-untyped-call]
    try:
        still = _still(view, store)
    except BusyError:
        still = _framed(view.words("waiting for a run that has the engine"), store)
        start_worker("k2lab-still", redraw)
    display(still, raw=True, display_id=name)  # type: ignore[no-untyped-call]
    store.when_done(redraw)


def _in_a_notebook() -> bool:
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def _still(view: "Freezable", store: "Store") -> dict[str, Any]:
    return _framed(view.still(), store)


def _framed(bundle: dict[str, Any], store: "Store") -> dict[str, Any]:
    """The bundle with the place in which the live view hides it."""
    shown = f'<div class="k2-still-{store.store_id}"><p>{NOTE}</p>\n{bundle["text/html"]}</div>'
    return {**bundle, "text/html": shown}
