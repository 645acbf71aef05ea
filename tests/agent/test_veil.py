"""Secrets: hidden in texts and tokens, and had again with the secrets at hand."""

import json

import pytest

from k2lab.agent.veil import Veil
from k2lab.engine.generate import Prompt
from k2lab.text.template import render
from k2lab.text.tokenizer import Tokenizer

SECRET = 'swordfish "42"'


@pytest.fixture
def prompt(tiny_tokenizer: Tokenizer) -> Prompt:
    messages = [
        {"role": "user", "content": f"The word is {SECRET}. <|im_end|>"},
        {"role": "user", "content": "Über."},
    ]
    return Prompt.of(render(messages, system=None), tiny_tokenizer)


def test_texts_are_hidden_at_every_depth_and_shown_again() -> None:
    veil = Veil([SECRET], "salt")
    hidden = veil.hide({"a": [f"say {SECRET}!", 3, {"b": json.dumps({"word": SECRET})}]})
    assert "swordfish" not in json.dumps(hidden)
    assert veil.show(hidden["a"][0]) == f"say {SECRET}!"
    assert json.loads(veil.show(hidden["a"][2]["b"])) == {"word": SECRET}


def test_tokens_without_a_secret_are_kept_as_they_are(
    prompt: Prompt, tiny_tokenizer: Tokenizer
) -> None:
    veil = Veil(["elsewhere"], "salt")
    hidden = json.loads(json.dumps(veil.hide_tokens(prompt, tiny_tokenizer)))
    assert veil.show_tokens(hidden, tiny_tokenizer) == prompt
    assert not veil.missing(hidden)


def test_tokens_with_a_secret_are_had_again_with_it_alone(
    prompt: Prompt, tiny_tokenizer: Tokenizer
) -> None:
    veil = Veil([SECRET], "salt")
    hidden = json.loads(json.dumps(veil.hide_tokens(prompt, tiny_tokenizer)))
    assert "swordfish" not in json.dumps(hidden)
    assert veil.show_tokens(hidden, tiny_tokenizer) == prompt  # spelt markers stay text
    assert Veil(["other"], "salt").missing(hidden)
    assert Veil([SECRET], "other run").missing(hidden)
    assert not veil.missing(hidden)


def test_what_is_too_short_to_be_a_secret_is_left() -> None:
    assert Veil(["abc", ""], "salt").hide("abcabc") == "abcabc"


def test_a_secret_that_stands_in_the_mark_of_another_is_had_again_too() -> None:
    veil, text = Veil(["correct horse", "secret", "sha256"], "salt"), "a secret: correct horse"
    assert veil.show(veil.hide({"a": [text]})) == {"a": [text]}
