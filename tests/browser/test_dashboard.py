"""The dashboard of a live run in JupyterLab: branches, edits, files, and what they look like."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Notebook, Person
    from playwright.sync_api import FloatRect, Locator

CELL = """import k2lab
lab = k2lab.load()
run = lab.run("What do 3 x lamp and 2 x rope cost?").wait()
lab.show(run)"""

ENDED = "/done|error/.test(document.querySelector('.k2-state').textContent)"
LENS = "document.querySelector('.k2-lens .k2-readout').textContent"
READ = "document.querySelector('.k2-attention .k2-readout').textContent"
SAID = "document.querySelector('.k2-more .k2-said').textContent"
OUTCOME = "document.querySelector('.k2-report').textContent"

PLACES = """() => [...document.querySelectorAll(
    '.k2lab, .k2-tools, .k2-scroll, .k2-block, .k2-grid, .k2-foot, .k2-tray, .k2-button, .k2-select'
  )].filter(node => node.offsetParent).map(node => {
    const {x, y} = node.getBoundingClientRect();
    return [...[...node.classList].slice(0, 3), node.title, Math.round(x), Math.round(y)].join(' ');
  })"""


@pytest.mark.timeout(420)
def test_a_live_dashboard_branches_edits_and_writes_files(
    person: "Person", notebook: "Notebook", folder: Path
) -> None:
    person.open(notebook("dashboard.ipynb", CELL))
    person.run_all()
    person.until(f"document.querySelectorAll('.k2-answer .k2-token').length && {ENDED}", 180)
    window = person.page

    # Scores and attention are computed when they are asked for.
    window.get_by_role("tab", name="Routing", exact=True).click()
    person.until(f"/Scores: derived/.test({LENS})")
    window.get_by_role("tab", name="Attention", exact=True).click()
    person.until("document.querySelector('.k2-warm')")

    # Another token in place of one that the model chose: a branch, side by side.
    token = window.locator(".k2-thinking .k2-token").first
    token.scroll_into_view_if_needed()
    person.frames()  # a jump into text that was never laid out; now it is
    token.hover()
    there = token.bounding_box()
    person.until(f"{READ}.startsWith('Token {token.get_attribute('data-i')} ')")
    assert token.bounding_box() == there  # nothing moves under the pointer
    token.click()
    window.locator(".k2-pick").nth(1).click()
    window.get_by_role("tab", name="Compare", exact=True).click()
    person.until("document.querySelectorAll('.k2-pane-name').length === 2", 90)
    person.until("document.querySelectorAll('.k2-pane .k2-parts').length === 2")
    person.picture("dashboard-compare")

    # An edit from the keyboard, and what it does beside random experts.
    window.get_by_role("tab", name="Routing", exact=True).click()
    window.get_by_role("grid", name="Chosen experts of one token").focus()
    person.press("ArrowRight", "Enter")
    window.get_by_role("button", name="Zero", exact=True).focus()
    person.press("Enter")
    run = window.get_by_role("button", name="Run control + treatment")
    person.until("!document.querySelector('.k2-strong').disabled", 90)
    run.click()
    person.until(f"/treatment[^]*95 %/.test({OUTCOME})", 180)
    assert window.locator(".k2-lens .k2-report tbody tr").count() == 3

    # Files beside the notebook.
    window.locator(".k2-more summary").click()
    for name, ending in (("Save trace", ".k2trace"), ("Export HTML", ".html")):
        for _ in range(4):  # an engine that is still busy says so, and is asked again
            window.get_by_role("button", name=name).click()
            person.until(f"{SAID}.length > 0")
            if window.evaluate(f"{SAID}.includes('{ending}')"):
                break
            window.wait_for_timeout(2000)
        assert ending in window.evaluate(SAID)
    assert list(folder.glob("*.k2trace")) and list(folder.glob("run*.html"))
    person.press("Escape")

    for scheme in ("light", "dark"):
        person.theme(scheme)
        person.picture(f"dashboard-{scheme}")
    assert not person.problems


def box(part: "Locator") -> "FloatRect":
    """Where it is, once it is: a panel shows a moment after its tab was chosen."""
    while (found := part.bounding_box()) is None:
        part.wait_for()
    return found


@pytest.mark.timeout(420)
def test_nothing_moves_under_the_pointer(person: "Person", notebook: "Notebook") -> None:
    person.open(notebook("still.ipynb", CELL))
    person.run_all()
    person.until(f"document.querySelectorAll('.k2-answer .k2-token').length && {ENDED}", 180)
    window = person.page
    for name in ("Experts", "Routing", "Attention"):
        window.get_by_role("tab", name=name, exact=True).click()
        area = ".k2-thoughts .k2-scroll", ".k2-side .k2-panel:visible canvas", ".k2-low canvas"
        parts = [box(window.locator(each).first) for each in area]
        seen = []
        for _ in range(2):  # at first the longest words make room for themselves
            seen.clear()
            for part in parts:
                for across, down in ((0.3, 0.3), (0.7, 0.6)):
                    x, y = part["x"] + across * part["width"], part["y"] + down * part["height"]
                    window.mouse.move(x, y)
                    for pause in (50, 400):  # while it is computed, and after
                        window.wait_for_timeout(pause)
                        seen.append(window.evaluate(PLACES))
        moved = {place for each in seen for place in {*seen[0]} ^ {*each}}
        assert not moved, name
    words = window.locator(".k2-thoughts .k2-heat-words")  # what the shading means
    table = window.locator(".k2-thoughts").get_by_role("button", name="Table", exact=True)
    assert words.is_visible()
    table.click()
    words.wait_for(state="hidden")  # a table has no shading
    table.click()
    words.wait_for()
    assert not person.problems
