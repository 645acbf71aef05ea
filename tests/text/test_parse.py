"""Tests of k2lab/text/parse.py: one state machine, fed in any pieces, never taking back."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2lab.errors import InputError
from k2lab.text.messages import Call, Message
from k2lab.text.parse import ParsedCall, ParseError, Turn, TurnParser, parse_turn
from k2lab.text.template import joined, render

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
QUOTED_END = f"'{END}'}}"
OPENING = "<|im_assistant|>assistant<|im_middle|>"

FILE = Path(__file__).parents[1] / "golden" / "parser_cases.jsonl"
CASES: list[dict[str, Any]] = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def call(name: str, arguments: str, index: int = 0) -> str:
    return f"{CALL}functions.{name}:{index}{ARGS}{arguments}{END}"


STORED: list[tuple[str, str, Turn]] = [
    ("plain", "Hi.", Turn("Hi.", "", (), ())),
    ("thinking", "<think>\na </think>\nb", Turn("\nb", "\na ", (), ())),
    ("orphan close", "a</think>b", Turn("ab", "", (), ())),
    ("two spans", "<think>a</think>b<think>c</think>d", Turn("bd", "a\nc", (), ())),
    ("almost a marker", "<|im_mid|> <|tool", Turn("<|im_mid|> <|tool", "", (), ())),
    ("turn end", "a<|im_end|>b", Turn("a", "", (), ())),
    ("quoted", 'a "<think>" b', Turn('a "<think>" b', "", (), ())),
    (
        "white space before a call",
        f"<think>p</think>\n{SECTION}{call('f', '{}')}{SECTION_END}",
        Turn("", "p", (ParsedCall("f", "{}", "functions.f:0"),), ()),
    ),
    (
        "call inside thinking",
        f"<think>a{SECTION}{call('f', '')}{SECTION_END}b</think>c",
        Turn("c", "ab", (ParsedCall("f", "{}", "functions.f:0"),), ()),
    ),
    (
        "marker in a JSON string",
        call("f", f'{{"t": "{END}</think>"}}'),
        Turn("", "", (ParsedCall("f", f'{{"t": "{END}</think>"}}', "functions.f:0"),), ()),
    ),
    (
        "string without end, then a good call",
        SECTION + call("f", '{"x":"y') + call("g", '{"v": 1}', 1) + SECTION_END + "z",
        Turn(
            "z",
            "",
            (
                ParsedCall(
                    "f",
                    '{"x":"y',
                    "functions.f:0",
                    "The arguments end before their JSON value does.",
                ),
                ParsedCall("g", '{"v": 1}', "functions.g:1"),
            ),
            (),
        ),
    ),
    (
        "wrong literal",
        call("f", '{"v": fasle}'),
        Turn(
            "",
            "",
            (
                ParsedCall(
                    "f",
                    '{"v": fasle}',
                    "functions.f:0",
                    "The arguments are not JSON at character 6: 'fasle}'.",
                ),
            ),
            (),
        ),
    ),
    (
        "quoted marker in arguments that are not JSON",
        call("f", f"{{'{END}'}}"),
        Turn(
            "",
            "",
            (
                ParsedCall(
                    "f",
                    f"{{'{END}'}}",
                    "functions.f:0",
                    f"The arguments are not JSON at character 1: {QUOTED_END!r}.",
                ),
            ),
            (),
        ),
    ),
    (
        "broken off in a string",
        f"{CALL}functions.f:0{ARGS}" + '{"city": "Ro',
        Turn("", "", (), (ParseError("truncated", '{"city": "Ro', "functions.f:0"),)),
    ),
    (
        "turn ends in arguments",
        f"{CALL}functions.f:0{ARGS}" + '{"city": "Ro<|im_end|>',
        Turn("", "", (), (ParseError("truncated", '{"city": "Ro', "functions.f:0"),)),
    ),
    (
        "broken off in the end marker",
        f'{CALL}functions.f:0{ARGS}{{"a": 1}}<|tool_call_',
        Turn("", "", (ParsedCall("f", '{"a": 1}', "functions.f:0"),), ()),
    ),
    (
        "broken off in the id",
        f"{CALL}functions.f",
        Turn("", "", (), (ParseError("truncated", "functions.f", "functions.f"),)),
    ),
    (
        "no argument marker",
        f"{CALL}functions.f:0{END}a",
        Turn("a", "", (), (ParseError("missing_argument_marker", *["functions.f:0"] * 2),)),
    ),
    (
        "id without a name",
        f"{CALL}7{ARGS}{{}}{END}",
        Turn("", "", (), (ParseError("unresolvable_tool_id", "{}", "7"),)),
    ),
    (
        "text in a section",
        f"{SECTION} so {call('f', '{}')} and{SECTION_END}",
        Turn(
            "",
            "",
            (ParsedCall("f", "{}", "functions.f:0"),),
            (ParseError("text_in_section", "so"), ParseError("text_in_section", "and")),
        ),
    ),
]

ATOMS = [
    *(SECTION, SECTION_END, CALL, ARGS, END, "<think>", "</think>", "<|im_end|>"),
    *("<|tool_call_section_begin|>", "functions.f:0", "functions.g:12", "<|tool_call", "<", "|>"),
    *("{", "}", '{"a": 1}', '{"s": "', '"', "'", "`", "[", "]", ",", ":", "\\", "\\u00", "-1.5e3"),
    *("12", "true", "nul", " ", "\n", "text ", "é", "東京"),
]
generations = st.lists(st.sampled_from(ATOMS), max_size=30).map("".join)
starts = st.sampled_from(["none", "reasoning", "content"])


def fed(chunks: list[str], start: Any = "none", tools: Any = None) -> Turn:
    parser = TurnParser(start, tools)
    for chunk in chunks:
        parser.feed(chunk)
    return parser.finish()


def cut(text: str, chance: random.Random) -> list[str]:
    places = sorted(chance.choices(range(len(text) + 1), k=chance.randint(0, 12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def check_no_retraction(text: str, start: Any = "none", tools: Any = None) -> None:
    parser = TurnParser(start, tools)
    seen = [parser.turn]
    for character in text:
        parser.feed(character)
        seen.append(parser.turn)
    final = parser.finish()
    streamed = parser.turn.content  # before the rule on white space
    for turn in seen:
        assert streamed.startswith(turn.content)
        assert final.reasoning.startswith(turn.reasoning)
        assert final.calls[: len(turn.calls)] == turn.calls
        assert final.errors[: len(turn.errors)] == turn.errors


def check_case(turn: Turn, expected: dict[str, Any]) -> None:
    assert turn.content == expected["content"]
    assert turn.reasoning == expected["reasoning"]
    assert [c.name for c in turn.calls] == [c["name"] for c in expected["tool_calls"]]
    assert [c.id for c in turn.calls] == [c["id"] for c in expected["tool_calls"]]
    for found, wanted in zip(turn.calls, expected["tool_calls"], strict=True):
        if isinstance(wanted["arguments"], str):
            assert found.arguments == wanted["arguments"]
        else:
            assert json.loads(found.arguments, strict=False) == wanted["arguments"]
    assert [e.kind for e in turn.errors] == [e["kind"] for e in expected.get("errors", [])]


@each_case
def test_case_in_one_piece_per_character_and_in_random_pieces(case: dict[str, Any]) -> None:
    text, start, tools = case["text"], case.get("start", "none"), case.get("tools")
    whole = parse_turn(text, start, tools)
    check_case(whole, case["expected"])
    assert fed(list(text), start, tools) == whole
    if "chunks" in case:
        assert fed(case["chunks"], start, tools) == whole
    chance = random.Random(case["name"])
    for _ in range(200):
        assert fed(cut(text, chance), start, tools) == whole


@each_case
def test_case_is_never_taken_back(case: dict[str, Any]) -> None:
    check_no_retraction(case["text"], case.get("start", "none"), case.get("tools"))


def test_the_case_file_is_whole() -> None:
    assert len(CASES) == 62


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in STORED], ids=[c[0] for c in STORED])
def test_stored_case(text: str, expected: Turn) -> None:
    assert parse_turn(text) == expected
    assert fed(list(text)) == expected
    check_no_retraction(text)


def test_start_decides_what_think_tags_are() -> None:
    assert parse_turn("a</think>b", "reasoning") == Turn("b", "a", (), ())
    assert parse_turn("<think>a</think>b", "reasoning") == Turn("b", "a", (), ())
    assert parse_turn("<think>a</think>b", "content") == Turn("<think>a</think>b", "", (), ())


def test_a_damaged_id_is_named_only_if_one_tool_fits() -> None:
    text_tool = {"properties": {"q": {"type": "string"}}, "required": ["q"]}
    number_tool = {"properties": {"q": {"type": ["number", "null"]}}, "required": ["q"]}
    tools: dict[str, object] = {"a": text_tool, "b": number_tool, "c": True, "d": {"required": 1}}

    def name(identity: str, arguments: str) -> str | None:
        turn = parse_turn(f"{CALL}{identity}{ARGS}{arguments}{END}", tools=tools)
        return turn.calls[0].name if turn.calls else None

    assert name("3", '{"q": "tea"}') == "a"
    assert name("call_9f", '{"q": 2}') == "b"
    assert name("b", '{"q": "tea"}') == "b"
    assert name("functions.b", "{}") == "b"
    assert name("3", '{"q": true}') is None
    assert name("3", '{"q": "tea", "more": 1}') is None
    assert name("3", "[" * 100_000) is None
    assert name("functions.nobody:4", "{}") == "nobody"


@settings(max_examples=300, deadline=None)
@given(generations, starts, st.randoms(use_true_random=False))
def test_any_split_gives_the_same_turn(text: str, start: str, chance: random.Random) -> None:
    assert fed(cut(text, chance), start) == fed(list(text), start) == fed([text], start)


@settings(max_examples=300, deadline=None)
@given(generations, starts)
def test_nothing_is_ever_taken_back(text: str, start: str) -> None:
    check_no_retraction(text, start)


words = st.text(st.sampled_from("ab é\n{}[]<|:/\\東"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(ATOMS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
arguments = st.dictionaries(st.text(max_size=4), json_values, max_size=3)
names = st.from_regex(r"[A-Za-z_][\w.:-]{0,8}", fullmatch=True).map(lambda n: n.rstrip(":") + "x")
calls = st.lists(st.tuples(names, arguments), max_size=3)


@settings(max_examples=200, deadline=None)
@given(words, words, calls)
def test_a_rendered_turn_parses_back(reasoning: str, content: str, asked: Any) -> None:
    made = tuple(
        Call(f"functions.{name}:{i}", name, json.dumps(value, ensure_ascii=i % 2 == 0))
        for i, (name, value) in enumerate(asked)
    )
    if made and not content.strip():
        content = ""
    message = Message("assistant", content, reasoning, made)
    # reasoning of a final answer is dropped by design, so only the open loop is a round trip
    text = joined(render([message], system=None, generation_prompt=False))
    written = text.removeprefix(OPENING)
    turn = parse_turn(written)
    assert turn.errors == ()
    assert turn.content == content
    assert [(c.id, c.name, c.arguments) for c in turn.calls] == [
        (c.id, c.name, c.arguments) for c in made
    ]
    assert turn.reasoning == (reasoning if made else "")
    assert joined(render([turn.as_message()], system=None, generation_prompt=False)) == text


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.parametrize(
    "value",
    [
        '{"code": "' + "x" * 1_000_000 + '"}',
        '{"code": "' + "\\n<|" * 250_000 + '"}',
        "[" * 500_000 + "]" * 500_000,
        '{"a":' * 200_000,
        "1" * 1_000_000,
        ('"' + END + CALL + "f:0" + ARGS) * 12_000,
        ('["' + END + CALL + "f:0" + ARGS) * 12_000,
        ("{" + END + CALL + "f:0" + ARGS) * 12_000,
    ],
    ids=["string", "escapes", "nesting", "objects", "digits", "quotes", "lists", "braces"],
)
def test_a_megabyte_of_arguments_takes_linear_time(value: str, size: int) -> None:
    text = f"{SECTION}{CALL}functions.f:0{ARGS}{value}{END}{SECTION_END}done"
    begin = time.process_time()
    turn = fed([text[i : i + size] for i in range(0, len(text), size)])
    assert time.process_time() - begin < 15  # quadratic time would be minutes
    assert turn.calls or turn.errors


def test_a_megabyte_of_text_takes_linear_time() -> None:
    text = '"<think>" and "<' * 60_000
    begin = time.process_time()
    assert fed(list(text)).content == text
    assert time.process_time() - begin < 15


def test_the_kind_of_the_next_token_follows_the_state() -> None:
    parser = TurnParser()
    kinds = []
    for piece in ["a", "<think>", "b", "</think>", SECTION, CALL, "f:0", ARGS, "{}", END]:
        parser.feed(piece)
        kinds.append(parser.kind)
    assert kinds == ["answer", "thinking", "thinking", "answer", *["call"] * 6]
    parser.feed(SECTION_END)
    assert (parser.kind, parser.call_count) == ("answer", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: parse_turn(b"bytes"),  # type: ignore[arg-type]
        lambda: parse_turn(None),  # type: ignore[arg-type]
        lambda: parse_turn("a", "thinking"),  # type: ignore[arg-type]
        lambda: parse_turn("a", ["none"]),  # type: ignore[arg-type]
        lambda: parse_turn("a", tools=[{}]),  # type: ignore[arg-type]
        lambda: TurnParser().feed(3),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_is_an_input_error(wrong: Any) -> None:
    with pytest.raises(InputError, match="Expected"):
        wrong()


def test_nothing_can_be_fed_after_the_end() -> None:
    parser = TurnParser()
    assert parser.finish() == parser.finish()
    with pytest.raises(InputError, match="after the end"):
        parser.feed("a")
