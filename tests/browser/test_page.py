"""A run as a file of its own: every widget, without a kernel and without a network."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from k2lab.engine.events import (
    Answered,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.trace.trace import About, Trace
from k2lab.widgets.details import Detail
from k2lab.widgets.page import page
from k2lab.widgets.source import Facts
from k2lab.widgets.tree import PageRun

if TYPE_CHECKING:
    from conftest import Person

BAD = "<img src=x onerror='window.pwned=1'><script>window.pwned=2</script>\"'&"
TABS = ("Experts", "Routing", "Attention", "Compare")
GRIDS = {
    "Experts": "Routed experts by layer",
    "Routing": "Chosen experts of one token",
    "Attention": "Heads by sources",
}
WATCH = """() => {
    globalThis.k2written = [];
    new MutationObserver((list) => {
        for (const { target } of list) {
            const node = target.nodeType === 3 ? target.parentElement : target;
            k2written.push(node.classList[0] ?? node.tagName);
        }
    }).observe(document.body, { childList: true, characterData: true, subtree: true });
}"""


def recorded(text: str, *, tokens: int = 40) -> Trace:
    """A run with every kind of token and a retried tool call, all texts being `text`."""
    about = About(text, layers=6, dense_layers=1, experts=64, slots=8, scaling=1.0, vocab=99)
    random = np.random.default_rng(0)
    top = ((1, text, 0.5), (2, "b", 0.25), (3, "c", 0.1))

    def routed(start: int, count: int) -> Routed:
        chosen = np.argsort(random.random((count, 5, 64)), axis=-1)[..., :8].astype(np.uint16)
        weights = np.full((count, 5, 8), 32, np.uint8)
        return Routed(start, chosen, weights, np.full((count, 5), 0.01, np.float16))

    trace = Trace(about)
    trace.append(PromptRead(0, (1, 2, 3), (text, text, text), ("marker", "system", "user"), 0.1))
    trace.append(routed(0, 3))
    index = 3
    for kind, count in (("thinking", tokens), ("call", 4), ("call", 4), ("answer", 6)):
        for _ in range(count):
            entropy = float(random.random())
            trace.append(TokenChosen(index, 1, text, kind, -0.7, entropy, top, 0.1 * index))
            trace.append(routed(index, 1))
            index += 1
        if kind == "call":
            key, first = f"k{index}", index == 3 + tokens + 4
            trace.append(ToolAsked(key, text, text, text, index - 1))
            trace.append(ToolAnswered(key, text, text, not first, 0.2))
    trace.append(Answered(text, text))
    trace.append(Stopped("answer", text, index - 3, 9.0))
    return trace


def written(
    trace: Trace, folder: Path, text: str = "fine", *, beside: Sequence[PageRun] = ()
) -> Path:
    """The page of the trace, with scores and attention for its last token."""
    last, random = len(trace) - 1, np.random.default_rng(1)
    scores = random.random((5, 64)).astype(np.float32)
    weights = random.random((6, last + 1)).astype(np.float32)
    details = {f"route:{last}:-1": {"scores": scores, "choice": scores + 0.1}}
    for layer in range(6):
        details[f"attention:{last}:{layer}"] = {
            "weights": weights / weights.sum(axis=1, keepdims=True),
            "rope": np.full(6, 0.4, np.float32),
            "norm": np.ones(last + 1, np.float32),
        }
    facts = Facts(text, text, text, latent_bytes=1152, multi_head_bytes=6912)
    html = page(
        PageRun(trace=trace, facts=facts, code=f"run = {text!r}"),
        title=text,
        details=[(key, Detail("derived", arrays, text)) for key, arrays in details.items()],
        beside=beside,
    )
    file = folder / "run.html"
    file.write_text(html, encoding="utf-8")
    return file


def opened(reader: "Person", file: Path) -> None:
    reader.read(file)
    reader.until("document.querySelectorAll('.k2-token').length > 5")
    reader.frames()


def serious(window: Any, *rules: str) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core rules")
    options = {"runOnly": list(rules)} if rules else None
    found = axe.Axe().run(window, context=".k2lab", options=options).response["violations"]
    return [
        f"{each['id']}: {[node['target'] for node in each['nodes']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_all_views_open_from_a_file_without_a_network(reader: "Person", tmp_path: Path) -> None:
    asked: list[str] = []
    reader.page.on("request", lambda request: asked.append(request.url))
    file = written(recorded(" word"), tmp_path)
    opened(reader, file)
    for tab in TABS:
        reader.page.get_by_role("tab", name=tab).click()
        reader.frames()
    assert "nothing to compare" in str(reader.page.locator(".k2-compare").text_content())
    assert {re.sub(":.*", "", url) for url in asked} <= {"file", "data", "blob"}
    assert len(file.read_bytes()) < 500_000 and not reader.problems


def test_any_two_runs_of_a_tree_are_compared_offline(reader: "Person", tmp_path: Path) -> None:
    trunk = recorded(" word")
    one, two = trunk.fork(20), trunk.fork(30)
    for branch, text in ((one, " one"), (two, " two")):
        for index in range(len(branch), len(branch) + 8):
            branch.append(TokenChosen(index, 2, text, "answer", -0.7, 0.5, (), 0.1 * index))
            rows = np.full((1, 5, 8), 3, np.uint16)
            margin = np.full((1, 5), 0.01, np.float16)
            branch.append(Routed(index, rows, np.full((1, 5, 8), 32, np.uint8), margin))
    beside = [
        PageRun(trace=one, name="run.1", parent="run", at=20, given=" one"),
        PageRun(trace=two, name="run.2", parent="run", at=30, code="run.2\n"),
    ]
    opened(reader, written(trunk, tmp_path, beside=beside))
    window = reader.page
    window.evaluate("globalThis[Symbol.for('k2lab')].stores.get('run').select({compare: 'run.2'})")
    window.get_by_role("tab", name="Compare").click()
    readout = "document.querySelector('.k2-compare .k2-readout').textContent"
    names = "[...document.querySelectorAll('.k2-pane-name')].map(e => e.textContent).join(' ')"
    reader.until(f"{names} === 'run run.2'")  # what is selected already stays
    for left, right, common in (
        ("run", "run.1", 20),
        ("run", "run.2", 30),
        ("run.1", "run.2", 20),
        ("run.2", "run.1", 20),
    ):
        window.get_by_label("Left", exact=True).select_option(left)
        window.get_by_label("Right", exact=True).select_option(right)
        reader.until(f"{names} === '{left} {right}'")
        reader.until(f"{readout}.startsWith('{common} tokens shared')")
    assert " one one" in str(window.locator(".k2-pane-text").last.text_content())
    tree = window.locator(".k2-tree li").all_text_contents()
    assert tree == ["run the question", 'run.1 from token 20 with " one"', "run.2 from token 30"]
    reader.picture("page-tree")
    assert not reader.problems


def test_hovering_a_token_shows_in_every_view(reader: "Person", tmp_path: Path) -> None:
    opened(reader, written(recorded(" word"), tmp_path))
    reader.page.get_by_role("tab", name="Routing").click()
    reader.page.locator("[data-i='20']").hover()
    reader.until("/^Token 20 /.test(document.querySelector('.k2-lens .k2-readout').textContent)")
    words = "document.querySelector('.k2-timeline .k2-readout').textContent"
    reader.until(f"/^Token 20,/.test({words})")
    assert reader.page.locator(".k2-head-on").get_attribute("data-i") == "20"
    # A drag in the timeline is a range everywhere.
    box = reader.page.locator(".k2-timeline canvas").bounding_box()
    assert box is not None
    mouse, y = reader.page.mouse, box["y"] + 15
    mouse.move(box["x"] + box["width"] * 0.3, y)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.4, y, steps=3)
    mouse.move(box["x"] + box["width"] * 0.5, y, steps=3)
    mouse.up()
    reader.until("document.querySelectorAll('.k2-brushed').length > 5")
    assert not reader.problems


def test_pointing_rewrites_nothing_but_words(reader: "Person", tmp_path: Path) -> None:
    """What is written anew is laid out anew, with all the text around it, 60 times a second."""
    opened(reader, written(recorded(" word"), tmp_path))
    box = reader.page.locator(".k2-experts canvas").bounding_box()
    assert box is not None
    for turn in range(4):
        reader.page.mouse.move(box["x"] + 60 + 20 * turn, box["y"] + 60)
        reader.frames()
        if turn == 0:  # the first makes room for the words
            reader.page.evaluate(WATCH)
    reader.until("document.querySelectorAll('.k2-uses').length")
    assert set(reader.page.evaluate("k2written")) == {"k2-readout", "k2-target"}
    assert not reader.problems


def test_a_part_is_chosen_by_its_letter_in_every_view(reader: "Person", tmp_path: Path) -> None:
    opened(reader, written(recorded(" word"), tmp_path))
    reader.page.get_by_label("Show").select_option("range")
    reader.page.get_by_role("button", name="Answer", exact=True).click()
    legend = "document.querySelector('.k2-experts .k2-legend').textContent"
    reader.until(f"/6 tokens, all of Answer/.test({legend})")
    assert reader.page.locator(".k2-mine").count() == 1
    reader.page.get_by_role("tab", name="Routing").click()
    reader.until("document.querySelector('.k2-lens .k2-tray select').value === 'answer'")
    reader.page.locator(".k2-scroll").press("Escape")
    reader.until("!document.querySelector('.k2-mine')")
    assert not reader.problems


def test_every_view_can_be_used_with_the_keyboard_alone(reader: "Person", tmp_path: Path) -> None:
    opened(reader, written(recorded(" word"), tmp_path))
    reader.page.mouse.move(1279, 799)
    seen: list[str] = []

    def reach(label: str) -> None:
        for _ in range(80):
            reader.press("Tab")
            seen.append(reader.focused())
            if seen[-1].startswith(label):
                return
        raise AssertionError(f"Tab never came to {label!r}, but to {seen}")

    reach("Tokens.")
    reader.press("ArrowLeft", "ArrowLeft", "Enter")
    reader.until("document.querySelector('.k2-pinned')")
    reader.press("Escape")
    reader.until("!document.querySelector('.k2-pinned')")
    reach("Experts")
    for tab, label in GRIDS.items():
        if tab != "Experts":
            for _ in range(9):  # back to the tabs, of which one is in the tab order
                reader.press("Shift+Tab")
                if reader.page.locator("[role=tab]:focus").count():
                    break
            reader.press("ArrowRight")
            assert reader.focused() == tab
        reach(label)
        view = {"Experts": "experts", "Routing": "lens", "Attention": "attention"}[tab]
        said = f"document.querySelector('.k2-{view} [role=gridcell]').textContent"
        for _ in range(5):  # a key that comes before the view has drawn moves nothing
            reader.press("ArrowRight", "ArrowDown", "ArrowRight")
            if reader.page.evaluate(f"{said}.length > 5"):
                break
            reader.page.wait_for_timeout(500)
        reader.until(f"{said}.length > 5")
        reader.press("Enter")
        if tab in ("Routing", "Attention"):  # an expert's and a head's edit, in one tray
            reach("Zero head" if tab == "Attention" else "Zero")
            reader.press("Enter")
            edits = f"document.querySelectorAll('.k2-{view} .k2-edits li').length"
            reader.until(f"{edits} === {1 if tab == 'Routing' else 2}")
    reader.press("Escape")
    reach("Timeline.")
    reader.press("c")
    reader.until("document.querySelectorAll('.k2-brushed').length >= 4")
    assert not reader.problems


def test_who_is_in_a_view_stays_in_it_while_more_is_computed(
    reader: "Person", tmp_path: Path
) -> None:
    opened(reader, written(recorded(" word"), tmp_path))
    reader.page.get_by_role("tab", name="Attention").click()
    readout = "document.querySelector('.k2-attention .k2-readout').textContent"
    reader.until(f"/layer 5/.test({readout})")
    reader.page.locator(".k2-attention .k2-grid").focus()
    reader.press("PageDown")
    computing = "document.querySelector('.k2-attention .k2-empty').textContent"
    reader.until(f"/layer 4 .* being computed/.test({computing})")
    assert reader.focused().startswith("Heads by sources")
    reader.until(f"/layer 4/.test({readout})")
    assert reader.focused().startswith("Heads by sources") and not reader.problems


def test_hostile_text_in_every_field_stays_text(reader: "Person", tmp_path: Path) -> None:
    file = written(recorded(BAD, tokens=20), tmp_path, BAD)
    assert "<script>window" not in file.read_text(encoding="utf-8")
    opened(reader, file)
    window = reader.page
    window.locator(".k2-scroll").press("Home")
    window.locator(".k2-fold").first.click()
    window.locator(".k2-thinking .k2-token").last.click()
    for tab in TABS:
        window.get_by_role("tab", name=tab).click()
        for table in window.get_by_role("button", name="Table").all():
            if table.is_visible():
                table.click()
        reader.frames()
    window.get_by_role("button", name="Markers").click()
    window.locator(".k2-more summary").click()
    window.get_by_role("button", name="Copy as code").click()
    reader.frames()
    assert window.evaluate("window.pwned") is None
    assert window.locator(".k2lab img, .k2lab script").count() == 0
    assert window.title() == BAD and not reader.problems


def test_each_picture_can_be_saved_and_an_svg_is_only_a_picture(
    reader: "Person", tmp_path: Path
) -> None:
    opened(reader, written(recorded(BAD, tokens=20), tmp_path, BAD))
    window = reader.page
    for view, tab in {
        "thoughts": "Experts",
        "timeline": "Experts",
        "experts": "Experts",
        "lens": "Routing",
        "attention": "Attention",
    }.items():
        window.get_by_role("tab", name=tab).click()
        reader.until(f"document.querySelector('.k2-{view} canvas').width > 10")
        for kind in ("PNG", "SVG"):
            with window.expect_download() as waiting:
                window.locator(f".k2-{view}").get_by_role("button", name=kind).click()
            data = Path(waiting.value.path()).read_bytes()
            if kind == "PNG":
                assert data.startswith(b"\x89PNG") and len(data) > 2000
            else:
                tags = set(re.findall(r"<(\w+)", data.decode("utf-8")))
                assert tags <= {"svg", "rect", "text", "path", "image"}
    assert window.evaluate("window.pwned") is None and not reader.problems


def test_axe_finds_nothing_serious_in_any_view_light_or_dark(
    reader: "Person", tmp_path: Path
) -> None:
    opened(reader, written(recorded(" word"), tmp_path))
    for scheme in ("light", "dark"):
        reader.page.emulate_media(color_scheme=scheme)
        for tab in TABS:
            reader.page.get_by_role("tab", name=tab).click()
            reader.frames()
            rules = ("color-contrast",) if scheme == "dark" else ()  # the rest is the same
            assert not serious(reader.page, *rules), f"{tab}, {scheme}"


@pytest.mark.parametrize("size", [(1280, 800), (600, 1200)])
def test_the_dashboard_fits_a_projector_and_a_narrow_column(
    reader: "Person", tmp_path: Path, size: tuple[int, int]
) -> None:
    reader.page.set_viewport_size({"width": size[0], "height": size[1]})
    opened(reader, written(recorded(" word"), tmp_path))
    for scheme in ("light", "dark"):
        reader.page.emulate_media(color_scheme=scheme)
        for tab in TABS:
            reader.page.get_by_role("tab", name=tab).click()
            reader.frames()
            reader.frames()
            wide = "[...document.querySelectorAll('.k2lab')].every(e => e.scrollWidth <= e.clientWidth + 1)"
            assert reader.page.evaluate(wide), tab
            if size[0] == 1280:
                assert reader.page.evaluate("document.documentElement.scrollHeight") <= size[1]
            reader.picture(f"page-{size[0]}-{tab.lower()}-{scheme}")
    assert not reader.problems
