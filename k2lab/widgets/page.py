"""A run as one HTML file: the dashboard, its data inside, no kernel and no network.

The front end is the same as in a notebook (widgets/page.js gives it a model that nobody is behind).
Model text is data here: JSON in which `<` is written as an escape, so it can end no element.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from k2lab.trace.trace import Trace
from k2lab.widgets import wire
from k2lab.widgets.base import joined_script, joined_style
from k2lab.widgets.details import CapturedDetails, Detail
from k2lab.widgets.source import Facts, Recorded, status_of

FRAME_TOKENS = 4096
DETAIL_BYTES = 2_000_000  # of captured values in a page; base64 makes them a third more
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 8px 12px; max-width: 1500px; background: Canvas; color: CanvasText;
  font-family: system-ui, sans-serif; --k2-side: clamp(430px, 100vh - 276px, 760px); }
"""

Message = tuple[dict[str, Any], list[bytes]]


def page(
    trace: Trace,
    *,
    title: str = "",
    facts: Facts | None = None,
    code: str = "",
    details: Iterable[tuple[str, Detail]] = (),
) -> str:
    """The HTML of a page that shows the trace; `details` by key are those the page can show."""
    messages = list(_frames(trace))
    for key, detail in details:
        layout, buffers = wire.pack(detail.arrays)
        header = {"type": "detail", "key": key, "arrays": layout, "note": detail.note}
        messages.append((header | {"provenance": detail.provenance}, buffers))
    blocks: list[str] = []
    listed = []
    for header, buffers in messages:
        listed.append((header, [f"k2-bytes-{len(blocks) + k}" for k in range(len(buffers))]))
        blocks += [base64.b64encode(buffer).decode("ascii") for buffer in buffers]
    status = status_of(Recorded(trace), facts or trace.facts, asks=False) | {"can": []}
    store = SELECTION | {"about": wire.about(trace.about), "status": status, "code": code}
    name = html.escape(title or f"{trace.about.model}: {len(trace)} tokens")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{name}</title>\n<style>{STYLE}{joined_style('page')}</style>\n</head>\n<body>",
            '<main id="k2-run"></main>',
            _json("k2-traits", {"store": store, "view": {"tab": "experts"}}),
            _json("k2-messages", listed),
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
    held = {**captured(trace), **(details or {})}
    part = path.with_name(path.name + ".part")
    part.write_text(page(trace, code=code, details=held.items()), encoding="utf-8")
    return part.replace(path)


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
    "store_id": "page",
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


def _frames(trace: Trace) -> Iterable[Message]:
    about = wire.about(trace.about)
    for start in range(0, max(1, len(trace)), FRAME_TOKENS):
        stop = min(len(trace), start + FRAME_TOKENS)
        routed = slice(min(start, trace.routed), min(stop, trace.routed))
        moved = slice(0, len(trace.moved) if start == 0 else 0)
        header, buffers = wire.frame(trace, slice(start, stop), routed, moved)
        calls = [wire.call(place, call) for place, call in enumerate(trace.calls)] * (start == 0)
        yield header | {"epoch": 1, "about": about, "calls": calls}, buffers


def _json(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>'
