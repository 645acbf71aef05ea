"""Dashboard: all views of a run on one page, with one selection and one status line.

The live view is widgets/dashboard.js on a Store. Frozen, it is the views' pictures below each
other.
"""

from collections.abc import Sequence

import traitlets

from k2lab.widgets.attention import AttentionCache
from k2lab.widgets.base import Picture
from k2lab.widgets.compare import CompareBranch
from k2lab.widgets.experts import ExpertMap
from k2lab.widgets.lens import RouteLens
from k2lab.widgets.thoughts import ThoughtStream
from k2lab.widgets.timeline import Timeline
from k2lab.widgets.view import View

VIEWS = (ThoughtStream, Timeline, ExpertMap, RouteLens, AttentionCache, CompareBranch)


class Dashboard(View):
    """The linked views of one run: text and timeline, and the maps behind tabs.

    `Dashboard(store)`, or of a run or trace. `tab`: which map is in front. Its other options are
    those of the views.
    """

    stem = "dashboard"

    tab = traitlets.Enum(["experts", "lens", "attention", "compare"], "experts").tag(sync=True)
    strip = traitlets.Enum(["entropy", "margin", "time", "none"], "entropy").tag(sync=True)
    mode = traitlets.Enum(["all", "token", "range", "difference"], "all").tag(sync=True)
    sort = traitlets.Enum(["id", "load", "affinity"], "id").tag(sync=True)
    lens = traitlets.Enum(["all", "ties"], "all").tag(sync=True)
    axis = traitlets.Enum(["tokens", "time"], "tokens").tag(sync=True)

    def summary(self) -> str:
        """`Dashboard(tokens=93, state=done)`."""
        return f"Dashboard({self.store.counts()})"

    def pictures(self) -> Sequence[Picture]:
        """The views' pictures."""
        return [picture for view in VIEWS for picture in view(self.store).pictures()]
