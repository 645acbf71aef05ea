"""ThoughtStream: the run's tokens as text, live; and its static picture.

The live view is widgets/thoughts.js on a Store. The picture shows the wrapped text, its parts by
colour and letter, and a strip coloured by entropy under each chosen token.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import traitlets

from k2lab.engine.events import KINDS, Kind
from k2lab.trace.trace import Trace
from k2lab.widgets.base import Picture, png
from k2lab.widgets.view import View

COLUMNS = 96  # characters per line of the picture
LONG_TOKEN = 20  # characters; longer ones are cut at the line end
MOST_LINES = 24  # longer texts lose their middle
SHOWN: tuple[Kind, ...] = ("user", "thinking", "call", "result", "answer")
LOOK: dict[str, tuple[str, str]] = {  # letter and Okabe–Ito colour of each kind
    "user": ("U", "#e69f00"),
    "thinking": ("T", "#0072b2"),
    "call": ("C", "#cc79a7"),
    "result": ("R", "#56b4e9"),
    "answer": ("A", "#009e73"),
}
HIGHEST_ENTROPY = 3.0  # nats, at the end of the colour scale


class ThoughtStream(View):
    """Tokens as they appear; thinking, answer and tool calls apart.

    `ThoughtStream(store)`, or of a run or trace alone. `strip`: entropy, margin, time or none.
    """

    stem = "thoughts"

    strip = traitlets.Enum(["entropy", "margin", "time", "none"], "entropy").tag(sync=True)

    def summary(self) -> str:
        """`ThoughtStream(tokens=93, state=done)`."""
        return f"ThoughtStream({self.store.counts()})"

    def pictures(self) -> tuple[Picture]:
        """The text with its parts marked, and how long each part is."""
        trace = self.store.source.trace
        rows = []
        for code, kind in enumerate(KINDS):
            mine = trace.kinds == code
            if mine.any():
                entropy = trace.entropy[: len(mine)][mine]
                mean = f"{np.nanmean(entropy):.2f}" if not np.isnan(entropy).all() else "given"
                rows.append((kind, str(int(mine.sum())), mean))
        return (
            Picture(
                title=f"ThoughtStream: {len(trace)} tokens, {self.store.source.state}",
                png=draw(trace) if len(trace) else None,
                head=("part", "tokens", "mean entropy (nats)"),
                rows=tuple(rows),
            ),
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters of one token on one line of the picture."""

    line: int
    column: int
    text: str
    kind: Kind
    entropy: float
    first: bool  # begins a part


def wrap(trace: Trace, columns: int = COLUMNS) -> Iterator[Piece]:
    """The shown tokens in pieces, each on a line; a part begins a line, thinking is indented."""
    line, column, before = -1, 0, ""
    entropy = trace.entropy
    for index, code in enumerate(trace.kinds.tolist()):
        kind = KINDS[code]
        if kind not in SHOWN:
            continue
        first = kind != before
        indent = 7 if kind == "thinking" else 3
        if first:
            line, column, before = line + 1, indent, kind
        for part, piece in enumerate(trace.texts[index].split("\n")):
            if part and column > indent:  # no empty lines: the picture is for a glance
                line, column = line + 1, indent
            rest = piece
            while rest:
                if column >= columns or (column + len(rest) > columns and len(rest) < LONG_TOKEN):
                    line, column, rest = line + 1, indent, rest.lstrip(" ")
                taken, rest = rest[: columns - column], rest[columns - column :]
                if taken:
                    yield Piece(line, column, taken, kind, float(entropy[index]), first)
                    first, column = False, column + len(taken)


def draw(trace: Trace) -> bytes:
    """The picture as PNG; the same trace gives the same bytes."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    pieces = _without_middle(list(wrap(trace)))
    lines = 1 + max((piece.line for piece in pieces), default=0)
    wide, high = 0.08, 0.24  # inches per character and line; whole pixels at 100 dots per inch
    figure = Figure(figsize=(COLUMNS * wide + 0.3, lines * high + 0.25), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1, COLUMNS + 3), ylim=(lines + 0.1, -0.9))
    axes.axis("off")
    scale = colormaps["cividis"].reversed()
    for piece in pieces:
        letter, colour = LOOK[piece.kind]
        if piece.first:
            box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "alpha": 0.3, "linewidth": 0}
            axes.text(
                1, piece.line, letter, ha="center", va="center", size=8, weight="bold", bbox=box
            )
        axes.text(
            piece.column, piece.line, drawable(piece.text), family="DejaVu Sans Mono", size=9.568,
            va="center", parse_math=False, color="#555555" if piece.kind == "thinking" else "black",
            weight="bold" if piece.kind == "user" else "normal",
        )  # fmt: skip
        if not np.isnan(piece.entropy):
            level = min(1.0, piece.entropy / HIGHEST_ENTROPY)
            ends = [piece.column, piece.column + len(piece.text)]
            axes.plot(
                ends,
                [piece.line + 0.42] * 2,
                color=scale(level),
                alpha=0.25 + 0.75 * level,
                lw=2,
                solid_capstyle="butt",
            )
    thinking = sorted({piece.line for piece in pieces if piece.kind == "thinking"})
    axes.vlines([5] * len(thinking), [y - 0.5 for y in thinking], [y + 0.5 for y in thinking],
                color=LOOK["thinking"][1], lw=2, alpha=0.6)  # fmt: skip
    return png(figure, colours=128)


def _without_middle(pieces: list[Piece]) -> list[Piece]:
    lines = 1 + max((piece.line for piece in pieces), default=0)
    if lines <= MOST_LINES:
        return pieces
    half = MOST_LINES // 2
    cut = lines - 2 * half
    kept = [piece for piece in pieces if piece.line < half]
    kept.append(Piece(half, 3, f"… {cut} lines are left out …", "user", float("nan"), first=False))
    rest = (piece for piece in pieces if piece.line >= half + cut)
    kept.extend(replace(piece, line=piece.line - cut + 1) for piece in rest)
    return kept


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans Mono"))
    return bool(font.get_char_index(ord(character)))


def drawable(text: str) -> str:
    """The text with a box for each character that the font does not have."""
    return "".join(c if c.isprintable() and _has_glyph(c) else "□" for c in text)
