"""The event union: frozen records, the kinds' codes, and what a fold may rely on."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from k2lab.engine.events import (
    KINDS,
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    Captured,
    Dropped,
    Event,
    ExpertsMoved,
    Misread,
    Nudged,
    PromptRead,
    Reason,
    Repeated,
    Retried,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)

EXAMPLES: tuple[Event, ...] = (
    PromptRead(0, (1,), ("a",), ("user",), 0.1),
    TokenChosen(1, 2, "b", "answer", -0.1, 0.2, ((2, "b", 0.9),), 0.3),
    Routed(0, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), np.zeros((1, 1))),
    ExpertsMoved(0, 1, 2, np.ones(1, int), np.ones(1, int), np.zeros(1), np.zeros((1, 4), int), {}),
    Captured(0, (0,), {"residual": (1,)}, {"residual": np.zeros((1, 1, 4))}),
    Dropped(256, 4096),
    ToolAsked("0.0", "functions.f:0", "f", "{}", 1),
    ToolAnswered("0.0", "f", "x", True, 0.0),
    Misread("truncated", "functions.f:0"),
    Nudged("thinking only", "x"),
    Retried("0.0", 2, "timeout"),
    Repeated(3, "warned"),
    ApprovalAsked("0.0", "f", "{}", "d", "x"),
    ApprovalGiven("0.0", "d", True, "x"),
    Answered("x", ""),
    Stopped("answer", "", 1, 0.5),
)


def name(event: Event) -> str:  # noqa: C901 - one case for each event
    """A fold over the union, complete by the type checker's word."""
    match event:
        case PromptRead():
            return "prompt"
        case TokenChosen():
            return "token"
        case Routed():
            return "routing"
        case ExpertsMoved():
            return "moved"
        case Captured():
            return "captured"
        case Dropped():
            return "dropped"
        case ToolAsked():
            return "asked"
        case ToolAnswered():
            return "result"
        case Misread():
            return "misread"
        case Nudged():
            return "nudged"
        case Retried():
            return "retried"
        case Repeated():
            return "repeated"
        case ApprovalAsked():
            return "approval asked"
        case ApprovalGiven():
            return "approval given"
        case Answered():
            return "answer"
        case Stopped():
            return "end"


def test_the_union_has_these_events() -> None:
    assert {type(event) for event in EXAMPLES} == set(get_args(Event))
    assert len({name(event) for event in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize("event", EXAMPLES, ids=name)
def test_events_cannot_be_changed(event: Event) -> None:
    field = dataclasses.fields(event)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, field, None)
    assert not hasattr(event, "__dict__")


def test_codes_of_kinds_stay_as_traces_store_them() -> None:
    assert KINDS[0] == "marker"
    assert len(KINDS) == len(set(KINDS))
    assert {"marker", "user", "thinking", "answer", "call"} <= set(KINDS)


def test_reasons_to_stop() -> None:
    assert get_args(Reason) == (
        *("answer", "length", "stopped", "budget", "loop", "error", "context"),
    )
