"""K2-nano's vocabulary: any text, one token per digit, names the same with and without a space."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2lab.text.tokenizer import Tokenizer
from k2lab.train.vocabulary import SPECIALS, learn

TEXTS = ["Ada sells a tent to Ben. Ada sells 12 tents.", "Ben sells a lamp for 340 coins, Ada."] * 3
NAMES = frozenset({"Ada", "Ben"})


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return learn(TEXTS, NAMES, ranks=320)


def test_a_name_is_the_same_token_with_and_without_a_space(learned: Tokenizer) -> None:
    (name,) = learned.encode("Ada")
    assert learned.encode(" Ada")[-1] == name
    assert learned.encode("to Ada")[-1] == name
    (alone,), spaced = learned.encode("sells"), learned.encode(" sells")
    assert len(spaced) == 1  # other words do merge with their space
    assert spaced[0] != alone


def test_each_digit_is_a_token(learned: Tokenizer) -> None:
    assert [learned.piece(i) for i in learned.encode("12340")] == list("12340")


def test_ranks_and_specials_have_their_places(learned: Tokenizer) -> None:
    assert learned.n_vocab == 320 + 256
    for name, distance in SPECIALS:
        assert learned.special(name) == 320 + distance
    assert learned.special("[PAD]") == learned.n_vocab - 1


def test_specials_stand_where_kimi_has_them() -> None:
    kimi = {
        "[BOS]": 163584,
        "[EOS]": 163585,
        "<|im_end|>": 163586,
        "<|im_user|>": 163587,
        "<|im_assistant|>": 163588,
        "<|im_system|>": 163594,
        "<|tool_calls_section_begin|>": 163595,
        "<|tool_call_end|>": 163599,
        "<|im_middle|>": 163601,
        "<think>": 163606,
        "</think>": 163607,
        "[PAD]": 163839,
    }
    distances = dict(SPECIALS)
    assert {name: distances[name] + 163584 for name in kimi} == kimi


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = _small()
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_learning_is_a_function_of_the_text(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path / "a")
    learn(TEXTS, NAMES, ranks=320).save(tmp_path / "b")
    for name in ("tiktoken.model", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_saved_vocabulary_is_read_back_with_its_habits(
    learned: Tokenizer, tmp_path: Path
) -> None:
    learned.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.encode(TEXTS[0]) == learned.encode(TEXTS[0])
    assert again.lab == learned.lab
    assert again.lab["declare_tools"] is False


@pytest.mark.parametrize("ranks", [256, 257, 300, 700])
def test_any_number_of_ranks_can_be_filled(ranks: int) -> None:
    tokenizer = learn(["a b"], frozenset(), ranks=ranks)
    assert tokenizer.n_vocab == ranks + 256
    assert tokenizer.decode(tokenizer.encode("a b ü")) == "a b ü"


_KEPT: list[Tokenizer] = []


def _small() -> Tokenizer:
    if not _KEPT:
        _KEPT.append(learn(TEXTS, NAMES, ranks=320))
    return _KEPT[0]
