"""Calls in threads: what runs together, what is tried again, and what is given up."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from k2lab.agent.calling import Done, Job, cancellation, perform_all
from k2lab.agent.tools import Effect, Tool, tool
from k2lab.engine.events import Retried
from k2lab.errors import TransientError


def job(key: str, function: Callable[..., object], effect: Effect, **habits: Any) -> Job:
    parameters = {"type": "object"}
    return Job(key, Tool("look", "", parameters, function, effect=effect, **habits), {})


def done(*jobs: Job, started: list[str] | None = None) -> tuple[list[Done], list[Retried]]:
    made = [] if started is None else started
    news = list(perform_all(jobs, lambda: None, lambda each: made.append(each.key)))
    assert sorted(made) == sorted(each.key for each in jobs)  # told of each once
    return (
        [each for each in news if isinstance(each, Done)],
        [each for each in news if isinstance(each, Retried)],
    )


def test_reading_calls_run_at_the_same_time_and_come_back_as_they_end() -> None:
    barrier = threading.Barrier(3)  # opens only if all three are inside

    def wait(seconds: float) -> Callable[[], str]:
        def run() -> str:
            barrier.wait(10)
            time.sleep(seconds)
            return str(seconds)

        return run

    jobs = [job(key, wait(seconds), "reads") for key, seconds in (("a", 0.4), ("b", 0.2), ("c", 0))]
    ended, _ = done(*jobs)
    assert [each.key for each in ended] == ["c", "b", "a"]
    assert [each.outcome.content for each in ended] == ["0", "0.2", "0.4"]  # each its own


def test_a_call_that_changes_the_world_runs_alone_in_its_place() -> None:
    inside, order = [0], list[str]()

    def run(name: str) -> Callable[[], str]:
        def work() -> str:
            inside[0] += 1
            assert inside[0] == 1
            time.sleep(0.02)
            order.append(name)
            inside[0] -= 1
            return name

        return work

    jobs = [job("a", run("a"), "reads"), job("b", run("b"), "writes"), job("c", run("c"), "writes")]
    ended, _ = done(*jobs)
    assert order == ["a", "b", "c"] == [each.outcome.content for each in ended]


@pytest.mark.parametrize("effect", ["reads", "repeatable"])
def test_a_failure_in_passing_is_tried_again_where_that_is_safe(effect: Effect) -> None:
    failures = iter([TransientError("busy", after=0.01), TimeoutError("slow")])

    def flaky() -> str:
        for each in failures:
            raise each
        return "there"

    (ended,), again = done(job("a", flaky, effect))
    assert (ended.outcome.ok, ended.outcome.content) == (True, "there")
    assert [(each.key, each.attempt, each.why) for each in again] == [
        ("a", 2, "busy"),
        ("a", 3, "slow"),
    ]


def test_a_call_that_changes_the_world_is_never_made_twice() -> None:
    made = list[int]()

    def once() -> str:
        made.append(1)
        raise ConnectionError("cut off")

    (ended,), again = done(job("a", once, "writes"))
    assert (made, again) == ([1], [])
    assert (ended.outcome.ok, ended.outcome.content) == (False, "error: cut off")


def test_a_failure_that_will_stay_is_not_tried_again() -> None:
    def wrong() -> str:
        raise ValueError("no such item")

    (ended,), again = done(job("a", wrong, "reads"))
    assert not again
    assert ended.outcome.content == "error: no such item"


def test_attempts_come_to_an_end() -> None:
    def never() -> str:
        raise TimeoutError

    (ended,), again = done(job("a", never, "reads"))
    assert len(again) == 2
    assert ended.outcome.content == "error: TimeoutError"


def test_a_late_call_is_told_and_its_result_is_dropped() -> None:
    told = list[bool]()

    def late() -> str:
        told.append(cancellation().wait(30))
        return "late"

    (ended,), _ = done(job("a", late, "writes", timeout=0.1))
    assert ended.outcome.content == (
        "error: no answer within 0.1 s; it may have been done all the same"
    )
    time.sleep(0.1)
    assert told == [True]


def test_when_the_waiting_ends_every_call_under_way_is_given_up() -> None:
    told, began = list[bool](), threading.Event()

    def slow() -> str:
        began.set()
        told.append(cancellation().wait(30))
        return "late"

    class EnoughError(Exception):
        pass

    def check() -> None:
        if began.is_set():
            raise EnoughError

    with pytest.raises(EnoughError):
        list(perform_all([job("a", slow, "reads"), job("b", slow, "reads")], check, lambda _: None))
    time.sleep(0.2)
    assert told == [True, True]


def test_a_call_that_is_not_paid_for_is_not_begun() -> None:
    made = list[int]()

    def refuse(each: Job) -> None:
        raise KeyError(each.key)

    with pytest.raises(KeyError):
        list(perform_all([job("a", lambda: made.append(1), "writes")], lambda: None, refuse))
    assert not made


def test_what_is_registered_with_a_cancellation_is_done_once_and_only_while_it_matters() -> None:
    done_, cancel = list[str](), cancellation()
    with cancel.calling(lambda: done_.append("over")):
        pass
    with cancel.calling(lambda: done_.append("now")):
        cancel.cancel()
        cancel.cancel()
    with cancel.calling(lambda: done_.append("late")):
        pass
    assert done_ == ["now", "late"]


def test_tools_say_what_a_call_does_to_the_world() -> None:
    @tool(effect="reads", trusted=True, timeout=3, cost=2)
    def look() -> str:
        """Look."""
        return ""

    @tool
    def act() -> str:
        """Act."""
        return ""

    assert (look.effect, look.trusted, look.timeout, look.cost) == ("reads", True, 3, 2)
    assert (act.effect, act.trusted) == ("writes", False)  # for the worse, where nothing is said


def test_a_tool_that_exits_has_ended() -> None:
    (ended,), _ = done(job("a", lambda: sys.exit("no such file"), "writes", timeout=5))
    assert ended.outcome.content == "error: it called exit(no such file)"


def test_a_call_waits_for_its_next_attempt_no_longer_than_for_an_answer() -> None:
    failures = iter([TransientError("busy", after=1000.0)])

    def look() -> str:
        for each in failures:
            raise each
        return "seen"

    (ended,), (again,) = done(job("a", look, "reads", timeout=0.2))
    assert (ended.outcome.content, again.attempt) == ("seen", 2)
