"""Runs in a worker thread: stop, pause, step, failure, one at a time."""

import _thread
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from k2lab.engine import capture
from k2lab.engine.events import Event, Routed, Stopped, TokenChosen
from k2lab.engine.generate import Prompt, Settings, generate
from k2lab.engine.sampling import Sampler, greedy
from k2lab.engine.session import Control, EngineLock, Halted, Run, controls
from k2lab.engine.taps import chain
from k2lab.errors import BusyError, InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap
from k2lab.text.tokenizer import Tokenizer

Configs = Callable[..., K2Config]
Models = Callable[..., K2]
PATIENCE = 20.0  # seconds until a test gives up


class Log:
    """A trace that keeps events; only the worker appends."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, event: Event) -> None:
        self.events.append(event)

    @property
    def tokens(self) -> int:
        return sum(isinstance(event, TokenChosen) for event in self.events)

    @property
    def routed(self) -> int:
        return sum(len(event.experts) for event in self.events if isinstance(event, Routed))


def until(true: Callable[[], bool]) -> None:
    """Return once the condition holds; fail when it never does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def token(index: int) -> TokenChosen:
    return TokenChosen(index, 1, "x", "answer", 0.0, 0.0, (), 0.0)


class Stage:
    """A run over a real model, with a log of the sites that it reached."""

    def __init__(self, model: K2, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.control, self.log = Control(), Log()
        self.run = Run(self.log, self.control)
        self.sites: list[str] = []
        self.lock = EngineLock()
        self.cache = LatentCache(model.config)

    def start(
        self, tap: Tap | None = None, max_tokens: int = 200, sampler: Sampler = greedy
    ) -> Run:
        def note(site: str, value: Tensor) -> Tensor:
            self.sites.append(site)
            return value

        taps = (self.control.tap, note) if tap is None else (self.control.tap, note, tap)
        settings = Settings(sampler, max_tokens, tap=chain(*taps))
        prompt = Prompt((1, 2, 3), ("a", "b", "c"), ("user",) * 3)
        events = generate(self.model, self.tokenizer, prompt, self.cache, settings)
        self.run.start(events, self.lock)
        return self.run

    @property
    def layers(self) -> int:
        """How many layers were entered."""
        return sum(site.endswith(".input") for site in self.sites)


@pytest.fixture
def stage(tiny_config: Configs, tiny_model: Models, tiny_tokenizer: Tokenizer) -> Iterator[Stage]:
    made = Stage(tiny_model(tiny_config()), tiny_tokenizer)
    yield made
    made.run.stop()
    if made.run._thread is not None:
        made.run._thread.join(PATIENCE)
        assert not made.run._thread.is_alive()


def test_a_run_returns_at_once_and_ends_done(stage: Stage) -> None:
    gate = threading.Event()

    def wait(site: str, value: Tensor) -> Tensor:
        assert gate.wait(PATIENCE)
        return value

    run = stage.start(wait, max_tokens=4)
    assert (run.state, run.done) == ("running", False)
    assert run.cpu_seconds == 0, "it is told at the end"
    gate.set()
    assert run.wait(PATIENCE) is run
    assert (run.state, run.done, run.error) == ("done", True, "")
    assert stage.log.tokens == 4 and 0 < run.cpu_seconds < PATIENCE
    assert not stage.lock.held


def test_stop_acts_within_a_layer(stage: Stage) -> None:
    reached, go = threading.Event(), threading.Event()

    def halfway(site: str, value: Tensor) -> Tensor:
        if stage.layers == 5 and site == "layers.1.middle":  # second layer of the second forward
            reached.set()
            assert go.wait(PATIENCE)
        return value

    run = stage.start(halfway)
    assert reached.wait(PATIENCE)
    run.stop()
    go.set()
    run.wait(PATIENCE)
    assert run.state == "stopped"
    assert stage.sites[-1] == "layers.1.mlp.output"  # layer 2 was never entered
    assert stage.log.tokens == 1
    last = stage.log.events[-1]
    assert isinstance(last, Stopped)
    assert (last.reason, last.tokens) == ("stopped", 1)
    assert stage.cache.length == 3  # the broken forward left nothing behind
    assert not stage.lock.held


def test_stop_ends_a_pause(stage: Stage) -> None:
    stage.control.pause()
    run = stage.start()
    assert run.state == "paused"
    run.stop()
    run.wait(PATIENCE)
    assert run.state == "stopped"
    assert stage.layers == 0


def test_nothing_takes_a_stop_back(stage: Stage) -> None:
    stage.control.pause()
    run = stage.start()
    run.stop()
    run.pause()
    run.step("layer")
    run.pause()
    run.wait(PATIENCE)
    assert run.state == "stopped"


def test_a_stop_between_the_checks_of_a_step_is_not_lost() -> None:
    control = Control()
    control.step("layer")
    control.check("layer")  # spends the step: held from here on
    assert control.paused
    control.stop()
    with pytest.raises(Halted):
        control.check("layer")


def test_pause_holds_and_resume_goes_on(stage: Stage) -> None:
    run = stage.start(max_tokens=30)
    run.pause()
    assert run.state == "paused" or run.done
    time.sleep(0.05)
    before = len(stage.sites)
    time.sleep(0.1)
    assert len(stage.sites) == before
    run.resume()
    run.wait(PATIENCE)
    assert run.state == "done"
    assert stage.log.tokens == 30


def at_token(count: int, act: Callable[[], None]) -> Sampler:
    """A greedy sampler that does something while it chooses this token, counted from 1."""
    calls = 0

    def choose(logits: Tensor) -> int:
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return greedy(logits)

    return choose


@pytest.mark.parametrize("within", ["a layer", "the choice"])
def test_what_was_seen_is_told_before_a_pause_holds(
    within: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "HELD_SECONDS", 1e9)  # as on a quick model, between two frames
    layer, token = (stage.run.pause, lambda: None)[:: 1 if within == "a layer" else -1]

    def pause(site: str, value: Tensor) -> Tensor:
        if site == "layers.1.middle" and stage.layers == 3 * 6 + 2:  # while token 6 is read
            layer()
        return value

    run = stage.start(pause, sampler=at_token(7, token))
    until(lambda: stage.log.routed == 3 + stage.log.tokens - 1 > 3)  # the last one is not read yet
    layers = stage.layers
    time.sleep(0.05)
    assert (run.state, stage.log.tokens) == ("paused", 8 if within == "the choice" else 7)
    assert stage.layers == layers, "it waits"
    run.step("layer")
    until(lambda: run.state == "paused" and stage.layers == layers + 1)
    run.step("token")
    until(lambda: stage.log.routed == 3 + stage.log.tokens - 1)
    run.resume()
    until(lambda: stage.log.tokens > 30)
    assert stage.log.routed < 20, "at full speed several tokens are told of at once"
    run.stop()
    run.wait(PATIENCE)
    assert stage.log.routed == stage.cache.length


def test_what_was_seen_is_told_when_a_stop_is_heard_at_a_token(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "HELD_SECONDS", 1e9)
    run = stage.start(sampler=at_token(7, stage.run.stop)).wait(PATIENCE)
    assert (run.state, stage.log.tokens) == ("stopped", 7)
    assert stage.log.routed == stage.cache.length == 3 + 6
    kinds = [type(event) for event in stage.log.events[-3:]]
    assert kinds == [TokenChosen, Routed, Stopped]


def test_events_that_do_not_see_a_stop_end_at_the_next_one() -> None:
    run = Run(Log(), Control())

    def events() -> Iterator[Event]:
        assert controls() is run.control
        yield token(0)
        run.stop()
        yield token(1)
        yield Stopped("answer", "It was not heard.", 2, 0.0)

    assert controls() is not run.control
    run.start(events(), EngineLock())
    assert run.wait(PATIENCE).state == "stopped"
    assert [type(each) for each in run.trace.events] == [TokenChosen, TokenChosen, Stopped]
    assert run.trace.events[-1].reason == "stopped"


def test_tokens_are_told_of_at_once_while_a_person_sets_the_pace() -> None:
    control = Control()
    assert not control.watchful
    for begin, end in (
        (control.pause, control.resume),
        (lambda: control.step("token"), control.resume),
        (lambda: control.pace(5), lambda: control.pace(0)),
    ):
        begin()
        assert control.watchful
        end()
        assert not control.watchful


def test_a_step_lets_one_layer_through(stage: Stage) -> None:
    stage.control.pause()
    run = stage.start()
    for count in range(1, 6):
        run.step("layer")
        until(lambda: run.state == "paused")
        until(lambda count=count: stage.layers == count)
        assert stage.layers == count
        # The worker waits before the next layer, having finished this one.
        expected = f"layers.{(count - 1) % 3}.mlp.output" if count % 3 else "logits"
        until(lambda expected=expected: stage.sites[-1] in (expected, "embed"))


def test_a_step_lets_one_token_through(stage: Stage) -> None:
    stage.control.pause()
    run = stage.start()
    for count in range(1, 4):
        run.step("token")
        until(lambda: run.state == "paused")
        assert stage.log.tokens == count
        assert stage.layers == 3 * count  # the prompt, then each token that was chosen before
    run.resume()
    run.stop()


def test_a_pace_keeps_tokens_apart_and_a_stop_is_heard_meanwhile() -> None:
    control = Control()
    control.pace(50)
    control.check("token")
    began = time.monotonic()
    control.check("layer")
    assert time.monotonic() - began < 0.01, "layers are not held up"
    control.check("token")
    assert time.monotonic() - began > 0.015
    control.pace(0.01)  # one in 100 seconds
    threading.Timer(0.05, control.stop).start()
    with pytest.raises(Halted):
        control.check("token")
    assert time.monotonic() - began < PATIENCE


def test_a_step_or_pace_that_is_none_is_refused() -> None:
    control = Control()
    control.pause()
    with pytest.raises(InputError, match="'token' or 'layer'"):
        control.step("year")  # type: ignore[arg-type]
    for rate in (-1, float("nan")):
        with pytest.raises(InputError, match="from 0 up"):
            control.pace(rate)
    assert control.paused


def test_another_pace_ends_the_waiting_for_the_last() -> None:
    control, began = Control(), time.monotonic()
    control.check("token")
    control.pace(0.01)
    threading.Timer(0.05, control.pace, [0]).start()
    control.check("token")
    assert time.monotonic() - began < PATIENCE


def test_a_failure_becomes_a_state_with_its_traceback(stage: Stage) -> None:
    def fail(site: str, value: Tensor) -> Tensor:
        if site == "layers.2.middle":
            raise ZeroDivisionError("a tap of the person's own")
        return value

    run = stage.start(fail)
    run.wait(PATIENCE)
    assert run.state == "error"
    assert run.done
    assert "ZeroDivisionError: a tap of the person's own" in run.error
    assert "in fail" in run.error
    last = stage.log.events[-1]
    assert isinstance(last, Stopped)
    assert (last.reason, last.detail) == ("error", "a tap of the person's own")
    assert not stage.lock.held


def test_a_second_run_is_refused_while_one_goes_on_and_welcome_after(stage: Stage) -> None:
    stage.control.pause()
    stage.start()
    other = Run(Log(), Control())
    with pytest.raises(BusyError, match=r"still going.*run\.stop"):
        other.start(iter(()), stage.lock)
    assert stage.lock.held  # the refusal freed nothing
    stage.run.stop()
    stage.run.wait(PATIENCE)
    other.start(iter(()), stage.lock)
    assert other.wait(PATIENCE).state == "done"


def test_the_engine_is_free_as_soon_as_wait_returns() -> None:
    lock = EngineLock()
    for _ in range(50):
        run = Run(Log(), Control())
        run.start(iter([token(0)]), lock)
        assert run.wait(PATIENCE).state == "done"


def test_an_interrupt_of_waiting_stops_the_run(stage: Stage) -> None:
    stage.control.pause()
    run = stage.start()
    # A program started in the background ignores interrupts until it says otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        run.wait(PATIENCE)
    timer.join()
    signal.signal(signal.SIGINT, before)
    run.wait(PATIENCE)
    assert run.state == "stopped"


def test_waiting_with_a_limit_returns_the_running_run(stage: Stage) -> None:
    stage.control.pause()
    run = stage.start()
    began = time.monotonic()
    assert run.wait(0.12) is run
    assert 0.1 < time.monotonic() - began < 5
    assert not run.done


def test_waiting_for_change_wakes_with_an_event() -> None:
    go = threading.Event()

    def events() -> Iterator[Event]:
        assert go.wait(PATIENCE)
        yield token(0)

    run = Run(Log(), Control())
    run.start(events(), EngineLock())
    threading.Timer(0.05, go.set).start()
    began = time.monotonic()
    run.wait_for_change(PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2
    run.wait(PATIENCE)
    run.wait_for_change(PATIENCE)  # over: returns at once


def test_events_of_a_run_stay_in_order_for_another_thread() -> None:
    run = Run(Log(), Control())
    run.start((token(i) for i in range(500)), EngineLock())
    run.wait(PATIENCE)
    assert [event.index for event in run.trace.events] == list(range(500))


LEAVING = """
import time
import k2lab
import k2lab.widgets.dashboard  # now, as it takes as long as a short run
lab = k2lab.load({folder!r})
run = lab.run("What is 3 * 14?", max_tokens=4000{more})
while len(run.trace) < 40 and not run.done:
    time.sleep(0.001)
{last}
print(len(run.trace), run.state)
"""


@pytest.mark.parametrize(
    ("more", "last", "state"),
    [
        ("", "", "running"),
        ("", "run.pause()", "paused"),
        (", tools=[]", "run.dashboard()", "running"),
    ],
)
def test_a_script_that_ends_during_a_run_ends_well(
    small_checkpoint: Path, more: str, last: str, state: str
) -> None:
    code = LEAVING.format(folder=str(small_checkpoint), more=more, last=last)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1] == state, "it had not ended before"
    assert time.monotonic() - began < 100


def test_a_worker_that_does_not_stop_is_not_waited_for_for_ever() -> None:
    code = (
        "import time; from k2lab.engine import session; session.LEAVE_SECONDS = 0.2;"
        "session.start_worker('slow', lambda: time.sleep(60)); print('left')"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "left\n") and time.monotonic() - began < 50


def test_a_run_waits_for_an_answer_and_not_for_another_run() -> None:
    lock, taken = EngineLock(), threading.Event()

    def take() -> None:
        lock.take()
        taken.set()

    with lock.answering():
        with pytest.raises(BusyError), lock.answering():
            pass
        waiting = threading.Thread(target=take)
        waiting.start()
        assert not taken.wait(0.1)
    waiting.join(PATIENCE)
    assert taken.is_set() and lock.held
    with pytest.raises(BusyError):
        lock.take()
    with pytest.raises(BusyError), lock.answering():
        pass
    assert not lock.wait(0.01)
    lock.release()
    assert lock.wait(0.01) and lock.held
    lock.release()
    assert not lock.held


def test_a_run_that_waits_comes_before_the_next_answer() -> None:
    """Else a page with many questions could keep it waiting."""
    lock = EngineLock()
    taker = threading.Thread(target=lock.take)
    refused = 0
    with lock.answering():
        taker.start()
        until(lambda: lock._waiting == 1)
    for _ in range(100):
        try:
            with lock.answering():
                pass
        except BusyError:
            refused += 1
    taker.join(PATIENCE)
    assert refused == 100 and lock.held


def test_an_answer_that_fails_frees_the_engine() -> None:
    lock = EngineLock()
    with pytest.raises(ZeroDivisionError), lock.answering():
        raise ZeroDivisionError
    lock.take()
    lock.release()
