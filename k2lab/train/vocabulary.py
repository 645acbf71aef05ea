"""K2-nano's tokenizer: byte-pair ranks learned from the microworld's own text.

One token per digit, and names of things are the same token with and without a space before them,
so that copying a name is copying a token: names never merge with the space, other words do.
"""

from collections import Counter
from collections.abc import Iterable, Set
from itertools import pairwise

from k2lab.text.tokenizer import Tokenizer

PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""Words, single digits, runs of signs (each with one space before it, where there is one)."""

SPECIALS = (
    ("[BOS]", 0),
    ("[EOS]", 1),
    ("<|im_end|>", 2),
    ("<|im_user|>", 3),
    ("<|im_assistant|>", 4),
    ("<|start_header_id|>", 6),
    ("<|end_header_id|>", 7),
    ("[EOT]", 9),
    ("<|im_system|>", 10),
    ("<|tool_calls_section_begin|>", 11),
    ("<|tool_calls_section_end|>", 12),
    ("<|tool_call_begin|>", 13),
    ("<|tool_call_argument_begin|>", 14),
    ("<|tool_call_end|>", 15),
    ("<|im_middle|>", 17),
    ("<think>", 22),
    ("</think>", 23),
    ("[UNK]", 254),
    ("[PAD]", 255),
)
"""Special tokens and their distance from the first one, as in K2's own table."""


LAB = {
    "name": "K2-nano",
    "system": None,  # trained without a system message
    "declare_tools": False,  # it knows its tools from training
    "temperature": 0.0,  # exact tasks are run greedily
    "world": "microworld",
}
"""Habits of the checkpoint that the lab reads from tokenizer_config.json."""


def learn(texts: Iterable[str], names: Set[str], *, ranks: int) -> Tokenizer:
    """A tokenizer with `ranks` ordinary tokens, learned from texts; `names` never take a space."""
    import regex

    pieces = Counter(piece for text in texts for piece in regex.findall(PATTERN, text))
    bare: Counter[str] = Counter()  # words and signs without the space
    spaced: Counter[str] = Counter()
    for piece, count in pieces.items():
        bare[piece.removeprefix(" ") or piece] += count
        if piece.startswith(" ") and piece[1:].strip() and piece[1:] not in names:
            spaced[piece] += count
    table = {bytes([byte]): byte for byte in range(256)}
    for token in _merges(bare, ranks - 256):
        table[token] = len(table)
    # The space joins last, at the highest rank: inside a name it finds nothing to merge with.
    for piece, _ in sorted(spaced.items(), key=lambda item: (-item[1], item[0])):
        if len(table) < ranks and piece[1:].encode() in table:
            table.setdefault(piece.encode(), len(table))
    while len(table) < ranks:  # a small text: fill up with pairs of bytes that it never holds
        spare = len(table) - 256
        table[bytes([0xF8 + spare // 128 % 8, 0x80 + spare % 128])] = len(table)
    specials = {name: ranks + distance for name, distance in SPECIALS}
    return Tokenizer(table, specials, pattern=PATTERN, lab=LAB)


def _merges(counts: Counter[str], limit: int) -> list[bytes]:
    """Tokens made by merging the most frequent neighbours, until every piece is one token."""
    words = {piece: [bytes([byte]) for byte in piece.encode()] for piece in counts}
    made: list[bytes] = []
    while len(made) < limit:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for piece, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[piece]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        token = best[0] + best[1]
        if token not in made:
            made.append(token)
        for parts in words.values():
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == best:
                    parts[place : place + 2] = [token]
                place += 1
    return made
