"""Damaged turns for the parser: no exception, nothing taken back, the same in any pieces.

Whole turns as a K2 writes them are damaged at random: characters deleted, doubled, exchanged, cut
off; markers put in; parts of another turn spliced in. Each is parsed at once and in random pieces,
from any place where a turn may begin, with and without knowledge of the tools.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from k2lab.evals.puppet import calls
from k2lab.text.parse import (
    ALIASES,
    ARGUMENTS,
    CALL,
    CALL_END,
    SECTION,
    SECTION_END,
    THINK,
    THINK_END,
    TURN_END,
    Start,
    Tools,
    Turn,
    TurnParser,
    parse_turn,
)

MARKERS = (
    *(ARGUMENTS, CALL, CALL_END, SECTION, SECTION_END, THINK, THINK_END, TURN_END),
    *ALIASES,
)
ODD = (
    "",
    "<",
    "|>",
    '"',
    "\\",
    "'",
    "`",
    "{",
    "}",
    "[",
    "]",
    ":",
    "\n",
    "\ud800",
    "é",
    "\x00",
    " ",
)
WORDS = ("Let me look.", "So 42.", 'He said "<think>".', "a < b", "```json\n{}\n```", "Ärger", "")
ARGUMENT_TEXTS = (
    "{}", '{"a": 1}', '{"path": "C:\\\\x\\n"}', '{"t": "<|tool_call_end|>"}', '{"a": [1, {"b":2}]}',
    '{"a": 1', "please", '{"code": "if a < b:\\n  print(\\"</think>\\")"}', '"text"', "",
)  # fmt: skip
PIECES = 4  # random cuts of each mutant
STARTS: tuple[Start, ...] = ("none", "none", "reasoning", "content")
TOOLS: Tools = {
    "f": {"type": "object", "properties": {"a": {}}, "required": ["a"]},
    "fs.read": {"type": "object", "properties": {"path": {"type": "string"}}},
}


@dataclass(frozen=True, slots=True)
class Mutants:
    """What became of the mutants."""

    tried: int
    raised: int  # that ended in an exception
    retracted: int  # of which something was taken back
    split: int  # that gave another turn in pieces
    seconds: float


def mutants(count: int, seed: int = 0) -> Mutants:
    """This many mutants, from a seed."""
    began, raised, retracted, split = time.perf_counter(), 0, 0, 0
    draw = Random(seed)
    for _ in range(count):
        text, start = mutant(draw), draw.choice(STARTS)
        tools = draw.choice((None, TOOLS))
        try:
            kept, turn = in_pieces(text, draw, start, tools)
            retracted += not kept
            split += turn != parse_turn(text, start, tools)
        except Exception:  # noqa: BLE001 - counted: none may happen
            raised += 1
    return Mutants(count, raised, retracted, split, time.perf_counter() - began)


def mutant(draw: Random) -> str:
    """A damaged turn."""
    text = _turn(draw)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        start = draw.randint(0, len(text))
        stop = min(len(text), start + draw.choice((0, 1, 2, 8, 30)))
        match draw.randrange(6):
            case 0:
                text = text[:start] + text[stop:]
            case 1:
                text = text[:stop] + text[start:]
            case 2:
                text = text[:start] + draw.choice(MARKERS) + text[start:]
            case 3:
                text = text[:start] + draw.choice(ODD) + text[stop:]
            case 4:
                text = text[:start]
            case 5:
                other = _turn(draw)
                text = text[:start] + other[draw.randint(0, len(other)) :]
    return text


def in_pieces(
    text: str, draw: Random, start: Start = "none", tools: Tools | None = None
) -> tuple[bool, Turn]:
    """Whether nothing was taken back, and the turn, when the text comes in random pieces."""
    cuts = sorted(draw.randint(0, len(text)) for _ in range(PIECES))
    parser, before, kept = TurnParser(start, tools), Turn("", "", (), ()), True
    for begin, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parser.feed(text[begin:stop])
        now = parser.turn
        kept = kept and _extends(before, now)
        before = now
    turn = parser.finish()
    blank = turn.calls and not turn.content and not before.content.strip()
    return kept and (bool(blank) or _extends(before, turn)), turn


def _extends(before: Turn, now: Turn) -> bool:
    return (
        now.content.startswith(before.content)
        and now.reasoning.startswith(before.reasoning)
        and now.calls[: len(before.calls)] == before.calls
        and now.errors[: len(before.errors)] == before.errors
    )


def _turn(draw: Random) -> str:
    return "".join(_parts(draw)) + draw.choice((TURN_END, TURN_END, ""))


def _parts(draw: Random) -> Iterator[str]:
    if draw.random() < 0.8:
        yield f"{THINK}{draw.choice(WORDS)}{draw.choice((THINK_END, THINK_END, THINK_END, ''))}"
    yield draw.choice(WORDS)
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        asked = [
            (draw.choice(("f", "web-search", "fs.read")), str(n), draw.choice(ARGUMENT_TEXTS))
            for n in range(draw.choice((1, 1, 2, 5)))
        ]
        yield calls(*asked) + draw.choice(("", "", draw.choice(WORDS)))
