"""Is this folder a whole checkpoint? Every check that needs no forward pass, one by one.

Headers, keys, shapes and dtypes against `config.json`; the tokenizer against the vocabulary; and
SHA-256 sums where the folder states them, which alone can see a bit that flipped inside the data.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from k2lab.errors import CheckpointError, TokenizerError
from k2lab.model.export import CARDS, SUMS, sha256
from k2lab.spec.config import K2Config
from k2lab.tensors.shards import Shards, check
from k2lab.text.tokenizer import Tokenizer

STATED = (*CARDS, SUMS)  # where sums are looked for; the last word counts, of those made for it
SUM = re.compile(r"\b[0-9a-fA-F]{64}\b")
NAME = re.compile(r"[\w.-]+\.(?:safetensors|json|model|txt)\b")


@dataclass(frozen=True, slots=True)
class Passed:
    """One check that found nothing wrong."""

    check: str
    detail: str


def verify(folder: Path) -> Iterator[Passed]:
    """The checks as they pass; the first that fails raises its K2LabError."""
    config = K2Config.from_json(folder)
    yield Passed("config", f"{config.model_type}, {config.num_hidden_layers} layers")
    shards = Shards(folder)
    files = {shards.header(key).file for key in shards.keys}
    yield Passed("headers", f"{len(shards.keys)} tensors in {len(files)} files")
    check(shards, config)
    yield Passed("tensors", f"keys, shapes and dtypes, {shards.bytes_total} bytes")
    tokenizer = Tokenizer.from_folder(folder)
    _check_vocabulary(folder, tokenizer, config)
    yield Passed("tokenizer", f"{tokenizer.n_vocab} ids")
    stated = dict(_stated_sums(folder))
    for name, expected in stated.items():
        _check_sum(folder / name, expected)
    detail = [f"{len(stated)} files"] if stated else []
    if unstated := sum(file.name not in stated for file in files):
        left = f"none stated for {unstated} of {len(files)} shards"
        detail.append(f"{left}, so the data there is unchecked")
    yield Passed("sha256", "; ".join(detail))


def _check_vocabulary(folder: Path, tokenizer: Tokenizer, config: K2Config) -> None:
    if tokenizer.n_vocab > config.vocab_size:
        raise TokenizerError(
            f"The tokenizer in {folder} has {tokenizer.n_vocab} ids.",
            expected=f"at most {config.vocab_size} (vocab_size).",
            mend="Fetch tokenizer and config.json from one revision of one checkpoint.",
        )
    ends = [token for token in config.stop_ids if not tokenizer.is_special(token)]
    if ends:
        raise TokenizerError(
            f"The ids {ends} end a turn and are ordinary tokens of the tokenizer in {folder}.",
            expected="special tokens as eos_token_id.",
            mend="Fetch tokenizer and config.json from one revision of one checkpoint.",
        )


def _stated_sums(folder: Path) -> Iterator[tuple[str, str]]:
    """File name and sum, from lines that hold one of each."""
    for source in STATED:
        path = folder / source
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            found, names = SUM.findall(line), NAME.findall(line)
            if len(found) == 1 and len(names) == 1:
                yield names[0], found[0].lower()


def _check_sum(file: Path, expected: str) -> None:
    found = sha256(file) if file.is_file() else "no such file"
    if found != expected:
        raise CheckpointError(
            f"{file} has the SHA-256 sum {found}.",
            expected=f"{expected}, as stated beside it.",
            mend="Fetch the file again from where the checkpoint was published.",
        )
