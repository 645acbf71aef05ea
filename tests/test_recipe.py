"""The cell of code: what it says, and what it refuses to say."""

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2lab.agent.tools import tool
from k2lab.engine.capture import FULL, Level, attention, scores
from k2lab.engine.edits import ZeroExperts
from k2lab.engine.sampling import greedy, sampled
from k2lab.errors import InputError
from k2lab.model.load import Places
from k2lab.recipe import Recipe, Source, cell

HERE = Source(Path("/some folder/it's"), "resident")


def recipe(**changes: Any) -> Recipe:
    made = {"conversation": "Hi", "tools": None, "sampler": greedy, "max_tokens": 9}
    return Recipe(**{**made, **changes})


def test_the_cell_names_checkpoint_sampler_and_limit() -> None:
    assert cell([recipe(sampler=sampled(temperature=0.5, seed=3))], HERE) == (
        "import k2lab\n"
        "from k2lab.engine.sampling import sampled\n"
        "\n"
        "lab = k2lab.load(\"/some folder/it's\", placement='resident')\n"
        "run = lab.run('Hi', sampler=sampled(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0, "
        "seed=3), max_tokens=9).wait()\n"
        "run\n"
    )


def test_the_cell_loads_with_the_same_budget() -> None:
    places = Places(placement="tiered", device_budget="12MB", prefetch=True)
    made = cell([recipe()], Source(Path("some"), places))
    assert "k2lab.load('some', placement='tiered', device_budget='12MB', prefetch=True)\n" in made


def test_edits_open_a_block_and_branches_follow() -> None:
    zero = ZeroExperts(layer=4, experts=(12,))
    line = [
        recipe(edits=(zero,)),
        recipe(edits=(zero,), at=17, given=(5,)),
        recipe(at=20, given=(5, 6), sampler=sampled(seed=1)),
        recipe(at=21),
    ]
    text = cell(line, HERE)
    assert "import greedy, sampled\n" in text
    assert (
        "with lab.edit(\n"
        "    {'do': 'zero', 'layer': 4, 'experts': [12]},\n"
        "):\n"
        "    run = lab.run('Hi', sampler=greedy, max_tokens=9).wait()\n"
        "branch = run.branch(17, token=5, sampler=greedy, max_tokens=9, "
        "edits=[{'do': 'zero', 'layer': 4, 'experts': [12]}]).wait()\n"
        "branch_2 = branch.branch(20, token=[5, 6], "
    ) in text
    assert text.endswith("branch_3 = branch_2.branch(21, sampler=greedy, max_tokens=9, edits=[])"
                         ".wait()\nbranch_3\n")  # fmt: skip


def test_what_was_captured_is_captured_again() -> None:
    assert ", capture='full').wait()" in cell([recipe(capture=FULL), recipe(at=3)], HERE)
    level = attention(3, heads=(0, 1)) | scores(2)
    text = cell([recipe(capture=level)], HERE)
    assert "from k2lab.engine.capture import Level\n" in text
    assert f"capture={level!r}).wait()" in text
    assert eval(repr(level), {"Level": Level}) == level


@given(st.text().filter(str.strip))
def test_any_question_stays_one_string(question: str) -> None:
    (call,) = [
        node
        for node in ast.walk(ast.parse(cell([recipe(conversation=question)], HERE)))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run"
    ]
    assert ast.literal_eval(call.args[0]) == question


def test_messages_and_tools_of_ones_own_are_written_out() -> None:
    @tool
    def look() -> str:
        """Look."""
        return ""

    messages = [{"role": "user", "content": "Hi"}]
    text = cell([recipe(conversation=messages, tools=(look,))], HERE)
    assert "lab.run([{'role': 'user', 'content': 'Hi'}], tools=[look], sampler=greedy" in text


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        (Source(None), {}, "memory"),
        (Source(Path("x"), object()), {}, "memory"),
        (HERE, {"sampler": lambda logits: 0}, "sampler"),
        (HERE, {"tap": lambda site, value: value}, "tap"),
        (HERE, {"conversation": [{"role": "user", "content": b"x"}]}, "JSON"),
    ],
)
def test_what_is_not_data_cannot_be_written(source: Source, changes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cell([recipe(**changes)], source)


@pytest.mark.parametrize("conversation", ["", "  \n", []])
def test_a_run_is_asked_something(conversation: Any) -> None:
    with pytest.raises(InputError, match="The conversation is"):
        recipe(conversation=conversation)
