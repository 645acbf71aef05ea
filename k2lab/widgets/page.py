"""A run, or a tree of them, as one HTML file: the dashboard, its data inside, no network.

The front end is the same as in a notebook (widgets/page.js gives it a model that nobody is behind).
Model text is data here: JSON in which `<` is written as an escape, so it can end no element.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from k2lab.errors import InputError
from k2lab.text.messages import without_surrogates
from k2lab.trace.file import write_whole
from k2lab.trace.trace import Trace
from k2lab.widgets import wire
from k2lab.widgets.base import joined_script, joined_style
from k2lab.widgets.details import CapturedDetails, Detail
from k2lab.widgets.source import Recorded, status_of
from k2lab.widgets.tree import PageRun, Shared, shared

FRAME_TOKENS = 4096
DETAIL_BYTES = 2_000_000  # of captured values in a page; base64 makes them a third more
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 8px 12px; max-width: 1500px; background: Canvas; color: CanvasText;
  font-family: system-ui, sans-serif; --k2-side: clamp(430px, 100vh - 276px, 760px); }
"""

Message = tuple[dict[str, Any], list[bytes]]


def page(
    run: PageRun,
    *,
    title: str = "",
    details: Iterable[tuple[str, Detail]] = (),
    beside: Sequence[PageRun] = (),
) -> str:
    """The HTML of a page that shows the run; `details` by key are those the page can show.

    CompareBranch has the runs `beside` it too. What a run has in common with its parent is written
    once.
    """
    runs = {each.name: each for each in (*beside, run)}
    blocks: list[str] = []
    listed: list[dict[str, Any]] = []
    for each in _parents_first(runs):
        common = shared(each.trace, runs[each.parent].trace) if each.parent in runs else Shared()
        messages = list(_frames(each.trace, common))
        if each.name == run.name:
            messages += [_detail(key, detail) for key, detail in details]
        packed = []
        for header, buffers in messages:
            packed.append((header, [f"k2-bytes-{len(blocks) + k}" for k in range(len(buffers))]))
            blocks += [base64.b64encode(buffer).decode("ascii") for buffer in buffers]
        begins = asdict(common) | {"run": each.parent} if common.tokens else None
        traits = store_traits(each)
        if each.name == run.name and beside:
            traits["runs"] = [one.entry() for one in _parents_first(runs)]
        listed.append({"traits": traits, "begins": begins, "messages": packed})
    name = html.escape(title or f"{run.trace.about.model}: {len(run.trace)} tokens")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{name}</title>\n<style>{STYLE}{joined_style('page')}</style>\n</head>\n<body>",
            '<main id="k2-run"></main>',
            _json("k2-page", {"shown": run.name, "view": {"tab": "experts"}, "runs": listed}),
            *(
                f'<script type="text/plain" id="k2-bytes-{place}">{block}</script>'
                for place, block in enumerate(blocks)
            ),
            f'<script type="module">\n{joined_script("page")}\nmountHere();\n</script>',
            "</body>\n</html>\n",
        ]
    )


def write(
    trace: Trace, path: Path, *, code: str = "", details: Mapping[str, Detail] | None = None
) -> Path:
    """The file with the trace's page; one of this name is replaced once the new one is whole.

    What the trace holds of the network's inside goes with it, as far as there is room.
    """
    return write_tree([PageRun(trace=trace, code=code)], path, details=details)


def write_tree(
    runs: Sequence[PageRun],
    path: Path,
    *,
    shown: str = "run",
    details: Mapping[str, Detail] | None = None,
) -> Path:
    """The file with the page of the run of this name, which compares it with the others."""
    run = next((each for each in runs if each.name == shown), None)
    names = [each.name for each in runs]
    if run is None or len({*names}) < len(names):
        raise InputError(
            f"A page of '{shown}' among the runs {', '.join(names) or 'none'}.",
            expected="runs of different names, and one of them to be shown.",
            mend="name each PageRun apart, and give one of the names as `shown`.",
        )
    held = {**captured(run.trace), **(details or {})}
    beside = [each for each in runs if each is not run]
    text = without_surrogates(page(run, details=held.items(), beside=beside))
    return write_whole(path, text.encode())


def captured(trace: Trace, room: int = DETAIL_BYTES) -> dict[str, Detail]:
    """Captured scores and attention by key, of the newest tokens whose bytes fit."""
    known, found = CapturedDetails(), dict[str, Detail]()
    for token in reversed(range(trace.captured.first, trace.captured.stop)):
        asked = {f"route:{token}:-1": known.route(trace, token)}
        for layer in range(trace.about.layers):
            asked[f"attention:{token}:{layer}"] = known.attention(trace, token, layer)
        measured = {key: each for key, each in asked.items() if each.provenance != "missing"}
        arrays = (array for each in measured.values() for array in each.arrays.values())
        room -= sum(array.nbytes for array in arrays)
        if room < 0 or not measured:
            break
        found |= measured
    return found


SELECTION: dict[str, Any] = {
    "epoch": 1,
    "run": "",
    "range": [],
    "layer": -1,
    "expert": -1,
    "head": -1,
    "segment": "",
    "compare": "",
    "playhead": -1,
    "palette": "cividis",
    "pin": [-1, -1, -1],
    "edits": [],
}
"""The store's traits as they are before anybody selects anything."""


def _parents_first(runs: Mapping[str, PageRun]) -> list[PageRun]:
    """The runs, each after the one that it leaves; roots are those whose parent is not here."""

    def below(parent: PageRun) -> list[PageRun]:
        children = [each for each in runs.values() if each.parent == parent.name]
        return [parent, *(each for child in children for each in below(child))]

    roots = [each for each in runs.values() if each.parent not in runs]
    return [each for root in roots for each in below(root)]


def store_traits(run: PageRun) -> dict[str, Any]:
    """What the store of the run has before anybody selects anything."""
    facts = run.facts or run.trace.facts
    status = status_of(Recorded(run.trace), facts) | {"can": []}
    about = wire.about(run.trace.about)
    return SELECTION | {"store_id": run.name, "about": about, "status": status, "code": run.code}


def _detail(key: str, detail: Detail) -> Message:
    layout, buffers = wire.pack(detail.arrays)
    header = {"type": "detail", "key": key, "arrays": layout, "note": detail.note}
    return header | {"provenance": detail.provenance}, buffers


def _frames(trace: Trace, common: Shared) -> Iterable[Message]:
    """All of the trace but what it has in common with its parent."""
    about, routed, moved = wire.about(trace.about), common.routed, common.moved
    calls = [
        wire.call(place, call) for place, call in enumerate(trace.calls) if place >= common.calls
    ]
    length = len(trace)  # a run may go on while its page is written
    for start in range(common.tokens, max(common.tokens + 1, length), FRAME_TOKENS):
        tokens = slice(start, min(length, start + FRAME_TOKENS))
        routes = slice(routed, max(routed, min(tokens.stop, trace.routed)))
        header, buffers = wire.frame(trace, tokens, routes, slice(moved, len(trace.moved)))
        yield header | {"epoch": 1, "about": about, "calls": calls}, buffers
        routed, moved, calls = routes.stop, len(trace.moved), []


def _json(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>'
