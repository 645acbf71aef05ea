"""Workflows over speakers that follow a script, and over the tools of one microworld."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from k2lab.agent.tools import Tool, call
from k2lab.agent.workflow import Agent, Outcome, finish, heavy, planned, redone, timeline, together
from k2lab.engine.events import Answered, Event, Stopped, ToolAnswered, ToolAsked
from k2lab.errors import InputError
from k2lab.world.tools import World


class Scripted:
    """A speaker that answers what a function makes of the last message."""

    def __init__(self, reply: Callable[[str], str], reason: Any = "answer") -> None:
        self.reply, self.reason = reply, reason
        self.heard: list[Any] = []

    def events(
        self, conversation: Any, *, tools: Sequence[Tool] | None = None, **options: Any
    ) -> Iterator[Event]:
        self.heard.append(conversation)
        last = conversation if isinstance(conversation, str) else conversation[-1]["content"]
        answer = self.reply(last)
        if answer.startswith("call "):
            _, name, arguments = answer.split(" ", 2)
            yield ToolAsked("0.0", f"functions.{name}:0", name, arguments, 0)
            (chosen,) = [each for each in tools or () if each.name == name]
            outcome = call(chosen, arguments)
            yield ToolAnswered("0.0", name, outcome.content, outcome.ok, 0.0)
            answer = outcome.content
        yield Answered(answer, "")
        yield Stopped(self.reason, "", 1, 0.0)


def test_an_answer_that_fails_its_check_is_done_again_with_what_is_wrong() -> None:
    speaker = Scripted(lambda text: "42" if "too small" in text else "41")
    outcome, moments = finish(
        redone(Agent("a", speaker), "6 * 7?", lambda text: "" if text == "42" else "too small.")
    )
    assert outcome == Outcome("42", passed=True, tries=("41", "42"))
    assert [each["role"] for each in speaker.heard[1]] == ["user", "assistant", "user"]
    assert len(moments) == 4 and {each.agent for each in moments} == {"a"}


def test_redoing_comes_to_an_end_and_says_so() -> None:
    speaker = Scripted(lambda text: "41")
    outcome, _ = finish(redone(Agent("a", speaker), "6 * 7?", lambda text: "wrong.", tries=2))
    assert outcome == Outcome("41", passed=False, tries=("41", "41"))
    cut = Scripted(lambda text: "4", reason="length")
    outcome, _ = finish(redone(Agent("a", cut), "6 * 7?", lambda text: "", tries=1))
    assert not outcome.passed  # half an answer is none


def test_a_plan_is_acted_on_line_by_line_and_made_anew_if_it_fails() -> None:
    planner = Scripted(lambda text: "stock\n\nprice" if "Do it again" in text else "stock")
    doer = Scripted(lambda text: {"stock": "3", "price": "14"}[text])
    outcome, moments = finish(
        planned(
            Agent("p", planner),
            Agent("d", doer),
            "Price?",
            lambda text: "" if text == "14" else "not a price.",
        )
    )
    assert outcome == Outcome("14", passed=True, tries=("3", "14"))
    assert len(doer.heard[-1]) == 3  # it reads what came before
    assert [each.agent for each in moments if isinstance(each.event, Answered)] == list("pdpdd")


def test_two_agents_work_on_one_world_and_one_timeline() -> None:
    with World(0) as world:
        tools = world.tools()
        asks = Scripted(lambda text: 'call stock {"item": "lamp"}')
        orders = Scripted(lambda text: f'call order {{"item": "lamp", "count": {text}}}')
        agents = [Agent("asks", asks, tools), Agent("orders", orders, tools)]
        stock = world.stock("lamp")
        outcome, moments = finish(
            together(agents, "Order all lamps.", turns=4, done=lambda text: "ordered" in text)
        )
        assert outcome.passed and world.orders == (("lamp", int(stock)),)
    rows = timeline(moments)
    assert [(each.agent, each.what.split(" ")[0]) for each in rows] == [
        ("asks", "calls"),
        ("asks", "stock"),
        ("asks", "answers"),
        ("orders", "calls"),
        ("orders", "order"),
        ("orders", "answers"),
    ]
    assert [each.second for each in rows] == sorted(each.second for each in rows)


def test_heavy_mode_takes_the_answer_of_most_or_reflects_on_all() -> None:
    eight = [Agent(f"{n}", Scripted(lambda text, n=n: "42" if n % 3 else "41")) for n in range(8)]
    outcome, moments = finish(heavy(eight, "6 * 7?"))
    assert (outcome.text, len(outcome.tries)) == ("42", 8)
    assert len({each.agent for each in moments}) == 8
    judge = Scripted(lambda text: "43")
    outcome, _ = finish(heavy(eight, "6 * 7?", Agent("judge", judge)))
    assert outcome.text == "43"
    assert "8 attempts" in judge.heard[0] and "1. 41\n2. 42" in judge.heard[0]


def test_trajectories_without_an_answer_do_not_count() -> None:
    lost = Agent("lost", Scripted(lambda text: "half", reason="length"))
    assert not finish(heavy([lost], "?"))[0].passed
    good = Agent("good", Scripted(lambda text: "42"))
    assert finish(heavy([lost, lost, good], "?"))[0].text == "42"


def test_a_workflow_is_made_of_workflows() -> None:
    def both(agent: Agent) -> Any:
        first = yield from redone(agent, "a", lambda text: "")
        return (yield from redone(agent, first.text, lambda text: ""))

    outcome, moments = finish(both(Agent("a", Scripted(lambda text: text + "!"))))
    assert outcome.text == "a!!" and len(moments) == 4


def test_nobody_and_nothing_are_refused() -> None:
    agent = Agent("a", Scripted(str))
    for made in (
        redone(agent, "?", lambda text: "", tries=0),
        together([], "?", turns=1, done=bool),
        heavy([], "?"),
    ):
        with pytest.raises(InputError):
            finish(made)
