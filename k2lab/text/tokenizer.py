"""Text to token ids and back, as Kimi K2 does it.

Byte-pair encoding over a table of ranks, with 256 ids after the ranks for special tokens. Special
tokens are never read from text: `encode` reads `<|im_end|>` as ten ordinary characters, and only
`encode_segments` yields special ids, from segments that the template itself wrote.
This is not a trainer of ranks. Source: `tiktoken.model` and `tokenizer_config.json` of
moonshotai/Kimi-K2-Thinking; merging is done by the library tiktoken.
"""

import base64
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Self

import tiktoken

from k2lab.errors import InputError, TokenizerError
from k2lab.text.messages import Kind, without_surrogates
from k2lab.text.template import Segment

RESERVED = 256  # ids after the ranks, kept for special tokens (Kimi K2)
LONGEST_TEXT = 400_000  # characters encoded at once (Kimi K2)
LONGEST_RUN = 25_000  # consecutive characters with, or without, white space (Kimi K2)

RANKS_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"

_LETTER_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"

KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_LETTER_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_LETTER_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Kimi's pattern that cuts text into pieces before merging; no merge crosses a piece."""

_WHITE_SPACE_RUNS = re.compile(r"\s+|\S+")


class Tokenizer:
    """Encodes and decodes; made from a checkpoint folder or from ranks in memory."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        specials: Mapping[str, int],
        *,
        pattern: str = KIMI_PATTERN,
        lab: Mapping[str, object] | None = None,
    ) -> None:
        """`ranks` must count from 0 without gaps; `specials` lie in the 256 ids after them."""
        _check_ranks(ranks)
        self.n_vocab = len(ranks) + RESERVED
        self.pattern = pattern
        self.lab: Mapping[str, object] = MappingProxyType(dict(lab or {}))
        self._named = dict(sorted(specials.items(), key=lambda pair: pair[1]))
        self.specials: Mapping[str, int] = MappingProxyType(_all_specials(specials, len(ranks)))
        self._first_special = len(ranks)
        self._bytes = sorted(ranks, key=ranks.__getitem__)
        names = sorted(self.specials, key=self.specials.__getitem__)
        self._bytes += [name.encode() for name in names]
        longest_first = sorted(names, key=len, reverse=True)
        self._marker = re.compile("|".join(re.escape(name) for name in longest_first))
        try:
            self._encoding = tiktoken.Encoding(
                "k2lab", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={}
            )
        except ValueError as error:
            raise TokenizerError(
                f"The split pattern cannot be compiled: {error}.",
                expected="a regular expression of the Rust crate fancy-regex.",
                mend="Correct `pat_str`, or leave it out to use Kimi's pattern.",
            ) from error

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer of a checkpoint folder (`tiktoken.model`, `tokenizer_config.json`)."""
        folder = Path(folder)
        config = _read_config(folder / CONFIG_FILE)
        pattern, lab = config.get("pat_str", KIMI_PATTERN), config.get("k2lab", {})
        if not isinstance(pattern, str) or not isinstance(lab, dict):
            raise TokenizerError(
                f"`pat_str` or `k2lab` in {folder / CONFIG_FILE} has the wrong type.",
                expected="a string for `pat_str`, an object for `k2lab`.",
                mend="Correct the file, or download it again.",
            )
        ranks = _read_ranks(folder / RANKS_FILE)
        specials = _read_specials(config, folder / CONFIG_FILE)
        return cls(ranks, specials, pattern=pattern, lab=lab)

    def save(self, folder: Path) -> None:
        """Write the two files that `from_folder` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = (
            base64.b64encode(piece) + b" %d\n" % rank
            for rank, piece in enumerate(self._bytes[: self._first_special])
        )
        (folder / RANKS_FILE).write_bytes(b"".join(lines))
        config = {
            "added_tokens_decoder": {
                str(number): {
                    "content": name,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    # as in Kimi's file: tool and think markers survive "skip special tokens"
                    "special": "tool_call" not in name and "think>" not in name,
                }
                for name, number in self._named.items()
            },
            "k2lab": dict(self.lab),
            "pat_str": self.pattern,
        }
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, never a special one; lone surrogates are read as U+FFFD."""
        if not isinstance(text, str):
            raise InputError(
                f"A text to encode is of type {type(text).__name__}.",
                expected="a string.",
                mend="Decode bytes first; for messages use `encode_segments(render(messages))`.",
            )
        ids: list[int] = []
        for part in _manageable(without_surrogates(text)):
            ids += self._encoding.encode_ordinary(part)
        return ids

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Ids of rendered segments; special ids come only from segments with `markers`."""
        return self.encode_with_kinds(segments)[0]

    def encode_with_kinds(self, segments: Iterable[Segment]) -> tuple[list[int], list[Kind]]:
        """Ids of rendered segments, and the kind of each: that of the token's first byte.

        Neighbouring segments without a special token between them are merged as one text.
        """
        ids: list[int] = []
        kinds: list[Kind] = []
        run: list[tuple[str, Kind]] = []
        for part, kind in self._parts(segments):
            if isinstance(part, str):
                run.append((without_surrogates(part), kind))
                continue
            self._encode_run(run, ids, kinds)
            run.clear()
            ids.append(part)
            kinds.append(kind)
        self._encode_run(run, ids, kinds)
        return ids, kinds

    def special(self, name: str) -> int:
        """The id of a special token."""
        if name not in self.specials:
            raise TokenizerError(
                f"There is no special token {name!r}.",
                expected=f"one of {', '.join(self._named)}.",
                mend="Correct the name, or use a checkpoint whose tokenizer names this token.",
            )
        return self.specials[name]

    def is_special(self, number: int) -> bool:
        """Whether the id is one of the 256 kept for special tokens."""
        return self._first_special <= number < self.n_vocab

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, special tokens spelt out."""
        return b"".join([self._piece_bytes(number) for number in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def piece(self, number: int) -> str:
        """The text of one id; half a character shows as U+FFFD."""
        return self._piece_bytes(number).decode("utf-8", errors="replace")

    def _piece_bytes(self, number: int) -> bytes:
        if not 0 <= number < self.n_vocab:
            raise InputError(
                f"The token id {number} is not in the vocabulary.",
                expected=f"an id from 0 to {self.n_vocab - 1}.",
                mend="Check that the ids come from this tokenizer.",
            )
        return self._bytes[number]

    def _parts(self, segments: Iterable[Segment]) -> Iterator[tuple[str | int, Kind]]:
        """Special ids and ordinary texts, in order."""
        for segment in segments:
            if not segment.markers:
                yield segment.text, segment.kind
                continue
            position = 0
            for match in self._marker.finditer(segment.text):
                if match.start() > position:
                    yield segment.text[position : match.start()], segment.kind
                yield self.specials[match.group()], segment.kind
                position = match.end()
            if position < len(segment.text):
                yield segment.text[position:], segment.kind

    def _encode_run(
        self, run: Sequence[tuple[str, Kind]], ids: list[int], kinds: list[Kind]
    ) -> None:
        if not run:
            return
        encoded = self.encode("".join(text for text, _ in run))
        ids += encoded
        if len(run) == 1:
            kinds += [run[0][1]] * len(encoded)
            return
        ends = list(accumulate(len(text.encode()) for text, _ in run))
        place, offset = 0, 0
        for number in encoded:
            while offset >= ends[place]:
                place += 1
            kinds.append(run[place][1])
            offset += len(self._bytes[number])


class Utf8Stream:
    """Joins the bytes of tokens into text, holding back a character that is not complete."""

    def __init__(self) -> None:
        """With nothing held back."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: bytes) -> str:
        """The text that is complete now."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What was held back, as U+FFFD; the stream can be used again."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _manageable(text: str) -> Iterator[str]:
    """The text in parts short enough for the pattern's backtracking, cut where Kimi cuts."""
    for start in range(0, len(text), LONGEST_TEXT):
        part = text[start : start + LONGEST_TEXT]
        if len(part) <= LONGEST_RUN:
            yield part
            continue
        begin = 0
        for run in _WHITE_SPACE_RUNS.finditer(part):
            for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
                yield part[begin:cut]
                begin = cut
        yield part[begin:]


def _check_ranks(ranks: Mapping[bytes, int]) -> None:
    if set(ranks.values()) != set(range(len(ranks))):
        raise TokenizerError(
            f"The {len(ranks)} ranks have gaps or are used twice.",
            expected=f"each rank from 0 to {len(ranks) - 1} once.",
            mend="Download the rank file again.",
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{len(missing)} single bytes have no rank (the first is {missing[0]:#04x}).",
            expected="a rank for each of the 256 bytes, so that any text can be encoded.",
            mend="Download the rank file again.",
        )


def _all_specials(named: Mapping[str, int], first: int) -> dict[str, int]:
    """All 256 names in the order of their ids."""
    names: dict[int, str] = {}
    for name, number in named.items():
        if not name or number in names or not first <= number < first + RESERVED:
            raise TokenizerError(
                f"The special token {name!r} has the id {number}.",
                expected=f"a name, and an id of its own from {first} to {first + RESERVED - 1}.",
                mend="Check that the ranks and the special tokens belong to one checkpoint.",
            )
        names[number] = name
    for number in range(first, first + RESERVED):
        names.setdefault(number, f"<|reserved_token_{number}|>")
    specials = {names[number]: number for number in sorted(names)}
    if len(specials) != RESERVED:
        raise TokenizerError(
            "A special token has the name of a reserved one of another id.",
            expected="names `<|reserved_token_{id}|>` only for that id.",
            mend="Rename the token.",
        )
    return specials


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for count, line in enumerate(_read(path).splitlines(), start=1):
        try:
            piece, rank = line.split()
            key, number = base64.b64decode(piece, validate=True), int(rank)
        except ValueError:
            key, number = b"", -1
        if not key or number < 0 or key in ranks:
            raise TokenizerError(
                f"Line {count} of {path} reads {line[:80]!r}.",
                expected="base64 of bytes not seen before, a space, and a rank.",
                mend="The file is damaged; download it again.",
            )
        ranks[key] = number
    return ranks


def _read_config(path: Path) -> dict[str, object]:
    data = _read(path)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not JSON: {error}.",
            expected="the tokenizer configuration of a checkpoint.",
            mend="The file is damaged; download it again.",
        ) from error
    if isinstance(config, dict):
        return config
    raise TokenizerError(
        f"{path} holds a {type(config).__name__}.",
        expected="a JSON object with `added_tokens_decoder`.",
        mend="Download the file again.",
    )


def _read_specials(config: Mapping[str, object], path: Path) -> dict[str, int]:
    table = config.get("added_tokens_decoder")
    specials: dict[str, int] = {}
    for key, entry in table.items() if isinstance(table, dict) else ():
        name = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in specials or not key.isdecimal():
            raise TokenizerError(
                f"The special token {key!r} in {path} reads {str(entry)[:80]!r}.",
                expected="an id, and an object whose `content` is a name used once.",
                mend="The file is damaged; download it again.",
            )
        specials[name] = int(key)
    if not specials:
        raise TokenizerError(
            f"{path} names no special tokens.",
            expected="`added_tokens_decoder`, from ids to {'content': name}.",
            mend="Download the file again.",
        )
    return specials


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path} cannot be read: {error.strerror}.",
            expected=f"a folder with {RANKS_FILE} and {CONFIG_FILE}.",
            mend="Check the path, or download the checkpoint again.",
        ) from error
