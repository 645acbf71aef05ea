"""Guided decoding: whatever the network wants, a call is one that can be made."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from k2lab.engine.guided import Grammar, Guided
from k2lab.engine.sampling import anew, greedy, sampled, within
from k2lab.errors import InputError
from k2lab.spec.config import K2Config
from k2lab.text.parse import parse_turn
from k2lab.text.tokenizer import Tokenizer
from k2lab.world.tools import World

WIDTH = 640

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "maximum": 99}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "web-look": {
        "type": "object",
        "properties": {
            "how": {"enum": ["fast", "slow é"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
            "deep": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "required": ["how", "tags"],
        "additionalProperties": False,
    },
    "nothing": {"type": "object", "properties": {}, "additionalProperties": False},
}


@pytest.fixture(scope="module")
def grammar(tiny_tokenizer: Tokenizer) -> Grammar:
    return Grammar(tiny_tokenizer, SCHEMAS, WIDTH)


def one_call(guide: Guided, noise: torch.Generator, most: int = 3000) -> list[int]:
    """The ids of a call that a network of noise writes after it has begun one."""
    logits = torch.randn(WIDTH, generator=noise)
    logits[guide.grammar.begin] = 1e4
    ids = [guide(logits)]
    while ids[-1] != guide.grammar.end and len(ids) < most:
        ids.append(guide(3 * torch.randn(WIDTH, generator=noise)))
    return ids


def test_a_network_of_noise_writes_calls_that_fit(
    grammar: Grammar, tiny_tokenizer: Tokenizer
) -> None:
    noise, names = torch.Generator().manual_seed(0), set[str]()
    guide = Guided(grammar, sampled(temperature=1.0, seed=3))
    for _ in range(60):
        text = tiny_tokenizer.decode(one_call(guide, noise))
        (call,) = parse_turn(text).calls
        assert not call.problem and re.fullmatch(r"functions\.[\w-]+:\d{1,4}", call.id)
        Draft202012Validator(dict(SCHEMAS[call.name])).validate(json.loads(call.arguments))
        names.add(call.name)
    assert names == set(SCHEMAS)


def test_outside_of_calls_nothing_is_held_back(grammar: Grammar) -> None:
    guide, noise = Guided(grammar), torch.Generator().manual_seed(1)
    for _ in range(200):
        logits = torch.randn(WIDTH, generator=noise)
        if int(logits.argmax()) != grammar.begin:
            assert guide(logits) == greedy(logits)
    one_call(guide, noise)
    logits = torch.randn(WIDTH, generator=noise)
    assert guide(logits) == greedy(logits)  # free again after the call


def test_what_fits_is_chosen_as_without_the_guide(
    grammar: Grammar, tiny_tokenizer: Tokenizer
) -> None:
    text = 'functions.add:0<|tool_call_argument_begin|>{"a": 12, "b": 3}<|tool_call_end|>'
    from k2lab.text.template import Segment

    wanted = tiny_tokenizer.encode_segments([Segment(text, markers=True, kind="call")])
    guide, written = Guided(grammar), list[int]()
    begin = torch.zeros(WIDTH)
    begin[grammar.begin] = 9.0
    guide(begin)
    for each in wanted:
        logits = torch.zeros(WIDTH)
        logits[each] = 9.0
        written.append(guide(logits))
    assert written == wanted


def test_a_guide_begins_anew_outside_of_any_call(grammar: Grammar) -> None:
    guide = Guided(grammar, sampled(temperature=1.0, seed=3))
    begin = torch.zeros(WIDTH)
    begin[grammar.begin] = 1e4
    guide(begin)
    free = torch.zeros(WIDTH)
    free[7] = 1e4
    assert anew(guide)(free) == 7
    again = [one_call(anew(guide), torch.Generator().manual_seed(5)) for _ in range(2)]
    assert again[0] == again[1]


def test_a_guide_knows_the_call_in_which_it_goes_on(
    grammar: Grammar, tiny_tokenizer: Tokenizer
) -> None:
    ids = one_call(Guided(grammar, sampled(seed=3)), torch.Generator().manual_seed(0))
    for cut in range(1, len(ids), 5):
        guide, noise = within(Guided(grammar, sampled(seed=4)), ids[:cut]), torch.Generator()
        written = ids[:cut]
        while written[-1] != grammar.end and len(written) < 3000:
            written.append(guide(3 * torch.randn(WIDTH, generator=noise)))
        (call,) = parse_turn(tiny_tokenizer.decode(written)).calls
        assert not call.problem
        Draft202012Validator(dict(SCHEMAS[call.name])).validate(json.loads(call.arguments))
    free = torch.zeros(WIDTH)
    free[7] = 1e4
    assert within(Guided(grammar), ids)(free) == 7  # after the call


def test_the_tools_of_the_microworld_can_guide(tiny_tokenizer: Tokenizer) -> None:
    with World(0) as world:
        schemas = {each.name: each.parameters for each in world.tools()}
    made = Guided(Grammar(tiny_tokenizer, schemas, WIDTH), sampled(temperature=1.0, seed=1))
    text = tiny_tokenizer.decode(one_call(made, torch.Generator().manual_seed(2)))
    assert parse_turn(text).calls[0].name in schemas


@pytest.mark.parametrize(
    "schemas",
    [{}, {"f": {"type": "object", "properties": {"a": {"type": "strnig"}}}}],
)
def test_what_cannot_guide_is_refused(
    schemas: Mapping[str, Any], tiny_tokenizer: Tokenizer
) -> None:
    with pytest.raises(InputError):
        Grammar(tiny_tokenizer, schemas, WIDTH)


def test_wider_logits_than_the_vocabulary_are_never_chosen(
    tiny_tokenizer: Tokenizer, tiny_config: Callable[..., K2Config]
) -> None:
    guide = Guided(Grammar(tiny_tokenizer, SCHEMAS, WIDTH + 64))
    logits = torch.zeros(WIDTH + 64)
    logits[guide.grammar.begin] = 9.0
    guide(logits)
    logits = torch.zeros(WIDTH + 64)
    logits[WIDTH:] = 9.0
    assert guide(logits) < WIDTH


def test_a_guide_goes_on_with_the_draws_of_its_sampler(grammar: Grammar) -> None:
    guide = Guided(grammar, sampled(temperature=3.0, seed=4))
    logits = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    logits[grammar.begin] = -1e4
    for _ in range(5):
        guide(logits)
    again = guide.at(guide.state)
    assert [again(logits) for _ in range(20)] == [guide(logits) for _ in range(20)]


@pytest.mark.parametrize("cut", [1, 2, 7, 15])
def test_a_guide_goes_on_inside_a_call(cut: int, grammar: Grammar) -> None:
    guide, noise = Guided(grammar, sampled(temperature=1.0, seed=cut)), torch.Generator()
    begin = torch.zeros(WIDTH)
    begin[grammar.begin] = 1e4
    guide(begin)
    logits = [3 * torch.randn(WIDTH, generator=noise.manual_seed(n)) for n in range(60)]
    for each in logits[:cut]:
        guide(each)
    again = guide.at(guide.state)
    assert [again(each) for each in logits[cut:]] == [guide(each) for each in logits[cut:]]
