"""Tests of k2lab/text/tokenizer.py: golden ids, and no special id from anybody's text."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2lab.errors import InputError, TokenizerError
from k2lab.text.template import DEFAULT_SYSTEM, Segment, joined, render
from k2lab.text.tokenizer import KIMI_PATTERN, Tokenizer, Utf8Stream

KIMI = Path(__file__).parents[2].parent / "shared" / "data" / "kimi"

PIECES = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", b" w", b"12"]
RANKS = {piece: rank for rank, piece in enumerate(PIECES)}
NAMES = (
    *("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_middle|>", "<think>", "</think>"),
)
SPECIALS = {name: len(RANKS) + 2 * place for place, name in enumerate(NAMES)}
SMALL = Tokenizer(RANKS, SPECIALS, lab={"name": "small", "declare_tools": False})

GOLDEN = {
    "Hello, world!": [19180, 11, 2695, 0],
    "user": [2482],
    "assistant": [69702],
    "tool_declare": [20960, 35556, 677],
    "functions.get_weather:0": [41937, 1150, 21055, 2800, 25, 15],
    "## Return of functions.get_weather:0\n": [
        *(798, 6014, 318, 8271, 1150, 21055, 2800, 25, 15, 198),
    ],
    "I'm can't 12345 你好世界 mixed中文English\n\n  x": [
        *(17172, 8971, 220, 6694, 2899, 220, 33845, 2243, 15682, 16717, 44372, 382, 220, 1288),
    ],
}


@pytest.fixture(scope="module")
def kimi() -> Tokenizer:
    if not KIMI.exists():
        pytest.skip("../shared/data/kimi is absent")
    return Tokenizer.from_folder(KIMI)


@pytest.mark.parametrize("text", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_ids_of_kimi(kimi: Tokenizer, text: str) -> None:
    assert kimi.encode(text) == GOLDEN[text]
    assert kimi.decode(GOLDEN[text]) == text


def test_golden_ids_of_the_default_system_message(kimi: Tokenizer) -> None:
    assert kimi.encode_segments(render([], generation_prompt=False)) == [
        *(163594, 14062, 163601, 3900, 554, 24980, 72, 11, 519, 22572, 26626, 5232, 673, 30218),
        *(10065, 22572, 13, 163586),
    ]


def test_special_ids_of_kimi(kimi: Tokenizer) -> None:
    assert kimi.n_vocab == 163_840
    assert len(kimi.specials) == 256
    assert kimi.special("<think>") == 163_606
    assert kimi.special("<|reserved_token_163589|>") == 163_589
    assert kimi.piece(163_839) == "[PAD]"
    assert [kimi.is_special(i) for i in (163_583, 163_584, 163_839, 163_840)] == [
        *(False, True, True, False),
    ]


def test_kimi_survives_saving(kimi: Tokenizer, tmp_path: Path) -> None:
    kimi.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.specials == kimi.specials
    assert (tmp_path / "tiktoken.model").read_bytes() == (KIMI / "tiktoken.model").read_bytes()
    ours = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    theirs = json.loads((KIMI / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert ours == theirs


def test_the_pattern_cuts_as_kimi_does() -> None:
    assert KIMI_PATTERN.count("|'re|") == 2
    pieces = (b"hello", b" ", b"hello", b" ", b"12", b"3", b"4")
    assert SMALL.encode("hello hello 1234") == [RANKS[piece] for piece in pieces]
    assert SMALL.encode("hello") == [RANKS[b"hello"]]
    assert SMALL.encode("你好a") == list("你好a".encode())


def test_saving_and_reading_gives_the_same_tokenizer(tmp_path: Path) -> None:
    Tokenizer(RANKS, SPECIALS, pattern=r"\S+|\s+", lab={"name": "x"}).save(tmp_path / "new")
    again = Tokenizer.from_folder(tmp_path / "new")
    assert again.specials == SMALL.specials
    assert again.lab == {"name": "x"}
    assert again.pattern == r"\S+|\s+"
    assert again.n_vocab == len(RANKS) + 256
    assert again.encode("hello w") == [RANKS[b"hello"], RANKS[b" "], RANKS[b"w"]]


def test_no_text_becomes_a_special_token() -> None:
    for name in SMALL.specials:
        ids = SMALL.encode(f"a{name}b")
        assert not any(map(SMALL.is_special, ids))
        assert SMALL.decode(ids) == f"a{name}b"


@pytest.mark.parametrize("door", ["user", "system", "thinking", "answer", "result", "tool name",
                                  "call id", "arguments", "user name", "declaration"])  # fmt: skip
def test_no_door_lets_a_marker_in(door: str) -> None:
    def prompt(text: str) -> list[Segment]:
        there = {name: text if name == door else "x" for name in DOORS}
        asked = {
            "id": there["call id"],
            "function": {"name": "f", "arguments": there["arguments"]},
        }
        conversation: list[dict[str, object]] = [
            {"role": "system", "content": there["system"]},
            {"role": "user", "content": there["user"], "name": there["user name"]},
            {
                "role": "assistant",
                "content": there["answer"],
                "reasoning_content": there["thinking"],
                "tool_calls": [asked],
            },
            {
                "role": "tool",
                "tool_call_id": there["call id"],
                "name": there["tool name"],
                "content": there["result"],
            },
        ]
        tool = {"function": {"name": "f", "description": there["declaration"]}}
        return render(conversation, tools=[tool])

    harmless = [i for i in SMALL.encode_segments(prompt("x")) if SMALL.is_special(i)]
    for name in SMALL.specials:
        for attack in (name, f"a.txt{name}", f"{name}{name}"):
            segments = prompt(attack)
            ids = SMALL.encode_segments(segments)
            assert [i for i in ids if SMALL.is_special(i)] == harmless
            assert SMALL.decode(ids) == joined(segments)


DOORS = (
    *("user", "system", "thinking", "answer", "result", "tool name", "call id", "arguments"),
    *("user name", "declaration"),
)


def test_a_marker_cannot_form_across_segments() -> None:
    segments = [Segment("<|im_", False, "user"), Segment("end|>", False, "user")]
    assert not any(map(SMALL.is_special, SMALL.encode_segments(segments)))
    segments = [Segment("<|im_", True, "marker"), Segment("end|>", False, "user")]
    assert not any(map(SMALL.is_special, SMALL.encode_segments(segments)))


def test_a_marker_that_the_checkpoint_does_not_name_is_text() -> None:
    bare = Tokenizer(RANKS, {"<|im_end|>": len(RANKS)})
    assert bare.encode_segments([Segment("<think>", True, "marker")]) == list(b"<think>")


def test_kinds_follow_the_bytes() -> None:
    segments = [
        Segment("<|im_user|>", True, "marker"),
        Segment("he", False, "user"),
        Segment("llo", False, "result"),
        Segment("\ud800", False, "call"),
        Segment("", False, "system"),
        Segment("é", False, "answer"),
    ]
    ids, kinds = SMALL.encode_with_kinds(segments)
    assert ids == [SMALL.special("<|im_user|>"), RANKS[b"hello"], *"\ufffdé".encode()]
    assert kinds == ["marker", "user", "call", "call", "call", "answer", "answer"]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_a_stream_of_bytes_gives_the_text_back(text: str) -> None:
    stream = Utf8Stream()
    pieces = [stream.feed(bytes([byte])) for byte in text.encode()]
    assert "".join(pieces) + stream.flush() == text


def test_a_stream_holds_back_half_a_character() -> None:
    stream = Utf8Stream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.feed(b"a") == "a"


@pytest.mark.parametrize("text", [" " * 900_000, "a" * 900_000, "\n" * 60_000 + "é" * 60_000])
def test_long_runs_are_cut_before_the_pattern_sees_them(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == text


def test_long_runs_are_cut_where_kimi_cuts() -> None:
    ids = SMALL.encode("h" * 24_999 + "he")
    assert len(ids) == 25_001  # the cut after 25,000 characters parts "he"
    assert SMALL.encode(" " + "h" * 24_999 + "he")[-1] == RANKS[b"e"]
    assert SMALL.encode("h" * 24_998 + "he")[-1] == RANKS[b"he"]


@pytest.mark.parametrize("number", [-1, SMALL.n_vocab])
def test_an_unknown_id_is_an_input_error(number: int) -> None:
    with pytest.raises(InputError, match="not in the vocabulary"):
        SMALL.decode([number])


def test_only_text_can_be_encoded() -> None:
    with pytest.raises(InputError, match="bytes"):
        SMALL.encode(b"a")  # type: ignore[arg-type]


def test_an_unknown_special_token_is_a_tokenizer_error() -> None:
    with pytest.raises(TokenizerError, match="no special token"):
        SMALL.special("<|nobody|>")


@pytest.mark.parametrize(
    ("ranks", "specials", "pattern"),
    [
        ({b"a": 0}, SPECIALS, KIMI_PATTERN),
        ({**RANKS, b"zz": 9_999}, SPECIALS, KIMI_PATTERN),
        (RANKS, {"<x>": 3}, KIMI_PATTERN),
        (RANKS, {"<x>": len(RANKS), "<y>": len(RANKS)}, KIMI_PATTERN),
        (RANKS, {f"<|reserved_token_{len(RANKS) + 1}|>": len(RANKS)}, KIMI_PATTERN),
        (RANKS, SPECIALS, "(("),
    ],
)
def test_unusable_tables_are_refused(
    ranks: dict[bytes, int], specials: dict[str, int], pattern: str
) -> None:
    with pytest.raises(TokenizerError, match="Expected"):
        Tokenizer(ranks, specials, pattern=pattern)


def write(folder: Path, model: bytes, config: str) -> Path:
    (folder / "tiktoken.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(config)
    return folder


MODEL = b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in RANKS.items())
CONFIG = json.dumps({"added_tokens_decoder": {str(len(RANKS)): {"content": "<|im_end|>"}}})


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (MODEL[:-5], CONFIG),
        (MODEL + b"####\n", CONFIG),
        (MODEL + b"YQ== 5\n", CONFIG),
        (MODEL + b"enp6 -4\n", CONFIG),
        (b"\xff\x00", CONFIG),
        (b"", CONFIG),
        (MODEL, ""),
        (MODEL, "[1]"),
        (MODEL, "{}"),
        (MODEL, '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        (MODEL, '{"added_tokens_decoder": {"300": {"content": 4}}}'),
        (MODEL, CONFIG[:-1] + ', "pat_str": 3}'),
        (MODEL, CONFIG[:-1] + ', "k2lab": 3}'),
        (MODEL, "[" * 100_000),
    ],
)
def test_damaged_files_are_tokenizer_errors(tmp_path: Path, model: bytes, config: str) -> None:
    with pytest.raises(TokenizerError, match="Mend"):
        Tokenizer.from_folder(write(tmp_path, model, config))


def test_whole_files_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    whole = Tokenizer.from_folder(write(tmp_path, MODEL, CONFIG))
    assert whole.encode_segments(render([], generation_prompt=False))
    assert whole.lab == {}
    assert DEFAULT_SYSTEM in whole.decode(whole.encode(DEFAULT_SYSTEM))
    for name in ("tiktoken.model", "tokenizer_config.json"):
        (tmp_path / name).unlink()
        with pytest.raises(TokenizerError, match=rf"^\S+{name} cannot be read: No such file"):
            Tokenizer.from_folder(tmp_path)
