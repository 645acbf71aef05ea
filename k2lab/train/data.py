"""From microworld tasks to batches: conversations as ids, with a mask on what the model says.

Conversations of like length share a batch, one per row, so attention never crosses two of them and
padding stays small. The order is a function of (seed, pool), so a resumed run sees the same data.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from k2lab.text.template import Segment, render
from k2lab.text.tokenizer import Tokenizer
from k2lab.world.tasks import TRAINING_MIX, Task, generate
from k2lab.world.teacher import Message, turns

POOL = 2048  # conversations sorted by length together
STRIDE = 1_000_003  # keeps the task seeds of neighbouring pools apart


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation up to an answer; `said[i]` is True where token i is the model's to learn."""

    ids: tuple[int, ...]
    said: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one conversation each, padded at the end."""

    ids: Tensor  # int64 [row, token]
    said: Tensor  # bool [row, token]

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return self.ids.numel()


def segments(task: Task) -> list[Segment]:
    """The conversation as the model would live its last turn: what came before, then its thinking.

    The final message is written out here, because the template drops thinking once an answer
    exists, and what is learned must be what is generated.
    """
    return _lived(task.messages)


def document(task: Task, tokenizer: Tokenizer) -> Document:
    """Ids and mask of one task's conversation, up to its end."""
    return _document(task.messages, tokenizer)


def documents(task: Task, tokenizer: Tokenizer) -> list[Document]:
    """A document for each time the user speaks, with the model's words up to its next answer.

    The thinking before an earlier answer is gone in the later turns, so each turn is learned in
    the document that ends with it.
    """
    said: list[Message] = []
    made = []
    for turn in turns(task.messages):
        said += turn
        made.append(_document(said, tokenizer))
    return made


def _lived(messages: Sequence[Message]) -> list[Segment]:
    *before, last = messages
    return [
        *render(before, system=None, generation_prompt=True),
        Segment("<think>", markers=True, kind="marker"),
        Segment(last.get("reasoning_content") or "", markers=False, kind="thinking"),
        Segment("</think>", markers=True, kind="marker"),
        Segment(last["content"], markers=False, kind="answer"),
        Segment("<|im_end|>", markers=True, kind="marker"),
    ]


def _document(messages: Sequence[Message], tokenizer: Tokenizer) -> Document:
    ids = tokenizer.encode_segments(_lived(messages))
    user, assistant, middle, end = map(
        tokenizer.special, ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>")
    )
    said, header, speaking = list[bool](), False, False
    for token in ids:
        said.append(speaking)  # the closing <|im_end|> is said too: it ends the turn
        if token == user:  # what was said to earlier questions stands here without its thinking
            said = [False] * len(said)
        elif token == assistant:
            header = True
        elif token == middle:
            speaking, header = header, False
        elif token == end:
            speaking = False
    return Document(tuple(ids), tuple(said))


def pool(
    seed: int, index: int, tokenizer: Tokenizer, *, families: Sequence[str] | None = None
) -> list[Document]:
    """The documents of one pool, shortest first; families come in the proportions of training."""
    tasks = generate(
        seed + index * STRIDE, POOL, split="train", families=families, weights=TRAINING_MIX
    )
    made = [each for task in tasks for each in documents(task, tokenizer)]
    return sorted(made, key=lambda document: len(document.ids))


def batches(
    seed: int, tokenizer: Tokenizer, *, tokens: int, first_pool: int = 0
) -> Iterator[tuple[int, Batch]]:
    """Endless (pool, batch) with about `tokens` tokens each; batches of a pool come shuffled."""
    pad = tokenizer.special("[PAD]")
    index = first_pool
    while True:
        rows: list[Document] = []
        made: list[Batch] = []
        for each in pool(seed, index, tokenizer):
            if rows and (len(rows) + 1) * len(each.ids) > tokens:
                made.append(padded(rows, pad))
                rows = []
            rows.append(each)
        random.Random(seed + index).shuffle(made)  # the last, incomplete batch is left out
        yield from ((index, batch) for batch in made)
        index += 1


def padded(rows: Sequence[Document], pad: int) -> Batch:
    """Documents as one rectangle."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    said = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        said[place, : len(row.said)] = torch.tensor(row.said)
    return Batch(ids, said)
