"""K2Widget: what all widgets share. Joined front end, stable repr, static picture.

anywidget loads a module from a Blob URL, where relative imports cannot resolve; so a widget's own
file is joined here with the files that it imports. A widget's static bundle (picture, small table,
text) is what GitHub, printed notebooks and nbval see; it depends on the trace only, not on time or
machine.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import anywidget
import ipywidgets
import numpy as np

from k2lab import paths
from k2lab.errors import InputError
from k2lab.text.messages import without_surrogates
from k2lab.widgets.stills import show, wants_static

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
IMPORT = re.compile(r'^import (\w+|\{[^}]*\}) from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (default )?", re.MULTILINE)
INDENT = re.compile(r"^[ \t]*//.*\n|^[ \t]+", re.MULTILINE)  # no literal goes over several lines
TAIL = re.compile(r"[ \t]+// [^\n\"'`]*$", re.MULTILINE)  # a literal would close behind it
TYPE = re.compile(r"/\*\* @type [^*]*\*/ ?")
BRACES = re.compile(r" *([{};]) *")  # of styles, in which no literal has one
COMMENT = re.compile(r"^[ \t]*/\*\*(?:(?!\*/).)*\*/\n", re.MULTILINE | re.DOTALL)

Bundle = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """What a widget shows without a front end."""

    title: str
    png: bytes | None  # None: nothing to draw yet
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Static:
    """A frozen widget: picture, table and text, no front end."""

    def __init__(self, bundle: Bundle, summary: str) -> None:
        self._bundle, self._summary = bundle, summary

    def __repr__(self) -> str:
        return self._summary

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        return dict(self._bundle)


class Freezable:
    """Static bundle next to the live view, or instead of it when frozen."""

    def summary(self) -> str:
        """Stable one-line text: no time, no address."""
        raise NotImplementedError

    def pictures(self) -> Sequence[Picture]:
        """What to show without a front end."""
        raise NotImplementedError

    @property
    def growing(self) -> bool:
        """Whether what is shown will soon be out of date: a picture of it would only take time."""
        return False

    def finish(self) -> None:
        """Waits until what is shown no longer changes."""

    def freeze(self) -> Static:
        """The static bundle alone, once the run has ended; as a cell's last value it is shown."""
        self.finish()
        return Static(static_bundle(self.summary(), self.pictures()), self.summary())

    def __repr__(self) -> str:
        return self.summary()

    def still(self) -> Bundle:
        """Picture, table and text of what is shown; of a run that goes on, only words."""
        if self.growing:
            return self.words("going on")
        return static_bundle(self.summary(), self.pictures())

    def words(self, state: str) -> Bundle:
        """What stands in the place of a picture, which needs another run of the cell."""
        words = f"{html.escape(self.summary())}: {state} when this was shown."
        note = "Run the cell again, or show <code>.freeze()</code> of it, for a picture."
        return {"text/plain": self.summary(), "text/html": f"<p>{words} {note}</p>"}

    def live(self) -> Bundle:
        """The live view alone."""
        view = {"version_major": 2, "version_minor": 0, "model_id": getattr(self, "model_id")}  # noqa: B009
        return {"text/plain": self.summary(), WIDGET_VIEW: view}

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        if wants_static():
            self.finish()
            return self.still()
        return {**self.live(), **self.still()}


class K2Widget(Freezable, anywidget.AnyWidget):  # type: ignore[misc]
    """Base of the widgets. A subclass names its `stem`: widgets/{stem}.js and .css."""

    stem = ""

    def __init__(self, **values: Any) -> None:
        known = self.trait_names(sync=True)
        for name in values:
            if name not in known:
                public = sorted(n for n in known if not n.startswith("_"))
                nearest = get_close_matches(name, public, 1) or public[:1]
                raise InputError(
                    f"{type(self).__name__} has no option '{name}'.",
                    expected=f"one of {', '.join(public)}.",
                    mend=f"write '{nearest[0]}' if that is meant, or leave it out.",
                )
        super().__init__(**values)

    @property
    def _esm(self) -> str:
        return joined_script(self.stem)

    @property
    def _css(self) -> str:
        return joined_style(self.stem)


class Column(Freezable, ipywidgets.VBox):  # type: ignore[misc]
    """Widgets below each other; frozen, their pictures below each other."""

    def __init__(self, parts: Sequence[K2Widget]) -> None:
        self.parts = tuple(parts)
        super().__init__(children=self.parts)

    def summary(self) -> str:
        """The parts' summaries in a row."""
        return f"Column({', '.join(part.summary() for part in self.parts)})"

    def pictures(self) -> Sequence[Picture]:
        """The parts' pictures."""
        return [picture for part in self.parts for picture in part.pictures()]

    @property
    def growing(self) -> bool:
        """Whether any part is."""
        return any(part.growing for part in self.parts)

    def _ipython_display_(self) -> None:
        show(self, getattr(self.parts[0], "store", None) if self.parts else None)

    def finish(self) -> None:
        """Waits for every part."""
        for part in self.parts:
            part.finish()


@lru_cache
def joined_script(stem: str) -> str:
    """One module: what the widget imports, each once and without comments, and the widget itself.

    Shared files (`_kit` and its like) lose their `export`s; a whole widget that is imported becomes
    a constant, so that its own names stay its own.
    """
    return "\n".join([*_imported(stem, seen=set()), _body(stem)])


@lru_cache
def joined_style(stem: str) -> str:
    """The shared style sheet and those of the widget and of the widgets in it."""
    stems = ["_kit", *_inside(stem), stem]
    files = [paths.front() / f"{name}.css" for name in stems]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    return BRACES.sub(r"\1", INDENT.sub("", re.sub(r"/\*[^*]*\*/\n?", "", text)))


def _imports(stem: str) -> list[tuple[str, str]]:
    """What a file imports: the file's name, and the constant's where it is a whole widget."""
    found = IMPORT.findall(_source(stem))
    return [(name, "" if what.startswith("{") else what) for what, name in found]


def _inside(stem: str) -> list[str]:
    """The whole widgets in a widget, at any depth."""
    found = [name for name, whole in _imports(stem) if whole]
    return [name for each in found for name in (*_inside(each), each)]


def _imported(stem: str, seen: set[str]) -> list[str]:
    parts: list[str] = []
    for name, constant in _imports(stem):
        if name in seen:
            continue
        seen.add(name)
        parts += _imported(name, seen)
        body = _body(name)
        if constant:
            body = EXPORT.sub(lambda m: "return " if m[1] else "", body)
            parts.append(f"const {constant} = (() => {{\n{body}\n}})();")
        else:
            parts.append(re.sub(r"^export ", "", body, flags=re.MULTILINE))
    return parts


def _body(stem: str) -> str:
    text = COMMENT.sub("", IMPORT.sub("", _source(stem)))
    return TYPE.sub("", INDENT.sub("", TAIL.sub("", text)))


@lru_cache
def _source(stem: str) -> str:
    return (paths.front() / f"{stem}.js").read_text(encoding="utf-8")


def static_bundle(summary: str, pictures: Sequence[Picture]) -> Bundle:
    """`text/plain`, sanitiser-safe `text/html` and, where something is drawn, `image/png`."""
    bundle: Bundle = {
        "text/plain": summary,
        "text/html": without_surrogates("\n".join(_picture_html(each) for each in pictures)),
    }
    drawn = [picture.png for picture in pictures if picture.png]
    if drawn:
        bundle["image/png"] = base64.b64encode(_stacked(drawn)).decode("ascii")
    return bundle


def png(figure: Any, *, colours: int = 256) -> bytes:
    """A matplotlib figure as a small PNG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return _small(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]), colours)


def _stacked(pngs: Sequence[bytes]) -> bytes:
    """Pictures below each other as one."""
    from PIL import Image

    if len(pngs) == 1:
        return pngs[0]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pngs]
    size = (max(image.width for image in images), sum(image.height for image in images))
    whole, top = Image.new("RGB", size, "white"), 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return _small(whole, 256)


def _small(image: Any, colours: int) -> bytes:
    buffer = io.BytesIO()
    image.quantize(colours, dither=0).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _picture_html(picture: Picture) -> str:
    parts = [f"<p><b>{html.escape(picture.title)}</b></p>"]
    if picture.png:
        data = base64.b64encode(picture.png).decode("ascii")
        title = html.escape(picture.title, quote=True)
        parts.append(f'<p><img alt="{title}" src="data:image/png;base64,{data}"></p>')
    rows = [_row("th", picture.head), *(_row("td", row) for row in picture.rows)]
    parts.append(f"<table>{''.join(rows)}</table>")
    return "".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
