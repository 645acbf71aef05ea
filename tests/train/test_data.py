"""Training data: the mask covers the model's own words and nothing else; the order is fixed."""

import re
from itertools import islice, takewhile
from operator import ge
from random import Random

import pytest
import torch

from k2lab.text.parse import parse_turn
from k2lab.text.template import joined, render
from k2lab.text.tokenizer import Tokenizer
from k2lab.train import data
from k2lab.train.data import (
    Document,
    batches,
    chain,
    document,
    documents,
    padded,
    passage,
    passages,
    pool,
    segments,
)
from k2lab.world.tasks import FAMILIES, Task, generate


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return list(generate(5, 60, split="train"))


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POOL", 24)
    monkeypatch.setattr(data, "PASSAGE_EVERY", 12)
    monkeypatch.setattr(data, "CHAIN_EVERY", 24)


def turns_said(made: Document, tokenizer: Tokenizer) -> list[str]:
    """The text of each unbroken run of tokens that are the model's own."""
    turns: list[list[int]] = [[]]
    for token, said in zip(made.ids, made.said, strict=True):
        if said:
            turns[-1].append(token)
        elif turns[-1]:
            turns.append([])
    return [tokenizer.decode(turn) for turn in turns if turn]


def test_said_covers_exactly_the_assistants_tokens(
    tasks: list[Task], tiny_tokenizer: Tokenizer
) -> None:
    with_calls = with_turns = 0
    for task in tasks:
        own = [message for message in task.messages if message["role"] == "assistant"]
        made = documents(task, tiny_tokenizer)
        said = [text for each in made for text in turns_said(each, tiny_tokenizer)]
        assert made[-1] == document(task, tiny_tokenizer)
        assert len(said) == len(own)  # each turn of the model is learned once
        for text, message in zip(said, own, strict=True):
            assert text.startswith("<think>")
            assert text.endswith("<|im_end|>")  # ending the turn is the model's own choice
            turn = parse_turn(text)
            assert not turn.errors
            assert turn.content == (message["content"] or "")
            assert turn.reasoning == (message.get("reasoning_content") or "")
            wanted = [call["function"]["name"] for call in message.get("tool_calls") or ()]
            assert [call.name for call in turn.calls] == wanted
            with_calls += bool(wanted)
        with_turns += len(made) > 1
    assert with_calls
    assert with_turns


def test_what_is_not_said_is_what_the_model_is_given(
    tasks: list[Task], tiny_tokenizer: Tokenizer
) -> None:
    for task in tasks[:20]:
        made = document(task, tiny_tokenizer)
        given = [i for i, said in zip(made.ids, made.said, strict=True) if not said]
        text = tiny_tokenizer.decode(given)
        assert "<think>" not in text.replace("<think></think>", "")  # earlier thinking is gone
        assert text.count("<|im_assistant|>assistant<|im_middle|>") == sum(
            message["role"] == "assistant" for message in task.messages
        )
        assert all(m["content"] in text for m in task.messages if m["role"] in ("user", "system"))


def test_what_is_learned_is_what_is_generated(tasks: list[Task]) -> None:
    for task in tasks[:20]:
        *before, _ = task.messages
        prompt = joined(render(before, system=None, generation_prompt=True))
        assert joined(segments(task)).startswith(prompt)


def test_only_markers_of_the_template_are_special(
    tasks: list[Task], tiny_tokenizer: Tokenizer
) -> None:
    for task in tasks[:20]:
        parts = segments(task)
        made = document(task, tiny_tokenizer)
        count = sum(part.markers for part in parts)
        assert sum(tiny_tokenizer.is_special(i) for i in made.ids) == count


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_becomes_documents_that_say_what_was_rendered(
    family: str, tiny_tokenizer: Tokenizer
) -> None:
    for task in generate(8, 10, split="train", families=[family]):
        made = documents(task, tiny_tokenizer)
        assert len(made) == sum(message["role"] == "user" for message in task.messages)
        assert tiny_tokenizer.decode(made[-1].ids) == joined(segments(task))
        assert all(any(each.said) for each in made)


def test_padding_is_never_said() -> None:
    rows = [Document((1, 2, 3), (False, True, True)), Document((4,), (True,))]
    batch = padded(rows, 9)
    assert batch.ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch.said.tolist() == [[False, True, True], [True, False, False]]
    assert batch.tokens == 6


@pytest.mark.usefixtures("small_pools")
def test_batches_keep_to_their_size(tiny_tokenizer: Tokenizer) -> None:
    for _, batch in islice(batches(1, tiny_tokenizer, tokens=2000), 12):
        assert batch.ids.shape == batch.said.shape
        assert batch.tokens <= 2000 or len(batch.ids) == 1
        assert batch.said.any(-1).all()


@pytest.mark.usefixtures("small_pools")
def test_long_chains_are_learned_together(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CHAIN_EVERY", 12)  # two in a pool
    made = batches(3, tiny_tokenizer, tokens=1500, together=2)
    long = [batch.tokens > 1500 for index, batch in takewhile(lambda each: each[0] < 3, made)]
    assert any(long) and not all(long) and len(long) % 2 == 0
    assert long[::2] == long[1::2]


@pytest.mark.usefixtures("small_pools")
def test_a_later_pool_can_be_the_first(tiny_tokenizer: Tokenizer) -> None:
    whole = list(islice(batches(3, tiny_tokenizer, tokens=2000), 40))
    assert {index for index, _ in whole} >= {0, 1}
    later = [batch for index, batch in whole if index == 1]
    again = [
        batch
        for _, batch in islice(batches(3, tiny_tokenizer, tokens=2000, first_pool=1), len(later))
    ]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(later, again, strict=True))


@pytest.mark.usefixtures("small_pools")
def test_order_depends_on_the_seed_alone(tiny_tokenizer: Tokenizer) -> None:
    def ids(seed: int) -> list[list[list[int]]]:
        stream = batches(seed, tiny_tokenizer, tokens=2000)
        return [batch.ids.tolist() for _, batch in islice(stream, 5)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_a_passage_is_the_question_and_the_end_of_the_chain(tiny_tokenizer: Tokenizer) -> None:
    (task,) = generate(4, 1, split="train", families=["queue"], queue_length=30)
    whole = document(task, tiny_tokenizer)
    part = passage(task, tiny_tokenizer, 5)
    size = part.said.index(True)  # what is read only: the question, a thought, a call, its result
    assert part.ids[size:] == whole.ids[-len(part.ids) + size :]
    assert part.said[size:] == whole.said[-len(part.ids) + size :]
    text = tiny_tokenizer.decode(list(part.ids))
    assert text.startswith("<|im_user|>") and task.question in text
    assert [f"next_item:{k}<" in text for k in (25, 26, 30)] == [False, True, True]
    assert passage(task, tiny_tokenizer, 31) == whole


def test_of_a_whole_chain_the_last_calls_are_learned(tiny_tokenizer: Tokenizer) -> None:
    (task,) = generate(4, 1, split="train", families=["queue"], queue_length=30)
    made, whole = chain(task, tiny_tokenizer, Random(1)), document(task, tiny_tokenizer)
    assert made.ids == whole.ids
    first = made.said.index(True)
    assert made.said[first:] == whole.said[first:]
    assert _learned(made, tiny_tokenizer) == [*range(19, 31)]


def test_of_a_long_chain_a_stretch_of_each_part_is_learned_too(tiny_tokenizer: Tokenizer) -> None:
    (task,) = generate(4, 1, split="train", families=["queue"], queue_length=150)
    made, whole = chain(task, tiny_tokenizer, Random(1)), document(task, tiny_tokenizer)
    assert made.ids == whole.ids and all(map(ge, whole.said, made.said))
    calls = _learned(made, tiny_tokenizer)
    first, second, last = calls[:12], calls[12:24], calls[24:]
    assert (first[-1] - first[0], second[-1] - second[0]) == (11, 11)
    assert 0 <= first[0] <= 48 and 60 <= second[0] <= 108
    assert last == [*range(139, 151)]
    assert chain(task, tiny_tokenizer, Random(2)) != made


def _learned(made: Document, tokenizer: Tokenizer) -> list[int]:
    """Numbers of the calls that are learned."""
    text = tokenizer.decode([i for i, s in zip(made.ids, made.said, strict=True) if s])
    return [int(found) for found in re.findall(r"next_item:(\d+)<", text)]


@pytest.mark.usefixtures("small_pools")
def test_a_pool_holds_ends_of_long_chains(tiny_tokenizer: Tokenizer) -> None:
    made = passages(3, tiny_tokenizer)
    assert made == passages(3, tiny_tokenizer) and made != passages(4, tiny_tokenizer)
    assert any("next_item:0<" not in tiny_tokenizer.decode(list(each.ids)) for each in made)
    held = {each.ids for each in pool(3, 0, tiny_tokenizer)}
    assert {each.ids for each in made} <= held


def test_a_pool_may_hold_more_of_some_families(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "POOL", 64)

    def repeated(more: data.Weights) -> int:
        texts = [tiny_tokenizer.decode(each.ids) for each in pool(3, 0, tiny_tokenizer, more)]
        return sum("wrong. Try again." in text for text in texts)

    assert repeated((("reflect", 99.0),)) > 4 * repeated(())
    assert repeated((("reflect", 0.0),)) == 0
