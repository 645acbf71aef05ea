"""The chat template of Kimi K2 Thinking: messages to text segments.

A segment says whether special tokens may be read from its text. Only the template's own markers
may; everything that a person, a tool, a file or the model wrote is ordinary text, so no message
can close itself or open another. This is not Jinja and makes no token ids: `Tokenizer` does.
Source: the published template of moonshotai/Kimi-K2-Thinking.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from k2lab.errors import InputError
from k2lab.text.messages import Call, Kind, Message, Role, dump_json, message_from_dict

DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
"""The system message of a conversation that does not begin with one."""

HEADERS: Mapping[Role, tuple[str, Kind]] = {
    "system": ("<|im_system|>", "system"),
    "user": ("<|im_user|>", "user"),
    "assistant": ("<|im_assistant|>", "answer"),
    "tool": ("<|im_system|>", "result"),
}
"""The marker that opens a message of each role, and the kind of its content."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt."""

    text: str
    markers: bool  # special tokens may be read from this text
    kind: Kind


def render(
    messages: Sequence[Message | Mapping[str, object]],
    *,
    tools: Sequence[Mapping[str, object]] | None = None,
    system: str | None = DEFAULT_SYSTEM,
    generation_prompt: bool = True,
) -> list[Segment]:
    """The segments of the prompt: tools, system message, messages, opening of the next turn.

    `tools` are declarations in the OpenAI format. `system` is used if the first message is not a
    system message; None leaves it out. The model itself writes `<think>` after the opening.
    """
    conversation = [_message(message) for message in messages]
    segments: list[Segment] = []
    if tools:
        segments += _framed("system", "tool_declare", [_plain(declaration(tools), "system")])
    if system is not None and (not conversation or conversation[0].role != "system"):
        segments += _framed("system", "system", [_plain(system, "system")])
    settled = _settled(conversation)
    for place, message in enumerate(conversation):
        segments += _rendered(message, keep_reasoning=place >= settled)
    if generation_prompt:
        segments += _header("assistant", "assistant")
    return [segment for segment in segments if segment.text]


def joined(segments: Sequence[Segment]) -> str:
    """The text of the prompt, markers spelt out."""
    return "".join(segment.text for segment in segments)


def declaration(tools: Sequence[Mapping[str, object]]) -> str:
    """Compact JSON of the tools, keys sorted at every depth, as the model was trained to read."""
    if isinstance(tools, str | Mapping) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(
            f"`tools` is of type {type(tools).__name__}.",
            expected="a list of tool declarations, each a dictionary in the OpenAI format.",
            mend="Use `k2lab.agent.tools.declare` to describe the tools.",
        )
    plain = json.loads(dump_json([dict(tool) for tool in tools]))
    return json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _message(message: Message | Mapping[str, object]) -> Message:
    return message if isinstance(message, Message) else message_from_dict(message)


def _settled(messages: Sequence[Message]) -> int:
    """The number of messages up to the last final answer; thinking is dropped in these."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role == "assistant" and not messages[place].calls:
            return place + 1
    return 0


def _rendered(message: Message, *, keep_reasoning: bool) -> list[Segment]:
    if message.role == "assistant":
        body = _assistant(message, message.reasoning if keep_reasoning else "")
    elif message.role == "tool":
        body = [_plain(f"## Return of {message.call_id}\n{message.content}", "result")]
    else:
        body = [_plain(message.content, HEADERS[message.role][1])]
    return _framed(message.role, message.name or message.role, body)


def _assistant(message: Message, reasoning: str) -> list[Segment]:
    body = [_marker("<think>"), _plain(reasoning, "thinking"), _marker("</think>")]
    body.append(_plain(message.content, "answer"))
    if message.calls:
        body.append(_marker("<|tool_calls_section_begin|>"))
        for call in message.calls:
            body += _call(call)
        body.append(_marker("<|tool_calls_section_end|>"))
    return body


def _call(call: Call) -> list[Segment]:
    return [
        _marker("<|tool_call_begin|>"),
        _plain(call.id, "call"),
        _marker("<|tool_call_argument_begin|>"),
        _plain(call.arguments, "call"),
        _marker("<|tool_call_end|>"),
    ]


def _framed(role: Role, name: str, body: list[Segment]) -> list[Segment]:
    return [*_header(role, name), *body, _marker("<|im_end|>")]


def _header(role: Role, name: str) -> list[Segment]:
    # The name in the header is framing, like its markers, but may come from outside: plain text.
    return [_marker(HEADERS[role][0]), _plain(name, "marker"), _marker("<|im_middle|>")]


def _marker(text: str) -> Segment:
    return Segment(text, markers=True, kind="marker")


def _plain(text: str, kind: Kind) -> Segment:
    return Segment(text, markers=False, kind=kind)
