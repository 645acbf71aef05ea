"""Reads what the model wrote in one turn: content, thinking and tool calls.

One state machine, fed in pieces of any size: it never takes back what it gave, it takes linear
time, and it holds back a piece of text only while that could become a marker. Markers are spelt
out in the text. It checks no arguments against schemas, repairs nothing and runs nothing.
Source: the output format of moonshotai/Kimi-K2-Thinking.

The rules where the format leaves a choice:

- A tool section inside thinking does not end the thinking; thinking spans are joined by a newline.
- A call ends at the first end marker after a complete JSON value, so a marker inside a JSON string
  is data. If no JSON value can be read, it ends at the first end marker.
- A marker with the same quote character directly before and directly after it is text.
- A call that the text breaks off in is an error, never a call.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from k2lab.errors import InputError
from k2lab.text.json_scan import JsonScanner
from k2lab.text.messages import Call, Kind, Message

Start = Literal["none", "reasoning", "content"]
"""Where the text begins: `none`: in content, the model writes `<think>` itself (K2 Thinking);
`reasoning`: after a `<think>` of the prompt; `content`: thinking is off, its tags are text."""

ErrorKind = Literal[
    "truncated", "missing_argument_marker", "unresolvable_tool_id", "text_in_section"
]

Tools = Mapping[str, object]
"""Declared tools: name to JSON Schema of the arguments."""

THINK, THINK_END = "<think>", "</think>"
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = (
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
TURN_END = "<|im_end|>"
ALIASES = {  # the model sometimes writes the singular
    "<|tool_call_section_begin|>": SECTION,
    "<|tool_call_section_end|>": SECTION_END,
}
QUOTES = frozenset("\"'`")

_TOOL_MARKERS = (SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END, TURN_END, *ALIASES)
_ENDS_CALL = frozenset((SECTION, SECTION_END, CALL, CALL_END, TURN_END))
_CALL_ID = re.compile(r"(?:functions\.)?(.+):[0-9]+", re.DOTALL)

_Place = Literal["text", "section", "header", "value", "rest", "ended"]
# outside calls; between the calls of a section; in a call's id; in the JSON value of its
# arguments; after that value, or in arguments that are not JSON; after the end of the turn


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A tool call that the model wrote to its end."""

    name: str  # may be unknown to the caller
    arguments: str  # raw text, trimmed; `{}` if there was none
    id: str  # as written, trimmed; not unique
    problem: str = ""  # why the arguments are not JSON, or empty


@dataclass(frozen=True, slots=True)
class ParseError:
    """Text that did not become content, thinking or a call."""

    kind: ErrorKind
    text: str
    id: str = ""  # the id of the call, as far as it was written


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn."""

    content: str
    reasoning: str
    calls: tuple[ParsedCall, ...]
    errors: tuple[ParseError, ...]

    def as_message(self) -> Message:
        """The message to keep; a turn in canonical form renders to the text the model wrote."""
        calls = tuple(Call(call.id, call.name, call.arguments) for call in self.calls)
        return Message("assistant", self.content, self.reasoning, calls)


def parse_turn(text: str, start: Start = "none", tools: Tools | None = None) -> Turn:
    """The turn that a finished text holds; `tools` help to name calls with a damaged id."""
    parser = TurnParser(start, tools)
    parser.feed(text)
    return parser.finish()


class TurnParser:
    """Parses a turn while it is being written."""

    def __init__(self, start: Start = "none", tools: Tools | None = None) -> None:
        """At the beginning of a turn; `tools` help to name calls with a damaged id."""
        _check(start, tools)
        self._tools: Tools = tools or {}
        self._thinking = start == "reasoning"
        markers = _TOOL_MARKERS if start == "content" else (*_TOOL_MARKERS, THINK, THINK_END)
        self._markers = markers
        self._pattern = re.compile("|".join(re.escape(marker) for marker in markers))
        self._longest = max(len(marker) for marker in markers)
        self._place: _Place = "text"
        self._in_section = False
        self._finished = False
        self._held = ""  # the end of the text so far, while it could become a marker
        self._before = ""  # the character before it
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._spans = int(self._thinking)
        self._calls: list[ParsedCall] = []
        self._errors: list[ParseError] = []
        self._pieces: list[str] = []  # text of the present section stretch, header or arguments
        self._id = ""
        self._scanner = JsonScanner()
        self._value_start = 0  # where the value begins in the present data, if `_pieces` is empty

    def feed(self, chunk: str) -> None:
        """Read the next piece of text, of any length."""
        if not isinstance(chunk, str) or self._finished:
            after = " after the end" if self._finished else ""
            raise InputError(
                f"A parser was fed a {type(chunk).__name__}{after}.",
                expected="strings, and none after `finish()`.",
                mend="Decode bytes with `Utf8Stream`; use a new parser for each turn.",
            )
        self._read(self._held + chunk, final=False)

    @property
    def turn(self) -> Turn:
        """What is known so far; everything in it stays."""
        self._content = ["".join(self._content)]
        self._reasoning = ["".join(self._reasoning)]
        return Turn(self._content[0], self._reasoning[0], tuple(self._calls), tuple(self._errors))

    @property
    def kind(self) -> Kind:
        """What the next token belongs to: `thinking`, `answer` or `call`."""
        if self._place in ("text", "ended"):
            return "thinking" if self._thinking else "answer"
        return "call"

    @property
    def call_count(self) -> int:
        """The number of calls so far, without the cost of `turn`."""
        return len(self._calls)

    def finish(self) -> Turn:
        """The turn, when no more text comes."""
        if not self._finished:
            self._finished = True
            self._read(self._held, final=True)
            self._end_turn()
        turn = self.turn
        if turn.calls and not turn.content.strip():
            return Turn("", turn.reasoning, turn.calls, turn.errors)
        return turn

    def _read(self, data: str, *, final: bool) -> None:
        """Process `data`, which begins with what was held back."""
        position = 0
        self._held = ""
        while self._place != "ended":
            if self._place == "value":
                stop = self._scanner.feed(data, position)
                if final and stop == len(data):
                    self._scanner.end()
                if self._scanner.status == "open" and not final:
                    self._pieces.append(data[self._value_start :])
                    self._value_start = 0
                    self._before = data[-1:] or self._before
                    return
                if self._scanner.status == "complete":
                    self._pieces.append(data[self._value_start : stop])
                    position = stop
                elif self._pieces:  # begin again, now looking for markers
                    data, position = "".join(self._pieces) + data, 0
                    self._pieces = []
                    self._before = ">"
                else:
                    position = self._value_start
                self._place = "rest"
                continue
            found = self._next_marker(data, position, final=final)
            if isinstance(found, int):
                self._text(data[position:found])
                self._held = data[found:]
                self._before = data[found - 1] if found else self._before
                return
            self._text(data[position : found.start()])
            position = found.end()
            self._value_start = position
            self._marker(ALIASES.get(found.group(), found.group()))

    def _next_marker(self, data: str, position: int, *, final: bool) -> "re.Match[str] | int":
        """The next marker that counts, or else up to where the data is ordinary text."""
        for match in self._pattern.finditer(data, position):
            if self._place == "rest" and not self._ends_call(match.group()):
                continue
            before = data[match.start() - 1] if match.start() else self._before
            if before in QUOTES and self._quotes_count():
                if match.end() == len(data) and not final:
                    return match.start()
                if data[match.end() : match.end() + 1] == before:
                    continue
            return match
        tail = data.rfind("<", max(position, len(data) - self._longest + 1))
        if tail < 0 or not any(marker.startswith(data[tail:]) for marker in self._markers):
            return len(data)
        # after a complete value, the beginning of a marker is a broken-off end marker
        held = not final or (self._place == "rest" and self._scanner.status == "complete")
        return tail if held else len(data)

    def _quotes_count(self) -> bool:
        """Whether a marker can be quoted here; beside an id or a value, quotes are theirs."""
        if self._place == "rest":
            return self._scanner.status != "complete"
        return self._place != "header"

    def _ends_call(self, text: str) -> bool:
        marker = ALIASES.get(text, text)
        if marker in (THINK, THINK_END):
            return self._scanner.status == "complete"
        return marker in _ENDS_CALL

    def _text(self, text: str) -> None:
        if not text:
            return
        if self._place != "text":
            self._pieces.append(text)
        elif self._thinking:
            self._reasoning.append(text)
        else:
            self._content.append(text)

    def _marker(self, marker: str) -> None:
        if marker == TURN_END:
            self._end_turn()
            return
        if self._place == "header" and marker == ARGUMENTS:
            self._id = self._taken().strip()
            self._scanner = JsonScanner()
            self._place = "value"
            return
        self._end_stretch()
        match marker:
            case "<think>":
                if not self._thinking:
                    if self._spans:
                        self._reasoning.append("\n")
                    self._spans += 1
                self._thinking, self._in_section = True, False
            case "</think>":
                self._thinking, self._in_section = False, False
            case "<|tool_calls_section_begin|>":
                self._in_section = True
            case "<|tool_calls_section_end|>":
                self._in_section = False
            case "<|tool_call_begin|>":
                self._place = "header"
                return
        self._place = "section" if self._in_section else "text"

    def _end_stretch(self) -> None:
        """Close what a marker interrupts: text of a section, a header, or arguments."""
        if self._place == "section":
            self._report("text_in_section", self._taken())
        elif self._place == "header":
            header = self._taken().strip()
            self._errors.append(ParseError("missing_argument_marker", header, header))
        elif self._place == "rest":
            self._end_call()

    def _end_turn(self) -> None:
        """Close what the end of the turn interrupts."""
        if self._place == "header":
            header = self._taken().strip()
            self._errors.append(ParseError("truncated", header, header))
        elif self._place == "rest" and self._scanner.status != "complete":
            self._errors.append(ParseError("truncated", self._taken().strip(), self._id))
        else:
            self._end_stretch()
        self._place = "ended"

    def _end_call(self) -> None:
        raw = self._taken()
        arguments = raw.strip() or "{}"
        name = _name(self._id, arguments, self._tools)
        if name is None:
            self._errors.append(ParseError("unresolvable_tool_id", arguments, self._id))
            return
        problem = _problem(raw, self._scanner) if raw.strip() else ""
        self._calls.append(ParsedCall(name, arguments, self._id, problem))

    def _report(self, kind: ErrorKind, text: str) -> None:
        if text.strip():
            self._errors.append(ParseError(kind, text.strip()))

    def _taken(self) -> str:
        text = "".join(self._pieces)
        self._pieces = []
        return text


def _problem(raw: str, scanner: JsonScanner) -> str:
    rest = raw[scanner.offset :].strip()
    if scanner.status == "complete":
        return f"The JSON value is followed by {rest[:40]!r}." if rest else ""
    if not rest:
        return "The arguments end before their JSON value does."
    return f"The arguments are not JSON at character {scanner.offset}: {rest[:40]!r}."


def _name(identity: str, arguments: str, tools: Tools) -> str | None:
    """The tool's name; an id without one is resolved if exactly one declared tool fits."""
    match = _CALL_ID.fullmatch(identity)
    if match:
        return match.group(1)
    for name in (identity, identity.removeprefix("functions.")):
        if name in tools:
            return name
    if not tools:
        return None
    try:
        value = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return None
    fitting = [name for name, schema in tools.items() if _fits(value, schema)]
    return fitting[0] if len(fitting) == 1 else None


_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _fits(value: object, schema: object) -> bool:
    """Whether required keys are present, no key is unknown and simple types are right."""
    if not isinstance(schema, Mapping) or not isinstance(value, dict):
        return False
    properties, required = schema.get("properties"), schema.get("required")
    known = properties if isinstance(properties, Mapping) else {}
    if isinstance(required, list | tuple) and any(key not in list(value) for key in required):
        return False
    return all(key in known and _has_type(item, known[key]) for key, item in value.items())


def _has_type(value: object, schema: object) -> bool:
    declared = schema.get("type") if isinstance(schema, Mapping) else None
    names = [declared] if isinstance(declared, str) else declared
    if not isinstance(names, list | tuple):
        return True
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return any(isinstance(value, _TYPES.get(str(name), (object,))) for name in names)


def _check(start: object, tools: object) -> None:
    if start not in get_args(Start):
        raise InputError(
            f"The parser was told to start in {start!r}.",
            expected=f"one of {', '.join(get_args(Start))}.",
            mend="Use 'none' for Kimi K2 Thinking.",
        )
    if tools is not None and not isinstance(tools, Mapping):
        raise InputError(
            f"`tools` of the parser is of type {type(tools).__name__}.",
            expected="a mapping from tool names to JSON Schemas, or None.",
            mend="Pass {tool.name: tool.parameters for tool in tools}.",
        )
