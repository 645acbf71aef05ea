"""AttentionCache: what the heads of a layer read at a token, and what the cache costs.

The live view is widgets/attention.js on a Store. Weights come on demand (details.py), so the
picture exists where somebody can be asked for them; the size of the cache needs nobody.
"""

import numpy as np
from numpy.typing import NDArray

from k2lab.trace.trace import Trace
from k2lab.widgets.base import Picture, png
from k2lab.widgets.details import Detail
from k2lab.widgets.store import Store
from k2lab.widgets.view import View

MOST_HEADS = 12  # in the static table; the picture has them all
NAMED = 3  # positions per head there


class AttentionCache(View):
    """What each head reads at the selected token, and the latent cache beside a full one.

    `AttentionCache(store)`, or of a run or trace alone. Token and layer are the selection's
    (`store.playhead`, `store.layer`), else the last ones.
    """

    stem = "attention"

    def summary(self) -> str:
        """`AttentionCache(token=92, layer=5, tokens=93, state=done)`."""
        return f"AttentionCache(token={self.token}, layer={self.layer}, {self.store.counts()})"

    @property
    def token(self) -> int:
        """The token that is shown; −1 where there is none."""
        pinned, head, length = self.store.pin[0], self.store.playhead, len(self.store.source.trace)
        chosen = pinned if pinned >= 0 else head
        return chosen if 0 <= chosen < length else length - 1

    @property
    def layer(self) -> int:
        """The layer that is shown."""
        layers, chosen = self.store.source.trace.about.layers, self.store.layer
        return chosen if 0 <= chosen < layers else layers - 1

    def pictures(self) -> tuple[Picture]:
        """The heads' rows where weights are known, and the size of the cache."""
        trace, token, layer = self.store.source.trace, self.token, self.layer
        detail = Detail("missing", note="There are no tokens.")
        if token >= 0 and self.store.source.done:
            detail = self.store.details.attention(trace, token, layer)
        known = "weights" in detail.arrays
        about = f"layer {layer} at token {token}, {trace.texts[token]!r}" if token >= 0 else "empty"
        rows = list(table(trace, detail)) if known else [("–", detail.note, "–")]
        return (
            Picture(
                title=f"AttentionCache: {about}. {cost(self.store)}",
                png=draw(detail) if known else None,
                head=("head", "reads most", "rotated part"),
                rows=tuple(rows),
            ),
        )


def cost(store: Store) -> str:
    """The cache per token in words, and its ratio to keys and values of all heads."""
    latent, full = store.facts.latent_bytes, store.facts.multi_head_bytes
    if not latent or not full:
        return "Size of the cache: missing."
    return f"Latent cache {latent:,} bytes per token, all heads {full:,} ({full / latent:.1f} ×)."


def table(trace: Trace, detail: Detail) -> list[tuple[str, ...]]:
    """One row per head: its number, the positions that it reads most, its rotated share."""
    weights, rope = np.asarray(detail.arrays["weights"], np.float64), detail.arrays["rope"]
    heads = detail.arrays.get("heads", np.arange(len(rope)))
    rows: list[tuple[str, ...]] = []
    for row, head in enumerate(heads[:MOST_HEADS]):
        best = np.argsort(-weights[row], kind="stable")[:NAMED]
        named = ", ".join(f"{trace.texts[i]!r} {i} ({weights[row, i]:.0%})" for i in best)
        rows.append((str(int(head)), named, f"{float(rope[row]):.0%}"))
    if len(heads) > MOST_HEADS:
        rows.append(("…", f"{len(heads) - MOST_HEADS} more", "…"))
    return rows


def draw(detail: Detail) -> bytes:
    """Heads by sources as PNG, each row by its own largest weight; beside it the rotated share."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    weights: NDArray[np.float64] = np.asarray(detail.arrays["weights"], np.float64)
    rope = np.asarray(detail.arrays["rope"], np.float64)
    heads, sources = weights.shape
    peak = np.maximum(weights.max(axis=1, keepdims=True), 1e-9)
    figure = Figure(
        figsize=(8, min(5.0, 0.9 + 0.22 * heads)), facecolor="white", layout="constrained"
    )
    grid, share = figure.subplots(1, 2, width_ratios=(7, 1), sharey=True)
    extent = (-0.5, sources - 0.5, heads - 0.5, -0.5)
    grid.imshow(np.sqrt(weights / peak), cmap="cividis", aspect="auto", interpolation="nearest",
                extent=extent)  # fmt: skip
    grid.set_xlabel("source token", size=8)
    grid.set_ylabel("head", size=8)
    grid.yaxis.set_major_locator(MaxNLocator(integer=True))
    share.barh(np.arange(heads), rope, color="#7b8fa8", height=0.7)
    share.set(xlim=(0, 1), xticks=(0, 1))
    share.set_title("rotated part", size=8)
    for axes in (grid, share):
        axes.tick_params(labelsize=7)
    return png(figure)
