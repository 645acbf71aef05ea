"""Tests of k2lab/text/shield.py: spelt markers stay text, and nothing else changes."""

from hypothesis import given
from hypothesis import strategies as st

from k2lab.text.parse import TurnParser
from k2lab.text.shield import SHIELD, shielded, unshielded

CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
)


PARTS = st.sampled_from([*'ab <|>/{}"\n', "<think>", "</think>", CALL, "<|im_end|>"])


@given(st.lists(PARTS).map("".join))
def test_shielded_text_comes_back_as_content(text: str) -> None:
    parser = TurnParser()
    for character in text:
        parser.feed(shielded(character))
    turn = unshielded(parser.finish())
    assert turn.content == text
    assert not turn.reasoning
    assert not turn.calls


def test_arguments_with_angle_brackets_come_back_as_written() -> None:
    parser = TurnParser()
    parser.feed("<|tool_calls_section_begin|><|tool_call_begin|>")
    parser.feed(shielded("functions.f:0"))
    parser.feed("<|tool_call_argument_begin|>")
    parser.feed(shielded('{"html": "<b>1 < 2</b>"}'))
    parser.feed("<|tool_call_end|><|tool_calls_section_end|>")
    turn = unshielded(parser.finish())
    assert turn.calls[0].arguments == '{"html": "<b>1 < 2</b>"}'
    assert SHIELD not in repr(turn)
