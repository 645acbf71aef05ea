"""How fast the widgets open and move: a made-up K2-size run in Chromium, timed in the page.

Opening is from the navigation to the first painted frame in which every view has all tokens; the
data come as the same binary frames as from a kernel, packed when they are asked for, over a local
socket instead of JupyterLab's. Moving is real pointer input (scrolling the text, brushing the
timeline, hovering the map) while requestAnimationFrame counts the painted frames. Not here: the
kernel's share while a model runs (`watching.py`).
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any

import numpy as np

from k2lab.evals.jupyter import chromium
from k2lab.trace.synthetic import synthetic
from k2lab.trace.trace import Trace
from k2lab.widgets import wire
from k2lab.widgets.base import joined_script, joined_style
from k2lab.widgets.page import store_traits
from k2lab.widgets.tree import PageRun

FRAME_TOKENS = 2048
PATIENCE = 120_000  # ms
SECONDS = 3.0  # of each movement

START = """
const page = await (await fetch("page")).json(), count = page.frames;
const { model } = mount(document.getElementById("k2-run"), page);
for (let k = 0; k < count; k++) {
  const data = await (await fetch(`frame/${k}`)).arrayBuffer(), view = new DataView(data);
  const size = view.getUint32(0, true), head = new Uint8Array(data, 4, size);
  const { header, lengths } = JSON.parse(new TextDecoder().decode(head));
  let at = 4 + size;
  const buffers = lengths.map((n) => { at += n; return new DataView(data, at - n, n); });
  model.emit("msg:custom", header, buffers);
}
const whole = () => /\\d/.test(document.querySelector(".k2-experts .k2-legend")?.textContent ?? "");
const painted = () => requestAnimationFrame(() => requestAnimationFrame((now) => {
  if (whole()) globalThis.k2opened = now; else painted();
}));
painted();
globalThis.k2watch = () => {
  const times = [];
  let on = true;
  const tick = (now) => { times.push(now); if (on) requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
  globalThis.k2times = () => { on = false; return times; };
};
"""


@dataclass(frozen=True, slots=True)
class Movement:
    """Painted frames per second while something moved, and the 95th percentile between two."""

    frames_per_second: float
    slow_ms: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """What was measured; a screen shows 60 frames per second at most."""

    tokens: int
    layers: int
    experts: int
    slots: int
    megabytes: float  # sent to the page
    open_seconds: float  # median over the repeats
    idle: Movement  # nothing moves: what this machine could reach
    pan: Movement
    brush: Movement
    hover: Movement
    repeats: int


def drawing(*, tokens: int = 32_768, repeats: int = 3, trace: Trace | None = None) -> Drawing:
    """Figures of the dashboard for a synthetic trace of K2's size, or for `trace`."""
    shown = trace or synthetic(tokens)
    opened: list[float] = []
    with _served(shown) as (address, sent), chromium() as browser:
        for turn in range(repeats):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(PATIENCE)
            sent.clear()
            page.goto(address)
            page.wait_for_function("() => globalThis.k2opened")
            opened.append(page.evaluate("globalThis.k2opened") / 1000)
            if turn < repeats - 1:
                page.close()
        idle = _moving(page, lambda: page.wait_for_timeout(50))
        pan, brush, hover = (
            _moving(page, act) for act in (_scrolling(page), _brushing(page), _hovering(page))
        )
    about = shown.about
    return Drawing(
        tokens=len(shown),
        layers=about.moe_layers,
        experts=about.experts,
        slots=about.slots,
        megabytes=round(sum(sent) / 1e6, 1),
        open_seconds=round(median(opened), 2),
        idle=idle,
        pan=pan,
        brush=brush,
        hover=hover,
        repeats=repeats,
    )


def _moving(page: Any, act: Callable[[], None]) -> Movement:
    """Frames painted while `act` is repeated."""
    act()  # the first use of a view prepares it
    page.evaluate("k2watch()")
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        act()
    gaps = np.diff(np.array(page.evaluate("k2times()")))
    return Movement(round(1000 / float(gaps.mean()), 1), round(float(np.percentile(gaps, 95)), 1))


def _scrolling(page: Any) -> Callable[[], None]:
    """The text under the wheel, up and down again."""
    box = _box(page, ".k2-scroll")
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    turns = _swing(40)
    return lambda: page.mouse.wheel(0, -240 if next(turns) < 20 else 240)


def _brushing(page: Any) -> Callable[[], None]:
    """A range in the timeline, drawn wider and narrower, shown as the map's selection."""
    page.locator(".k2-experts select[aria-label=Show]").select_option("range")
    box = _box(page, ".k2-timeline canvas")
    y, turns = box["y"] + 12, _swing(60)
    page.mouse.move(box["x"] + box["width"] * 0.15, y)
    page.mouse.down()
    return lambda: page.mouse.move(box["x"] + box["width"] * (0.2 + next(turns) / 80), y)


def _hovering(page: Any) -> Callable[[], None]:
    """The pointer over the map, from cell to cell."""
    page.mouse.up()
    page.locator(".k2-experts select[aria-label=Show]").select_option("all")
    box = _box(page, ".k2-experts canvas")
    turns = _swing(200)

    def act() -> None:
        turn = next(turns)
        page.mouse.move(box["x"] + 40 + turn * 1.5, box["y"] + 40 + (turn * 7) % 200)

    return act


def _swing(count: int) -> Iterator[int]:
    """0 … count − 1 and back, for ever."""
    while True:
        yield from range(count)
        yield from reversed(range(count))


def _box(page: Any, selector: str) -> dict[str, float]:
    page.locator(selector).first.scroll_into_view_if_needed()
    box: dict[str, float] = page.locator(selector).first.bounding_box()
    return box


@contextmanager
def _served(trace: Trace) -> Iterator[tuple[str, list[int]]]:
    """The address of a page with the trace, and the sizes of what it was sent."""
    sent: list[int] = []
    starts = range(0, len(trace), FRAME_TOKENS)
    traits = store_traits(PageRun(trace=trace))
    runs = [{"traits": traits, "begins": None, "messages": list[Any]()}]
    page = {"shown": "run", "view": {"tab": "experts"}, "runs": runs, "frames": len(starts)}
    html = (
        "<!doctype html><meta charset='utf-8'><link rel='icon' href='data:,'>"
        f"<style>{joined_style('page')}</style>"
        f"<main id='k2-run'></main><script type='module'>{joined_script('page')}{START}</script>"
    )

    def reply(path: str) -> tuple[str, bytes]:
        if path == "/":
            return "text/html; charset=utf-8", html.encode()
        if path == "/page":
            return "application/json", json.dumps(page).encode()
        start = starts[int(path.rpartition("/")[2])]
        return "application/octet-stream", _packed(trace, start, calls=start == 0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = reply(self.path)
            sent.append(len(body))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:  # noqa: A002
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", sent
    finally:
        server.shutdown()
        server.server_close()


def _packed(trace: Trace, start: int, *, calls: bool) -> bytes:
    """One frame as bytes: the header's length, the header, the buffers."""
    stop = min(len(trace), start + FRAME_TOKENS)
    header, buffers = wire.frame(trace, slice(start, stop), slice(start, stop))
    header |= {"epoch": 1, "about": wire.about(trace.about)}
    header["calls"] = [wire.call(place, each) for place, each in enumerate(trace.calls)] * calls
    return _joined(header, buffers)


def _joined(header: dict[str, Any], buffers: Sequence[bytes]) -> bytes:
    head = json.dumps({"header": header, "lengths": [len(part) for part in buffers]}).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *buffers])
