"""Messages of a conversation, as typed records.

A `Message` is what the chat template renders and what the agent loop keeps. It is not the wire
text (that is `template.py`) and it holds no token ids. `message_from_dict` reads the dictionaries
of the OpenAI chat format, with `reasoning_content` for thinking, as Moonshot's service uses it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from k2lab.errors import InputError

Kind = Literal["marker", "system", "user", "thinking", "answer", "call", "result"]
"""Which part of the conversation a token belongs to; `marker` is a special token or a header."""

Role = Literal["system", "user", "assistant", "tool"]
"""Who speaks. `tool` is the result of a call."""

ROLES: tuple[Role, ...] = get_args(Role)

READ = (
    "role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "outside",
)  # fmt: skip
"""What is read of a dictionary."""


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call of an assistant message."""

    id: str  # wire id, canonically functions.{name}:{index}; not unique in a conversation
    name: str
    arguments: str  # raw JSON text


@dataclass(frozen=True, slots=True)
class Message:
    """One message; fields that do not belong to its role stay empty."""

    role: Role
    content: str = ""
    reasoning: str = ""  # assistant only
    calls: tuple[Call, ...] = ()  # assistant only
    call_id: str = ""  # tool only: the wire id of the call that this answers
    name: str = ""  # shown in the header instead of the role; for a tool, the tool's name
    outside: str = ""  # the part of the content that others wrote than the role says; not shown


def message_from_dict(source: Mapping[str, object]) -> Message:
    """The message that an OpenAI-style dictionary describes."""
    if not isinstance(source, Mapping):
        raise InputError(
            f"A message is of type {type(source).__name__}.",
            expected="a dictionary with `role` and `content`.",
            mend="Pass messages as {'role': 'user', 'content': 'text'}.",
        )
    role = _role(source.get("role"))
    for key, value in source.items():
        if value and key not in READ:
            raise InputError(
                f"A message of role {role!r} has `{key}`, which would be lost.",
                expected=f"{', '.join(f'`{each}`' for each in READ)}.",
                mend=f"Correct the name `{key}`, or remove it.",
            )
    message = Message(
        role=role,
        content=_content(source.get("content")),
        reasoning=_text(source, "reasoning_content"),
        calls=_calls(source.get("tool_calls")),
        call_id=_text(source, "tool_call_id"),
        name=_text(source, "name"),
        outside=_text(source, "outside"),
    )
    for field, value, owner in (
        ("reasoning_content", message.reasoning, "assistant"),
        ("tool_calls", message.calls, "assistant"),
        ("tool_call_id", message.call_id, "tool"),
    ):
        if value and role != owner:
            raise InputError(
                f"A message of role {role!r} has `{field}`.",
                expected=f"`{field}` in messages of role {owner!r} only.",
                mend=f"Remove `{field}`, or change the role.",
            )
    if role == "tool" and not message.call_id:
        raise InputError(
            "A tool message has no `tool_call_id`.",
            expected="the id of the call that it answers.",
            mend="Copy the `id` of the assistant's tool call into `tool_call_id`.",
        )
    return message


def dump_json(value: object) -> str:
    """JSON with the default separators and without escapes for non-ASCII, as Jinja `tojson`."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"A value cannot be written as JSON: {error}.",
            expected="dictionaries, lists, strings, numbers, booleans and None.",
            mend="Convert the value to these types first.",
        ) from error


def without_surrogates(text: str) -> str:
    """The text as it is read: surrogates that belong together as one character, others U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def canonical_ids(messages: Sequence[Message]) -> list[Message]:
    """The conversation with call ids `functions.{name}:{k}`, k counting from 0 over all calls.

    Results follow their calls: each takes the new id of the earliest unanswered call of its old
    id, the tool's name if it has none, and its place in the order of the calls. A result that
    answers no known call stays as it is, after the others.
    """
    renamed: list[Message] = []
    open_calls: list[tuple[str | None, Call]] = []  # (old id until answered, call with new id)
    results: list[tuple[int, Message]] = []  # (place of the call, result) of one run of results
    count = 0
    for message in messages:
        if message.role == "tool":
            place = next(
                (i for i, (old, _) in enumerate(open_calls) if old == message.call_id), None
            )
            if place is None:
                results.append((len(open_calls), message))
                continue
            call = open_calls[place][1]
            open_calls[place] = (None, call)
            name = message.name or call.name
            results.append((place, replace(message, call_id=call.id, name=name)))
            continue
        renamed += _in_order(results)
        results = []
        if message.calls:
            new = tuple(
                replace(call, id=f"functions.{call.name}:{count + i}")
                for i, call in enumerate(message.calls)
            )
            open_calls = [(old.id, call) for old, call in zip(message.calls, new, strict=True)]
            count += len(new)
            renamed.append(replace(message, calls=new))
        else:
            renamed.append(message)
    return renamed + _in_order(results)


def _in_order(results: Sequence[tuple[int, Message]]) -> list[Message]:
    return [message for _, message in sorted(results, key=lambda pair: pair[0])]


def _role(value: object) -> Role:
    for role in ROLES:
        if value == role:
            return role
    raise InputError(
        f"A message has the role {value!r}.",
        expected=f"one of {', '.join(ROLES)}.",
        mend="Correct the role; instructions of a developer go into a system message.",
    )


def _text(source: Mapping[str, object], key: str) -> str:
    value = source.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise InputError(
        f"`{key}` of a message is of type {type(value).__name__}.",
        expected="a string or None.",
        mend=f"Convert `{key}` to a string.",
    )


def _content(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(_part(part) for part in value)
    raise InputError(
        f"The content of a message is of type {type(value).__name__}.",
        expected="a string, None or a list of text parts.",
        mend="Convert the content to a string.",
    )


def _part(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    found = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(
        f"The content of a message has a part of type {found!r}.",
        expected="parts {'type': 'text', 'text': 'text'}; this model reads text only.",
        mend="Remove the part, or describe it in words.",
    )


def _calls(value: object) -> tuple[Call, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InputError(
            f"`tool_calls` is of type {type(value).__name__}.",
            expected="a list of calls or None.",
            mend="Pass a list, also for one call.",
        )
    return tuple(_call(item) for item in value)


def _call(item: object) -> Call:
    if isinstance(item, Mapping) and item.get("type", "function") == "function":
        function = item.get("function")
        identity = item.get("id")
        if isinstance(function, Mapping) and isinstance(identity, str):
            name, arguments = function.get("name"), function.get("arguments", "{}")
            if isinstance(arguments, Mapping):
                arguments = dump_json(dict(arguments))
            if isinstance(name, str) and name and isinstance(arguments, str):
                return Call(identity, name, arguments)
    raise InputError(
        f"A tool call reads {str(item)[:120]!r}.",
        expected="{'id': text, 'type': 'function', 'function': {'name': text, 'arguments': JSON}}.",
        mend="Give each call an id, a name, and arguments as JSON text or as a dictionary.",
    )
