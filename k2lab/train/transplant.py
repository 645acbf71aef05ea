"""A training goes on under another vocabulary: rows of embedding and head move with their token.

A token that both vocabularies spell with the same bytes keeps its row and its optimiser state; a
new one starts at the mean of the tokens that spelled it before. Everything between embedding and
head knows nothing of ids and is taken over as it is.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from k2lab.text.tokenizer import Tokenizer
from k2lab.train.sft import Training

ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def transplant(training: Training, work: Path) -> None:
    """Take over the checkpoint in the work folder `work`, which has another tokenizer."""
    training.resume(work)
    old = Tokenizer.from_folder(work / "tokenizer")
    spellings = _spellings(training.tokenizer, old)
    with torch.no_grad():
        for key in ROWS:
            parameter = training.store.parameters[key]
            state = training.adam.state[parameter]
            for rows in (parameter, state["exp_avg"], state["exp_avg_sq"]):
                rows.copy_(_moved(rows, spellings))
    training.first_pool()  # the data is another: its order begins anew
    training.notes.append(
        f"At step {training.step:,} the microworld was worded anew and the vocabulary learned "
        "again; tokens of both vocabularies kept their rows."
    )


def _spellings(new: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """For each id, the old ids that spelled it; special tokens have the same id in both."""
    known = {old.decode_bytes([number]): number for number in range(old.n_vocab)}
    return [_spelling(new.decode_bytes([number]), known, old) for number in range(new.n_vocab)]


def _spelling(piece: bytes, known: Mapping[bytes, int], old: Tokenizer) -> list[int]:
    if piece in known:
        return [known[piece]]
    try:
        return old.encode(piece.decode())
    except UnicodeDecodeError:  # half a character: the first 256 ids are the bytes themselves
        return list(piece)


def _moved(rows: Tensor, spellings: list[list[int]]) -> Tensor:
    return torch.stack([rows[ids].mean(0) for ids in spellings])
