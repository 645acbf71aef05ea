"""Acting, as a person sees it: a call that waits for them, and memory that outlives a kernel."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Notebook, Person

WAITING = """import k2lab
from k2lab.agent.tools import tool
from k2lab.lessons.script import call, scripted

lab, done = k2lab.load(), []

@tool
def pay(to: str, coins: int) -> str:
    "Pay somebody."
    done.append(to)
    return "paid to the last coin"

turns = [call("pay", to="<b>Ada</b>", coins=40), call("pay", to="Eve", coins=41), "Done."]
run = lab.run("Pay.", tools=[pay], policy=[], sampler=scripted(lab.tokenizer, *turns))
run.dashboard()"""

PAIR = """import k2lab
from k2lab.agent.workflow import Agent, together
from k2lab.lessons.script import call, scripted
from k2lab.world.tools import World

lab, world = k2lab.load(), World(0)

def agent(name, *turns):
    return Agent(name, lab, world.tools(), {"sampler": scripted(lab.tokenizer, *turns)})

buyer = agent("buyer", call("stock", item="lamp"), "Order one lamp.")
seller = agent("seller", call("order", item="lamp", count=1), "It is ordered.")
run = lab.watch(together([buyer, seller], "Get a lamp.", turns=2, done=lambda text: "ordered" in text))
run.show()"""

MEMORY = """import k2lab
from k2lab.agent.memory import Memory
from k2lab.lessons.script import call, scripted

lab, memory = k2lab.load(), Memory("memory.db")
known = len(memory.library)
asked = call("recall", query="which key") if known else call("remember", source="shed", text="Take the red key.")
script = scripted(lab.tokenizer, asked, "Done.")
run = lab.run("Go.", tools=[], memory=memory, sampler=script).wait()
memory.library.close()
print("documents:", known, "result:", run.trace.calls[0].content)"""

OUTPUT = "document.querySelector('.jp-OutputArea-output pre')?.textContent ?? ''"


@pytest.mark.timeout(400)
def test_a_call_waits_for_a_click_and_each_click_is_for_one_call(
    person: "Person", notebook: "Notebook"
) -> None:
    person.open(notebook("waiting.ipynb", WAITING))
    person.run_all()
    allow = person.page.get_by_role("button", name="Allow once")
    allow.first.wait_for(timeout=180_000)
    card = person.page.locator(".k2-call-result", has=allow).first
    assert '{"coins":40,"to":"<b>Ada</b>"}' in str(card.text_content())  # text, never markup
    assert person.page.locator(".k2-call b").count() == 0
    person.until("/1 waits for approval/.test(document.querySelector('.k2-timeline').textContent)")
    person.picture("approval")
    allow.first.click()
    person.until("/paid to the last coin/.test(document.querySelector('.k2-thoughts').textContent)")
    refuse = person.page.get_by_role("button", name="Refuse")
    refuse.first.wait_for()  # the second call is asked about anew
    refuse.first.click()
    person.until("/not allowed/.test(document.querySelector('.k2-thoughts').textContent)")
    person.until("/done/i.test(document.querySelector('.k2-state').textContent)", 120)
    assert person.page.get_by_role("button", name="Allow once").count() == 0
    person.until("!/for approval/.test(document.querySelector('.k2-timeline').textContent)")
    assert not person.problems


@pytest.mark.timeout(400)
def test_two_agents_have_a_lane_each_and_one_selection(
    person: "Person", notebook: "Notebook"
) -> None:
    person.open(notebook("pair.ipynb", PAIR))
    person.run_all()
    person.until("/It is ordered/.test(document.querySelector('.k2-thoughts')?.textContent)", 180)
    person.picture("pair")
    timeline = person.page.locator(".k2-timeline")
    timeline.get_by_role("button", name="Table").click()
    rows = str(timeline.locator("table").text_content())
    assert "buyer: Tool call" in rows and "seller: order(" in rows
    timeline.get_by_role("button", name="Table").click()
    lanes = timeline.locator("canvas").first
    lanes.wait_for()  # what is hidden takes no focus, and says nothing
    lanes.focus()
    person.press("c", "c")  # the second call, which the other agent made
    said = "document.querySelector('.k2-timeline').textContent"
    person.until(f"/seller: order\\(.*answered/.test({said})")
    assert not person.problems


@pytest.mark.timeout(400)
def test_what_was_remembered_is_recalled_with_a_citation_after_the_kernel_ended(
    person: "Person", notebook: "Notebook"
) -> None:
    person.open(notebook("memory.ipynb", MEMORY))
    person.run_all()
    person.until(f"/documents: 0 result: kept as shed/.test({OUTPUT})", 180)
    person.page.evaluate(
        "async () => { const [one] = [...jupyterapp.serviceManager.sessions.running()];"
        " await jupyterapp.serviceManager.kernels.shutdown(one.kernel.id); }"
    )
    person.open("memory.ipynb")
    person.run_all()
    wanted = r"/documents: 1 result: \[shed:0-17\] Take the red key\./"
    person.until(f"{wanted}.test({OUTPUT})", 180)
    assert not person.problems
