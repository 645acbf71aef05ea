"""Tests of k2lab/text/messages.py: OpenAI-style dictionaries become typed messages."""

from typing import Any

import pytest

from k2lab.errors import InputError
from k2lab.text.messages import Call, Message, canonical_ids, message_from_dict


def wire(identity: Any = "i", name: Any = "f", arguments: Any = "{}") -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def test_every_field_is_read() -> None:
    said = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "r",
        "tool_calls": [wire(), wire("j", "g", {"a": "é"})],
        "refusal": None,
        "annotations": [],
    }
    calls = (Call("i", "f", "{}"), Call("j", "g", '{"a": "é"}'))
    assert message_from_dict(said) == Message("assistant", "", "r", calls)
    result = {"role": "tool", "tool_call_id": "i", "name": "f", "content": "42"}
    assert message_from_dict(result) == Message("tool", "42", call_id="i", name="f")
    assert message_from_dict({"role": "user"}) == Message("user")


@pytest.mark.parametrize(
    "wrong",
    [
        "Hi",
        None,
        {},
        {"content": "a"},
        {"role": "robot", "content": "a"},
        {"role": ["user"], "content": "a"},
        {"role": "user", "content": 3},
        {"role": "user", "contents": "a"},
        {"role": "assistant", "content": "a", "reasoning": "r"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "user", "content": b"a"},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
        {"role": "user", "content": "a", "name": 3},
        {"role": "user", "content": "a", "tool_calls": [wire()]},
        {"role": "user", "content": "a", "reasoning_content": "r"},
        {"role": "assistant", "tool_call_id": "i"},
        {"role": "assistant", "reasoning_content": 3},
        {"role": "assistant", "tool_calls": wire()},
        {"role": "assistant", "tool_calls": ["f"]},
        {"role": "assistant", "tool_calls": [{}]},
        {"role": "assistant", "tool_calls": [wire(identity=3)]},
        {"role": "assistant", "tool_calls": [wire(name="")]},
        {"role": "assistant", "tool_calls": [wire(arguments=[1])]},
        {"role": "assistant", "tool_calls": [wire(arguments={"a": object()})]},
        {"role": "assistant", "tool_calls": [wire() | {"type": "custom"}]},
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": "a", "tool_call_id": ""},
    ],
)
def test_nonsense_is_an_input_error(wrong: Any) -> None:
    with pytest.raises(InputError, match="Expected"):
        message_from_dict(wrong)


def asked(*calls: tuple[str, str]) -> Message:
    return Message("assistant", calls=tuple(Call(i, name, "{}") for i, name in calls))


def answered(identity: str, content: str, name: str = "") -> Message:
    return Message("tool", content, call_id=identity, name=name)


def shape(messages: list[Message]) -> list[Any]:
    return [
        (m.call_id, m.content, m.name) if m.role == "tool" else [c.id for c in m.calls] or m.role
        for m in canonical_ids(messages)
    ]


def test_ids_count_over_the_conversation_and_results_take_the_order_of_the_calls() -> None:
    talk = [
        Message("user", "a"),
        asked(("x", "f"), ("y", "g")),
        answered("y", "of g"),
        answered("x", "of f"),
        Message("assistant", "b"),
        Message("user", "c"),
        asked(("x", "f")),
        answered("x", "of f again"),
    ]
    assert shape(talk) == [
        "user",
        ["functions.f:0", "functions.g:1"],
        ("functions.f:0", "of f", "f"),
        ("functions.g:1", "of g", "g"),
        "assistant",
        "user",
        ["functions.f:2"],
        ("functions.f:2", "of f again", "f"),
    ]
    assert canonical_ids(canonical_ids(talk)) == canonical_ids(talk)


def test_equal_ids_are_answered_in_order_and_strangers_come_last() -> None:
    talk = [
        asked(("x", "f"), ("x", "g"), ("", "h")),
        answered("z", "?"),
        answered("x", "1"),
        answered("x", "2"),
        answered("x", "3"),
        answered("", "4"),
    ]
    assert shape(talk)[1:] == [
        ("functions.f:0", "1", "f"),
        ("functions.g:1", "2", "g"),
        ("functions.h:2", "4", "h"),
        ("z", "?", ""),
        ("x", "3", ""),
    ]


def test_a_call_without_a_result_stays() -> None:
    talk = [asked(("x", "f")), Message("user", "b"), answered("x", "late")]
    assert shape(talk) == [["functions.f:0"], "user", ("functions.f:0", "late", "f")]
