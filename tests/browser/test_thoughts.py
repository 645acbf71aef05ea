"""The text of a run in a page: where it stands, and what its marks say after scrolling and time."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from k2lab.engine.events import PromptRead, Routed, TokenChosen, ToolAnswered, ToolAsked
from k2lab.trace.trace import About, Trace
from k2lab.widgets import wire
from k2lab.widgets.base import joined_script
from k2lab.widgets.details import Detail
from k2lab.widgets.page import page
from k2lab.widgets.source import Facts
from k2lab.widgets.tree import PageRun

if TYPE_CHECKING:
    from conftest import Person

ABOUT = About("m", layers=6, dense_layers=1, experts=64, slots=8, scaling=1.0, vocab=99)
STORE = "globalThis[Symbol.for('k2lab')].stores.get('run')"
FEED = f"""([header, buffers]) => {STORE}.receive(
    header, buffers.map((text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer))"""
FIRST = """() => {  // the first token in view, and how far below its edge
    const box = document.querySelector(".k2-scroll").getBoundingClientRect();
    for (const node of document.querySelectorAll(".k2-list [data-i]")) {
        const at = node.getClientRects()[0];
        if (at && at.top >= box.top) return [Number(node.dataset.i), Math.round(at.top - box.top)];
    }
}"""
GAP = """() => {
    const node = document.querySelector(".k2-scroll");
    return node.scrollHeight - node.clientHeight - node.scrollTop;
}"""
COVERED = """() => {
    const box = document.querySelector(".k2-scroll").getBoundingClientRect();
    for (let y = box.top + 40; y < box.bottom - 40; y += 27)
        if (!document.elementFromPoint(box.left + 200, y)?.closest(".k2-block")) return false;
    return true;
}"""


class Story:
    """A run that is written part by part."""

    def __init__(self) -> None:
        self.trace = Trace(ABOUT)
        self.asked = 0

    def route(self, count: int) -> None:
        shape = (count, 5, 8)
        margin = np.full(shape[:2], 0.01, np.float16)
        chosen = np.broadcast_to(np.arange(8, dtype=np.uint16), shape).copy()
        self.trace.append(
            Routed(len(self.trace) - count, chosen, np.full(shape, 32, np.uint8), margin)
        )

    def give(self, kind: str, texts: Sequence[str]) -> None:
        ids, kinds = (1,) * len(texts), (kind,) * len(texts)
        self.trace.append(PromptRead(len(self.trace), ids, tuple(texts), kinds, 0.1))
        self.route(len(texts))

    def say(self, kind: str, texts: Sequence[str]) -> None:
        for text in texts:
            index = len(self.trace)
            top = ((1, text, 0.5), (2, "b", 0.25))
            self.trace.append(TokenChosen(index, 1, text, kind, -0.7, 1.0, top, 0.1 * index))
            self.route(1)

    def call(self, result: str | None) -> None:
        self.say("marker", ["<|tool_call_begin|>"])
        self.say("call", ["{", '"a"', ":", "1", "}"])
        self.say("marker", ["<|tool_call_end|>"])
        self.asked += 1
        key = f"k{self.asked}"
        self.trace.append(ToolAsked(key, key, "tool", '{"a":1}', len(self.trace) - 1))
        if result is not None:
            self.trace.append(ToolAnswered(key, key, result, True, 0.2))
            self.give("result", [f"{word} " for word in result.split()])


def agent(calls: int = 12, lines: int = 30, width: int = 1) -> Trace:
    """A long prompt, thoughts and calls, and an answer in lines."""
    story = Story()
    story.give("system", [f"word{i} " for i in range(300)])
    story.give("user", ["do it"])
    for _ in range(calls):
        story.say("thinking", [" think"] * 60)
        story.call(" ".join(f"line{i}" for i in range(80)))
    story.say("answer", [*[" item"] * width, "\n"] * lines)
    return story.trace


def read(reader: "Person", trace: Trace, folder: Path) -> Any:
    """The page of the trace, opened; attention of its last token is known."""
    last, weights = len(trace) - 1, np.random.default_rng(1).random((6, len(trace)))
    arrays = {
        "weights": (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        "rope": np.full(6, 0.4, np.float32),
        "norm": np.ones(len(trace), np.float32),
    }
    details = [(f"attention:{last}:{layer}", Detail("derived", arrays)) for layer in range(6)]
    facts = Facts("e", "d", "c", latent_bytes=1152, multi_head_bytes=6912)
    file = folder / "run.html"
    file.write_text(page(PageRun(trace=trace, facts=facts), title="t", details=details))
    reader.read(file)
    reader.until("document.querySelector('.k2-scroll')")
    reader.frames()
    return reader.page


def wheel(reader: "Person", lines: int) -> None:
    reader.page.locator(".k2-scroll").hover()
    reader.page.mouse.wheel(0, lines)
    reader.page.wait_for_timeout(150)
    reader.frames()


def test_a_long_run_opens_at_its_end_and_the_text_is_there_wherever_it_scrolls(
    reader: "Person", tmp_path: Path
) -> None:
    window = read(reader, agent(40), tmp_path)
    assert window.evaluate(GAP) == 0 and window.evaluate(COVERED)
    text = window.locator(".k2-scroll")
    for lines in (-900, -5_000, 2_000, -90_000, 400, 90_000):
        before = text.evaluate("node => node.scrollTop")
        wheel(reader, lines)
        moved = f"document.querySelector('.k2-scroll').scrollTop !== {before}"
        reader.until(f"{moved} && ({COVERED})()")
    assert window.evaluate(GAP) == 0 and not reader.problems


@pytest.mark.parametrize("lines", [8, 12, 14])
def test_a_run_whose_heights_were_guessed_wrong_opens_at_its_end(
    reader: "Person", tmp_path: Path, lines: int
) -> None:
    story = Story()
    story.give("user", ["do it"])
    for _ in range(12):
        story.call(" ".join(f"line{i}" for i in range(300)))
    story.say("answer", [*[" it"] * 18, "\n"] * lines)
    assert read(reader, story.trace, tmp_path).evaluate(GAP) == 0


def test_who_reads_keeps_the_place_while_the_page_around_it_changes(
    reader: "Person", tmp_path: Path
) -> None:
    window = read(reader, agent(), tmp_path)
    window.locator(".k2-scroll").press("Home")
    wheel(reader, 1_900)
    place = window.evaluate(FIRST)
    window.get_by_role("tab", name="Attention").click()  # a line for the shading
    reader.until("document.querySelector('.k2-warm, .k2-heat-words:not([hidden])')")
    reader.frames()
    assert window.evaluate(FIRST) == place
    window.set_viewport_size({"width": 1280, "height": 790})
    reader.frames()
    assert window.evaluate(FIRST) == place
    window.set_viewport_size({"width": 1100, "height": 790})  # other lines
    reader.frames()
    assert abs(window.evaluate(FIRST)[0] - place[0]) < 60
    folded = window.locator(".k2-fold[aria-expanded=false]")
    below = [node for node in folded.all() if (node.bounding_box() or {"y": 0})["y"] > 200]
    place = window.evaluate(FIRST)
    below[-1].focus()
    reader.press("Enter")
    reader.frames()
    assert window.evaluate(FIRST)[0] == place[0]
    assert window.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert not reader.problems


def test_what_is_in_view_stays_there_while_what_lies_above_it_is_laid_out(
    reader: "Person", tmp_path: Path
) -> None:
    window = read(reader, agent(1), tmp_path)
    where = "document.querySelector('.k2-answer .k2-token').getBoundingClientRect().top"
    below = "document.querySelector('.k2-scroll').getBoundingClientRect().top + 40"
    first, edge = window.evaluate(f"[{where}, {below}]")
    jump = f"document.querySelector('.k2-scroll').scrollTop += {first - edge}"
    # Over a space in which nothing is laid out yet; measured before the next frame.
    place = window.evaluate(f"() => {{ {jump}; return {where}; }}")
    reader.frames()
    reader.frames()
    assert window.locator(".k2-thinking .k2-token").count() > 0
    assert window.evaluate(where) == pytest.approx(place, abs=1) and not reader.problems


def test_the_system_prompt_unfolds_where_it_is(reader: "Person", tmp_path: Path) -> None:
    story = Story()
    story.give("system", [f"word{i} " for i in range(600)])
    story.say("answer", [" ok"] * 20)
    window = read(reader, story.trace, tmp_path)
    window.locator(".k2-fold").first.focus()
    reader.press("Enter")
    reader.frames()
    assert window.evaluate(GAP) > 500
    assert window.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"


def test_marks_are_true_of_what_was_scrolled_away(reader: "Person", tmp_path: Path) -> None:
    window = read(reader, agent(4), tmp_path)
    window.get_by_role("tab", name="Attention").click()
    reader.until("document.querySelector('.k2-warm')")
    wheel(reader, -9_000)
    window.get_by_role("tab", name="Experts").click()
    reader.frames()
    wheel(reader, 90_000)
    assert window.locator(".k2-warm").count() == 0
    answer = window.get_by_role("button", name="Answer", exact=True)
    answer.click()
    wheel(reader, -9_000)
    window.locator(".k2-scroll").press("Escape")
    wheel(reader, 90_000)
    assert answer.get_attribute("aria-pressed") == "false" and not reader.problems


def test_a_margin_is_shown_when_it_is_known_and_the_map_when_there_is_text(
    reader: "Person", tmp_path: Path
) -> None:
    window = read(reader, Trace(ABOUT), tmp_path)
    status = {"state": "running", "can": [], "controls": True}
    window.evaluate(f"(status) => {STORE}.model.set('status', status)", status)
    window.locator("select[aria-label=Strip]").select_option("margin")
    story = Story()
    story.say("thinking", [" w"] * 30)
    story.call(None)
    trace = story.trace
    for stop in range(1, len(trace) + 2):  # the routing of a token comes with the next one
        tokens = slice(stop - 1, min(stop, len(trace)))
        header, buffers = wire.frame(trace, tokens, slice(max(0, stop - 2), stop - 1))
        calls = [wire.call(0, call) for call in trace.calls] if stop > len(trace) else []
        header |= {"epoch": 1, "about": wire.about(ABOUT), "calls": calls}
        packed = [base64.b64encode(part).decode() for part in buffers]
        window.evaluate(FEED, [header, packed])
        reader.frames()
    tokens = window.locator(".k2-thinking .k2-token")
    strips = tokens.evaluate_all("all => all.map(one => one.style.getPropertyValue('--strip'))")
    assert len(strips) == 30 and all(strips)
    assert window.locator(".k2-minimap").evaluate("map => map.clientWidth") == 18
    state = window.locator(".k2-call-state")
    assert state.text_content() == "running"
    window.evaluate(f"(s) => {STORE}.model.set('status', s)", status | {"state": "stopped"})
    reader.until("document.querySelector('.k2-call-state').textContent === 'unfinished'")
    assert not reader.problems


def test_playing_goes_on_under_the_pointer_and_ends_with_a_new_run(
    reader: "Person", tmp_path: Path
) -> None:
    window = read(reader, agent(2), tmp_path)
    head = f"{STORE}.get('playhead')"
    window.evaluate(f"{STORE}.hover({{ playhead: 100 }})")
    window.get_by_role("button", name="Play").click()
    box = window.locator(".k2-experts canvas").bounding_box()
    assert box is not None
    window.mouse.move(box["x"] + 100, box["y"] + 50)
    window.mouse.move(box["x"] + 100, box["y"] - 60)  # which leaves it
    reader.until(f"{head} > 102")
    running = {"state": "running", "can": [], "controls": True}
    window.evaluate(f"(status) => {STORE}.model.set('status', status)", running)
    reader.frames()
    stopped = window.evaluate(head)
    window.wait_for_timeout(400)
    assert window.evaluate(head) == stopped


def test_a_text_that_somebody_writes_for_a_branch_stays(reader: "Person", tmp_path: Path) -> None:
    window = read(reader, agent(1), tmp_path)
    able = {"state": "done", "can": ["branch"], "controls": False}
    window.evaluate(f"(status) => {STORE}.model.set('status', status)", able)
    reader.frames()
    tokens = window.locator(".k2-answer .k2-token")
    tokens.nth(12).click()
    own = window.get_by_label("Text to go on with")
    own.click()
    window.keyboard.type("my own words")
    box = tokens.nth(2).bounding_box()
    assert box is not None
    for x, y in ((box["x"] + 8, box["y"] + 8), (900, 300)):
        window.mouse.move(x, y)
        reader.frames()
        assert own.input_value() == "my own words"
        assert window.evaluate("document.activeElement.tagName") == "INPUT"
    reader.press("Escape")
    reader.until("document.querySelector('.k2-pop').hidden")
    assert reader.focused().startswith("Tokens.") and not reader.problems


def test_two_views_of_attention_share_the_shading_in_peace(
    reader: "Person", tmp_path: Path
) -> None:
    """One in the hidden tab of the dashboard, one below it: neither takes the other's away."""
    window = read(reader, agent(2), tmp_path)
    window.evaluate(
        """async (source) => {
            const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
            const el = document.body.appendChild(document.createElement("div"));
            const get = (name) => (name === "store_id" ? "run" : undefined), none = () => {};
            const model = { get, set: none, save_changes: none, on: none, off: none };
            (await import(url)).default.render({ model, el });
        }""",
        joined_script("attention"),
    )
    reader.until("document.querySelector('.k2-warm')")
    told = window.evaluate(
        f"""async () => {{
            const store = {STORE}, tell = store.tell.bind(store);
            let count = 0;
            store.tell = () => {{ count++; tell(); }};
            await new Promise((resolve) => setTimeout(resolve, 500));
            return count;
        }}"""
    )
    assert told < 3 and window.locator(".k2-warm").count() and not reader.problems
