"""A workflow as one run: two agents in one microworld, on one trace, timeline and selection."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k2lab.agent.budget import Budget
from k2lab.agent.joined import joined
from k2lab.agent.tools import tool
from k2lab.agent.workflow import Agent, finish, heavy, redone, together
from k2lab.engine.events import Stopped, TokenChosen
from k2lab.engine.sampling import Sampler, sampled
from k2lab.errors import InputError
from k2lab.evals.puppet import calls
from k2lab.lab import Lab
from k2lab.model.k2 import K2
from k2lab.text.template import Segment
from k2lab.trace.trace import Trace
from k2lab.watched import Watched
from k2lab.widgets.timeline import Timeline
from k2lab.world.tools import World

PATIENCE = 30.0
END = "<|im_end|>"


@pytest.fixture
def lab(small_checkpoint: Path) -> Lab:
    return Lab.open(small_checkpoint)


@pytest.fixture
def world() -> Iterator[World]:
    with World(0) as made:
        yield made


class Script:
    """A sampler that writes one turn after the other, over all runs of an agent."""

    def __init__(self, lab: Lab, *turns: str) -> None:
        segments = [Segment("".join(turns), markers=True, kind="answer")]
        self.left = iter(lab.tokenizer.encode_segments(segments))

    def __call__(self, logits: Any) -> int:
        return next(self.left)


def pair(lab: Lab, world: World, *turns: tuple[str, ...]) -> list[Agent]:
    """Two agents over the same weights and the same world."""
    tools = world.tools()
    samplers: list[Sampler] = [Script(lab, *each) for each in turns]
    return [
        Agent(name, lab, tools, {"sampler": sampler})
        for name, sampler in zip(("buyer", "seller"), samplers, strict=True)
    ]


def deal(lab: Lab, world: World) -> Any:
    """The buyer looks at the stock, the seller orders, the buyer is content."""
    look = calls(("stock", "0", '{"item": "lamp"}'))
    order = calls(("order", "0", '{"item": "lamp", "count": 1}'))
    buyer = (f"<think>How many?</think>{look}{END}", f"Order one lamp.{END}", f"Thank you.{END}")
    seller = (f"<think>One.</think>{order}{END}", f"It is ordered.{END}")
    agents = pair(lab, world, buyer, seller)
    return together(agents, "Get a lamp.", turns=4, done=lambda text: "Thank" in text)


def ended(watched: Watched) -> Watched:
    watched.wait(PATIENCE)
    assert watched.done and watched.error == ""
    return watched


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_two_agents_share_a_world_a_trace_and_a_selection(lab: Lab, world: World) -> None:
    watched = ended(lab.watch(deal(lab, world)))
    trace = watched.trace
    assert watched.outcome is not None and watched.outcome.passed
    assert world.orders == (("lamp", 1),)
    assert [each.agent for each in trace.contexts] == ["buyer", "seller", "buyer"]
    assert [(each.name, each.ok) for each in trace.calls] == [("stock", True), ("order", True)]
    assert [each.key for each in trace.calls] == ["0.0.0", "1.0.0"]
    assert trace.texts[trace.calls[1].index] == "<|tool_call_end|>"
    assert trace.stopped is not None and trace.stopped.reason == "answer"
    assert trace.stopped.tokens == int((~np.isnan(trace.seconds)).sum())
    assert trace.answer == "Thank you." and trace.routed == len(trace)
    times = trace.seconds[~np.isnan(trace.seconds)]
    assert (np.diff(times) >= 0).all()
    assert watched.timeline().store is watched.thoughts().store
    assert repr(watched).startswith("Watched(agents=[buyer, seller], tokens=")
    assert not lab.lock.held


def test_each_part_is_what_the_agent_alone_would_have_had(lab: Lab, world: World) -> None:
    watched = ended(lab.watch(deal(lab, world)))
    starts = [each.start for each in watched.trace.contexts] + [len(watched.trace)]
    runs = list(dict.fromkeys(each.run for each in watched.moments))
    for place, run in enumerate(runs):
        own = Trace.collect((m.event for m in watched.moments if m.run == run), lab.about)
        part = slice(starts[place], starts[place + 1])
        assert watched.trace.ids[part].tolist() == own.ids.tolist()
        assert np.array_equal(watched.trace.experts[part], own.experts)
        assert np.array_equal(watched.trace.entropy[part], own.entropy, equal_nan=True)


def test_the_timeline_has_a_lane_for_each_agent(lab: Lab, world: World) -> None:
    watched = ended(lab.watch(deal(lab, world)))
    (picture,) = watched.timeline().pictures()
    assert picture.png is not None and "buyer, seller" in picture.title
    assert [row[1] for row in picture.rows] == ["buyer: stock", "seller: order"]
    watched.store.flush()
    status = watched.store.status
    assert [name for _, name in status["contexts"]] == ["buyer", "seller", "buyer"]


def test_trajectories_that_overlap_come_one_after_the_other(lab: Lab) -> None:
    agents = [
        Agent(f"{n}", lab, [], {"sampler": sampled(temperature=2.0, seed=n), "max_tokens": 9})
        for n in range(4)
    ]
    _, moments = finish(heavy(agents, "Go.", workers=3))
    trace = Trace.collect(joined(moments), lab.about)
    assert [each.agent for each in trace.contexts] == ["0", "1", "2", "3"]
    assert trace.routed == len(trace)
    assert (np.diff(trace.seconds[~np.isnan(trace.seconds)]) >= 0).all()
    assert len([each for each in joined(moments) if isinstance(each, Stopped)]) == 1
    (picture,) = Timeline(trace).pictures()
    assert picture.png is not None


def test_a_run_that_breaks_off_leaves_no_gap(lab: Lab) -> None:
    agent = Agent("a", lab, [], {"max_tokens": 6})
    _, moments = finish(heavy([agent], "Go."))
    _, more = finish(heavy([agent], "Go."))
    last = max(n for n, each in enumerate(moments) if isinstance(each.event, TokenChosen))
    trace = Trace.collect(joined([*moments[: last + 1], *more]), lab.about)
    assert len(trace.contexts) == 2 and trace.answer
    assert trace.routed < trace.contexts[1].start < len(trace)  # what is not known is not made up


def test_the_routes_of_runs_after_one_whose_time_is_over_are_kept(lab: Lab) -> None:
    class Slow(Script):
        def __call__(self, logits: Any) -> int:
            time.sleep(0.02)
            return super().__call__(logits)

    limited = {"sampler": Slow(lab, "word " * 90), "budget": Budget(seconds=0.1)}
    agent = Agent("a", lab, [], limited)
    watched = ended(lab.watch(redone(agent, "Go.", lambda text: "No.", tries=2)))
    assert watched.trace.stopped is not None and watched.trace.stopped.reason == "budget"
    assert len(watched.trace.contexts) == 2
    assert watched.trace.routed == len(watched.trace)


def test_stop_ends_the_runs_of_a_workflow(lab: Lab) -> None:
    endless = {"sampler": lambda logits: 65, "max_tokens": 900}
    agents = [Agent(f"{n}", lab, [], endless) for n in range(3)]
    watched = lab.watch(heavy(agents, "Go.", workers=3))
    until(lambda: len(watched.moments) > 30)
    watched.stop()
    watched.wait(PATIENCE)
    assert watched.state == "stopped" and watched.outcome is None
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("k2lab-heavy")])


def test_a_step_of_a_workflow_is_one_token_whatever_it_is_called(lab: Lab) -> None:
    """The checks of layers are those of its runs, which it does not hold."""
    endless = {"sampler": lambda logits: 65, "max_tokens": 900}
    watched = lab.watch(together([Agent("a", lab, [], endless)], "Go.", turns=1, done=bool))
    until(lambda: len(watched.trace) > 30)
    watched.pause()
    until(lambda: watched.trace.routed == len(watched.trace) - 1)
    for unit in ("layer", "token", "layer"):
        before = len(watched.trace)
        watched.step(unit)
        until(lambda before=before: len(watched.trace) == before + 1)
        time.sleep(0.05)
        assert (watched.state, len(watched.trace)) == ("paused", before + 1)
        assert watched.trace.routed == before
    with pytest.raises(InputError, match="'token' or 'layer'"):
        watched.step("year")  # type: ignore[arg-type]
    watched.stop()
    watched.wait(PATIENCE)
    assert watched.trace.routed == len(watched.trace) - 1


def test_compaction_of_one_agent_is_a_context_of_its_lane(small_checkpoint: Path) -> None:
    opened = Lab.open(small_checkpoint)
    config = replace(opened.config, max_position_embeddings=4096)
    lab = Lab("long", K2(config, opened.model.store), opened.tokenizer, tuple)

    @tool(effect="reads")
    def look() -> str:
        """A page."""
        return "word " * 100

    turns = [calls(("look", str(n), "{}")) + END for n in range(4)]
    options = {"sampler": Script(lab, *turns, f"Read.{END}"), "budget": Budget(context=1800)}
    agents = [Agent("reader", lab, [look], options)]
    agents.append(Agent("writer", lab, [], {"sampler": Script(lab, f"Written.{END}")}))
    run = ended(lab.watch(together(agents, "Go.", turns=2, done=lambda text: text == "Written.")))
    assert run.outcome is not None and run.outcome.passed
    *before, last = [each.agent for each in run.trace.contexts]
    assert (set(before), last) == ({"reader"}, "writer") and len(before) > 1
    assert len(run.trace.calls) == 4 and run.trace.routed == len(run.trace)
