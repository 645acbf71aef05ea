"""The lab as a person meets it: a real JupyterLab, a real browser, the shipped model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Notebook, Person

SLOW = """import time
import k2lab

lab = k2lab.load()

def slowly(site, value):
    if site.endswith(".input"):
        time.sleep(0.05)  # 0.3 s a token: the run outlasts a reload
    return value

run = lab.run("What do 3 x lamp and 2 x rope cost?", tap=slowly)
run"""

HOSTILE = """from k2lab.engine.events import Answered, PromptRead, Stopped, TokenChosen
from k2lab.trace.trace import About, Trace
from k2lab.widgets.base import Column
from k2lab.widgets.compare import CompareBranch
from k2lab.widgets.dashboard import Dashboard
from k2lab.widgets.store import Facts, Store

bad = "<img src=x onerror='window.pwned=1'><script>window.pwned=2</script>"
about = About(bad, layers=2, dense_layers=1, experts=8, slots=2, scaling=1.0, vocab=9)
top = ((1, bad, 0.5), (2, "b", 0.5))
trace = Trace.collect(
    [
        PromptRead(0, (1,), (bad,), ("user",), 0.1),
        TokenChosen(1, 2, bad, "thinking", -0.1, 0.2, top, 0.1),
        TokenChosen(2, 2, bad, "answer", -0.1, 0.2, top, 0.2),
        Answered(bad, bad),
        Stopped("answer", bad, 2, 0.3),
    ],
    about,
)
store, other = Store(trace, facts=Facts(bad, bad, bad)), Store(trace)
compare = CompareBranch(store, other)
runs = [{**entry, "name": bad, "given": bad} for entry in store.runs]
store.runs = [runs[0], {**runs[1], "edits": [{"do": bad, "layer": bad, "experts": [bad]}]}]
store.edits = [{"do": bad, "layer": 1, "experts": [bad], "segment": bad}]
Column([Dashboard(store), compare])"""


def until(person: "Person", condition: str, seconds: float = 60) -> None:
    """Wait for a JavaScript expression to be true."""
    person.page.wait_for_function(f"() => {condition}", timeout=seconds * 1000)


def stop_at_once(person: "Person") -> None:
    """Press Stop, which has to be heard within a second."""
    began = time.monotonic()
    person.page.get_by_role("button", name="Stop", exact=True).first.click()
    until(person, "/stopped/i.test(document.querySelector('.k2-state').textContent)", 5)
    assert time.monotonic() - began < 1.0


ENDED = "/done|stopped|error/i.test(document.querySelector('.k2-state')?.textContent ?? '')"
SAID = "document.querySelectorAll('.k2-thinking .k2-token').length"


@pytest.mark.timeout(300)
def test_hello_shows_a_run_and_its_linked_widgets(person: "Person") -> None:
    person.open("01_hello.ipynb")
    person.run_all()
    until(person, f"document.querySelector('.k2-experts') && {ENDED}", 120)
    until(person, "document.querySelectorAll('.k2-answer .k2-token').length > 3")
    person.page.locator(".k2-thoughts").first.scroll_into_view_if_needed()
    until(person, "document.querySelectorAll('.jp-OutputArea-output.jp-mod-error').length === 0")
    for scheme in ("light", "dark"):
        person.theme(scheme)
        person.picture(f"hello-{scheme}")
    assert not person.problems


@pytest.mark.timeout(300)
def test_a_run_is_seen_before_it_ends_and_survives_a_reload_and_stops(
    person: "Person", notebook: "Notebook", folder: Path
) -> None:
    person.open(notebook("slow.ipynb", SLOW))
    person.run_all()
    until(person, f"{SAID} > 2", 120)
    assert "running" in person.state().lower()

    # A hovered expert lights up its tokens in the other widget.
    grid = person.page.locator(".k2-grid canvas").first
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    assert box is not None
    for place in range(2, 18):  # somewhere in this row is an expert that was used
        x, y = box["x"] + box["width"] * place / 20, box["y"] + box["height"] * 0.3
        person.page.mouse.move(x, y)
        person.frames()
        if person.page.locator(".k2-uses").count():
            break
    assert person.page.locator(".k2-uses").count() > 0

    # As a table, too: it grows, and its buttons are not made anew between press and release.
    table = person.page.get_by_role("button", name="Table", exact=True).first
    table.click()
    later = person.page.get_by_role("button", name="Later", exact=True).element_handle()
    rows = "document.querySelectorAll('.k2-thoughts tbody tr').length"
    before = person.page.evaluate(rows)
    until(person, f"{rows} > {before + 1}")
    assert later is not None
    assert later.evaluate("node => node.isConnected")
    table.click()

    # The page is loaded anew while the run goes on in the kernel: nothing is lost.
    person.save()
    assert "widget-view" in (folder / "slow.ipynb").read_text()
    person.page.reload()
    until(person, "document.querySelectorAll('.k2-token').length > 5", 90)
    assert "running" in person.state().lower()

    stop_at_once(person)
    assert not person.problems


@pytest.mark.timeout(300)
def test_a_person_can_ask_in_the_page_with_the_keyboard(
    person: "Person", notebook: "Notebook"
) -> None:
    cell = "import k2lab\nlab = k2lab.load()\nrun = lab.run('Who wrote Hamlet?')\nrun"
    person.open(notebook("ask.ipynb", cell))
    person.run_all()
    until(person, ENDED, 120)
    box = person.page.get_by_label("Question to the model").first
    box.fill("How much is 959 plus 86?")
    person.page.keyboard.press("Enter")
    until(person, "/959/.test(document.querySelector('.k2-user')?.textContent ?? '')")
    until(person, ENDED)
    assert not person.problems


STILL = "document.querySelector('[class^=k2-still] img')"


@pytest.mark.timeout(300)
def test_a_notebook_that_is_opened_without_its_kernel_shows_the_picture(
    person: "Person", notebook: "Notebook", folder: Path
) -> None:
    cell = "import k2lab\nlab = k2lab.load()\nlab.show(lab.run('What is 3 * 14?'))"
    person.open(notebook("left.ipynb", cell))
    person.run_all()
    until(person, ENDED, 120)
    until(person, f"{STILL} !== null")  # drawn once the run has ended
    assert not person.page.locator("[class^=k2-still]").first.is_visible()
    person.save()
    person.command("kernelmenu:shutdown")
    until(person, "/No Kernel/.test(document.body.textContent)")
    assert person.page.locator(".k2-dashboard").first.is_visible()
    person.page.reload()
    until(person, f"{STILL}?.getBoundingClientRect().height > 50", 90)


@pytest.mark.timeout(300)
def test_stop_is_heard_while_a_cell_waits_for_the_run(
    person: "Person", notebook: "Notebook"
) -> None:
    first = (
        "import k2lab\nlab = k2lab.load()\nrun = lab.run('Add up the queue.')\nrun.pace(10)\nrun"
    )
    person.open(notebook("waits.ipynb", first, "run.wait()"))
    person.run_all()
    until(person, "document.querySelectorAll('.k2-token').length > 20", 120)
    stop_at_once(person)
    assert not person.problems


@pytest.mark.timeout(300)
def test_a_question_waits_while_another_run_has_the_engine(
    person: "Person", notebook: "Notebook"
) -> None:
    cell = (
        "import threading, k2lab\nlab = k2lab.load()\nrun = lab.run('What is 3 * 14?').wait()\n"
        "other = lab.run('Add up the queue.')\nother.pace(10)\n"
        "threading.Timer(12, other.stop).start()\nrun"
    )
    person.open(notebook("busy.ipynb", cell))
    person.run_all()
    until(person, "document.querySelectorAll('.k2-token').length > 5", 120)
    box = person.page.get_by_label("Question to the model").first
    box.fill("How much is 959 plus 86?")
    person.page.keyboard.press("Enter")
    until(person, "/waits/.test(document.querySelector('.k2-ask input').placeholder)")
    assert "What is 3 * 14?" in person.page.locator(".k2-user").first.text_content()
    until(person, "/959/.test(document.querySelector('.k2-user')?.textContent ?? '')")
    until(person, ENDED)
    assert not person.problems


@pytest.mark.timeout(300)
def test_hostile_text_stays_text_and_axe_finds_nothing_serious(
    person: "Person", notebook: "Notebook"
) -> None:
    person.open(notebook("hostile.ipynb", HOSTILE))
    person.run_all()
    until(person, "document.querySelectorAll('.k2-token').length > 1", 120)
    person.page.locator(".k2-thinking .k2-token").first.hover()
    for tab in ("Routing", "Attention", "Compare"):
        person.page.get_by_role("tab", name=tab, exact=True).click()
        person.frames()
    until(person, "document.querySelectorAll('.k2-tree').length > 1")
    for name in ("Table", "Markers"):
        for button in person.page.get_by_role("button", name=name, exact=True).all():
            if button.is_visible():
                button.click()
    person.frames()
    assert person.page.evaluate("window.pwned") is None
    assert person.page.locator(".k2lab img, .k2lab script").count() == 0

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core rules")
    found = axe.Axe().run(person.page, context=".k2lab").response["violations"]
    serious = [each["id"] for each in found if each["impact"] in ("serious", "critical")]
    assert not serious, found


@pytest.mark.timeout(300)
def test_the_lab_fits_a_narrow_column(person: "Person", notebook: "Notebook") -> None:
    person.page.set_viewport_size({"width": 900, "height": 1100})
    cell = "import k2lab\nrun = k2lab.load().run('What is 959 plus 86?').wait()\nrun"
    person.open(notebook("narrow.ipynb", cell))
    person.run_all()
    until(person, ENDED, 120)
    width = person.page.evaluate("document.querySelector('.k2-thoughts').clientWidth")
    assert width <= 700
    overflow = "[...document.querySelectorAll('.k2lab')].every(e => e.scrollWidth <= e.clientWidth)"
    assert person.page.evaluate(overflow)
    person.picture("narrow")
