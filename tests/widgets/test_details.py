"""What a page can ask about a token, and how it is answered."""

import threading

import numpy as np
import pytest

from k2lab.errors import BusyError, InputError
from k2lab.widgets import wire
from k2lab.widgets.details import CapturedDetails, Desk, Detail, Question


class Slow:
    """Answers once it is let go; remembers what it was asked."""

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), []

    def route(self, trace, token):
        self.asked.append(token)
        self.go.wait(5)
        return Detail("derived", {"scores": np.full((2, 3), token, np.float32)})

    def attention(self, trace, token, layer):
        raise RuntimeError("layer on fire")


def drained(desk):
    while (thread := desk._thread) is not None:
        thread.join(5)


def ask(desk, trace, token, what="route", layer=-1):
    content = {"key": f"{what}:{token}", "what": what, "token": token, "layer": layer}
    desk.ask(Question.of(content, trace), trace, 1)


def test_newest_question_comes_first_and_none_is_answered_twice(finished):
    sent, slow, trace = [], Slow(), finished().trace
    desk = Desk(slow, lambda header, buffers: sent.append((header, buffers)))
    for token in (1, 2, 3, 2):
        ask(desk, trace, token)
    slow.go.set()
    drained(desk)
    ask(desk, trace, 2)
    drained(desk)
    assert sorted(slow.asked) == [1, 2, 3] and slow.asked[-2:] != [1, 3]
    assert [header["key"] for header, _ in sent].count("route:2") >= 2
    header, buffers = sent[-1]
    assert header["provenance"] == "derived"
    assert wire.unpack(header["arrays"], buffers)["scores"].tolist() == [[2.0] * 3] * 2


def test_a_failure_is_told_in_words(finished):
    sent = []
    desk = Desk(Slow(), lambda header, buffers: sent.append(header))
    ask(desk, finished().trace, 1, "attention", 2)
    drained(desk)
    assert sent[0]["provenance"] == "missing" and "layer on fire" in sent[0]["note"]


def test_while_a_run_has_the_engine_it_says_so_and_answers_afterwards(finished):
    class Busy(Slow):
        def route(self, trace, token):
            self.asked.append(token)
            if not self.go.is_set():
                raise BusyError("A run is going on.", expected="none.", mend="Wait.")
            return Detail("derived", {"scores": np.zeros((2, 3), np.float32)})

    sent, busy, told = [], Busy(), threading.Event()
    desk = Desk(busy, lambda header, buffers: (sent.append(header), told.set()))
    ask(desk, finished().trace, 7)
    assert told.wait(5)
    busy.go.set()
    drained(desk)
    assert [each["provenance"] for each in sent] == ["missing", "derived"]
    assert "as soon as it ends" in sent[0]["note"] and set(busy.asked) == {7}


def test_without_a_model_it_says_how_to_get_the_numbers(finished):
    detail = CapturedDetails().route(finished().trace, 3)
    assert detail.provenance == "missing" and "lab.show" in detail.note


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"key": 5, "what": "route", "token": 1},
        {"key": "x" * 100, "what": "route", "token": 1},
        {"key": "k", "what": "secrets", "token": 1},
        {"key": "k", "what": "route", "token": -1},
        {"key": "k", "what": "route", "token": 39},
        {"key": "k", "what": "route", "token": True},
        {"key": "k", "what": "attention", "token": 1},
        {"key": "k", "what": "attention", "token": 1, "layer": 6},
    ],
)
def test_questions_that_make_no_sense_are_refused(finished, content):
    with pytest.raises(InputError):
        Question.of(content, finished().trace)
