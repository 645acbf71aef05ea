"""What the store sends, and what it does with what it is told."""

import time
from typing import Any

import pytest

from k2lab.errors import BusyError, K2LabError
from k2lab.trace.trace import Trace
from k2lab.widgets import wire
from k2lab.widgets.store import Facts, Store, speed

Sent = list[tuple[dict[str, Any], list[bytes]]]


class QuietStore(Store):
    """A store that keeps what it sends, and whose thread does not start."""

    def __init__(self, *args: Any, **values: Any) -> None:
        self.sent: Sent = []
        super().__init__(*args, **values)

    def send(self, content: Any, buffers: Any = None) -> None:
        self.sent.append((content, buffers))

    def _ensure_feeding(self) -> None:
        pass

    def tell(self, message: Any) -> None:
        self._on_message(self, message, [])


def tokens_of(sent: Sent) -> list[tuple[int, int]]:
    return [
        (header["start"], len(header["texts"])) for header, _ in sent if header["type"] == "frame"
    ]


def test_only_what_is_new_is_sent(run):
    store = QuietStore(run)
    run.grow(3)
    store.flush()
    run.grow(2)
    store.flush()
    store.flush()
    assert tokens_of(store.sent) == [(0, 3), (3, 2)]
    arrays = wire.unpack(store.sent[1][0]["arrays"], store.sent[1][1])
    assert arrays["experts"].shape == (2, 5, 8)


def test_tool_calls_travel_once_and_again_when_answered(finished):
    store = QuietStore(finished())
    store.flush()
    store.flush()
    frames = [header for header, _ in store.sent if header["calls"]]
    assert len(frames) == 1 and frames[0]["calls"][0]["content"] == "<script>42</script>"


def test_resync_sends_again_from_there(run):
    store = QuietStore(run)
    run.grow(5)
    store.flush()
    store.tell({"type": "resync", "epoch": store.epoch, "from": 2, "routed": 1})
    store.flush()
    assert tokens_of(store.sent) == [(0, 5), (2, 3)] and store.sent[1][0]["routed"] == 1


def test_resync_of_another_run_begins_at_the_beginning(run):
    store = QuietStore(run)
    run.grow(5)
    store.flush()
    store.tell({"type": "resync", "epoch": store.epoch - 1, "from": 99, "routed": 99})
    store.flush()
    assert tokens_of(store.sent)[-1] == (0, 5)


def test_long_runs_come_in_frames_of_moderate_size(run):
    run.grow(30)
    store = QuietStore(run)
    store._cursor.rows = lambda trace: 8
    store.flush()
    assert [count for _, count in tokens_of(store.sent)] == [8, 8, 8, 6]


def test_controls_reach_the_run(run):
    store = QuietStore(run)
    for message in ("stop", "pause", "resume"):
        store.tell({"type": message})
    store.tell({"type": "step", "unit": "token"})
    store.tell({"type": "step", "unit": "layer"})
    store.tell({"type": "pace", "rate": 5})
    assert run.asked == ["stop", "pause", "resume", "step token", "step layer", "pace 5.0"]
    assert store.sent == []


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "stop",
        {},
        {"type": "rm"},
        {"type": ["stop"]},
        {"type": "step", "unit": "year"},
        {"type": "pace"},
        {"type": "pace", "rate": -1},
        {"type": "pace", "rate": True},
        {"type": "resync", "from": 0, "moved": 5},
        {"type": "resync"},
        {"type": "resync", "from": -1},
        {"type": "resync", "from": 10**9},
        {"type": "resync", "from": True},
        {"type": "ask", "text": "of whom?"},
    ],
)
def test_bad_messages_are_answered_never_raised(run, message):
    store = QuietStore(run)
    store.tell(message)
    assert [header["type"] for header, _ in store.sent] == ["error"]
    assert store.sent[0][0]["found"].endswith(".") and run.asked == []


def outcome(store: QuietStore) -> dict[str, Any]:
    until = time.monotonic() + 20
    while not store.sent and time.monotonic() < until:
        time.sleep(0.01)
    return store.sent[-1][0]


def test_an_action_is_done_and_what_it_gives_is_its_outcome(run):
    store = QuietStore(run, actions={"ask": lambda message: {"text": message["text"].upper()}})
    store.tell({"type": "ask", "text": "what?"})
    assert outcome(store) == {"type": "outcome", "action": "ask", "text": "WHAT?"}
    assert store.status["can"] == ["ask", "export"] and QuietStore(run).status["can"] == ["export"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BusyError("Busy.", expected="one run.", mend="wait."), "Busy. wait."),
        (RuntimeError("no"), "That failed: RuntimeError('no')."),
    ],
)
def test_an_action_that_fails_is_answered(run, error, told):
    def ask(_):
        raise error

    store = QuietStore(run, actions={"ask": ask})
    store.tell({"type": "ask", "text": "x"})
    assert outcome(store)["error"] == told


def test_a_recorded_trace_refuses_controls(finished):
    store = QuietStore(finished().trace)
    store.tell({"type": "stop"})
    assert "recorded trace" in store.sent[0][0]["found"]
    assert store.status["state"] == "done" and not store.status["controls"]


def test_attach_begins_anew(run, finished):
    store = QuietStore(run)
    run.grow(3)
    store.flush()
    store.playhead, store.pin = 2, [2, -1, -1]
    store.attach(finished())
    store.flush()
    assert store.epoch == 2 and store.sent[-1][0]["epoch"] == 2 and store.playhead == -1
    assert tokens_of(store.sent)[-1] == (0, 39)


def test_status_tells_origin_failure_and_speed(run):
    store = QuietStore(run, facts=Facts("torch, CPU", "bfloat16"))
    run.grow(30)
    store.flush()
    assert store.status["engine"] == "torch, CPU" and store.status["provenance"] == "measured"
    assert store.status["speed"] == 10.0
    run.error = "Traceback …\nRuntimeError: shard 3"
    run.end("error", "error")
    store.flush()
    assert store.status["error"] == "RuntimeError: shard 3"
    assert store.status["traceback"] == run.error


def test_speed_is_unknown_before_two_tokens(run):
    run.grow(1)
    assert speed(run.trace, whole=False) == 0.0


def test_the_thread_sends_at_most_fifteen_messages_a_second_and_ends(run, capsys):
    class CountingStore(Store):
        times: list[float]

        def send(self, content, buffers=None):
            self.times.append(time.monotonic())

        def send_state(self, key=None):
            if hasattr(self, "times"):
                self.times.append(time.monotonic())

    CountingStore.times = []
    store = CountingStore(run)
    thread = store._thread
    CountingStore.times = begin = []
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        run.grow(1)
        time.sleep(0.01)
    assert 5 <= len(begin) <= 1.5 * 15 + 2
    run.end()
    thread.join(5)
    assert not thread.is_alive()
    assert store._cursor.token == len(run.trace) and store.status["state"] == "done"
    assert capsys.readouterr().out == ""


def test_a_run_that_takes_the_place_of_one_that_ends_is_fed_to_its_end(run):
    following, ends = type(run)(), []

    class Turning(Store):
        def _send_frame(self):
            more = super()._send_frame()
            if run.done and self.source is run:
                self.attach(following)  # somebody asked, between two looks at the run
            return more

    store = Turning(run)
    store.when_done(lambda: ends.append(store.source.done))
    thread = store._thread
    time.sleep(0.3)  # it has looked, and pauses
    run.end()
    time.sleep(0.5)
    assert store.source is following
    following.grow(3)
    following.end()
    thread.join(5)
    assert store._cursor.token == 3 and store.status["state"] == "done"
    until = time.monotonic() + 5
    while not ends and time.monotonic() < until:
        time.sleep(0.01)
    assert ends == [True]


def test_the_selection_can_be_read_and_set_from_python(run):
    store = QuietStore(run)
    seen = []
    store.observe(lambda change: seen.append(change["new"]), names=["playhead"])
    store.playhead = 7
    assert seen == [7]
    with pytest.raises(Exception, match="palette"):
        store.palette = "jet"


def test_a_store_that_closes_ends_its_thread(run):
    store = Store(run)
    thread = store._thread
    store.close()
    thread.join(5)
    assert not thread.is_alive()


def test_summary_is_stable(finished):
    assert repr(QuietStore(finished())) == "Store(tokens=39, state=done)"
    assert isinstance(finished().trace, Trace) and issubclass(BusyError, K2LabError)
