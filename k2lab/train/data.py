"""From microworld tasks to batches: conversations as ids, with a mask on what the model says.

Conversations of like length share a batch, one per row, so attention never crosses two of them and
padding stays small. The order is a function of (seed, pool), so a resumed run sees the same data.
"""

import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from k2lab.text.template import Segment, render
from k2lab.text.tokenizer import Tokenizer
from k2lab.world.tasks import TRAINING_MIX, Task, generate
from k2lab.world.teacher import Message, turns

POOL = 2048  # conversations sorted by length together
STRIDE = 1_000_003  # keeps the task seeds of neighbouring pools apart
PASSAGE_EVERY = 32  # tasks of a pool, for each of which it holds an end of a long chain
LONGEST = 300  # calls of a long chain
PASSAGE = (6, 40)  # calls that are left of it, fewest and most
CHAIN_EVERY = 160  # tasks of a pool, for each of which it holds a long chain as a whole
CHAIN = (120, LONGEST)  # calls of such a chain, fewest and most
LEARNED = 12  # calls at its end that are learned, and as many in each part before it
PART = 60  # calls of such a part

Weights = tuple[tuple[str, float], ...]  # families and how often they come, one to the other


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


def passage(task: Task, tokenizer: Tokenizer, calls: int) -> Document:
    """The question of a chain of calls and the last `calls` of it; what lies between is cut out.

    So the end of a chain of 300 calls, with its ids and totals, costs no more than a short one.
    The first thought that is left goes on from one that is gone: it is read, not learned.
    """
    question, *chain, answer = task.messages
    kept = _document([question, *chain[-2 * calls :], answer], tokenizer)
    if 2 * calls >= len(chain):
        return kept
    return _only(range(1, calls + 1), kept, tokenizer)


def chain(task: Task, tokenizer: Tokenizer, rng: random.Random) -> Document:
    """A whole chain of calls, of which the end is learned, and a stretch of each part before it.

    A head that finds the last total among thousands of tokens has to do so against all of them.
    What lies between is only read, and read once for all stretches.
    """
    calls = (len(task.messages) - 2) // 2
    last = max(0, calls - LEARNED)
    starts = [part + rng.randrange(PART - LEARNED) for part in range(0, last - PART + 1, PART)]
    turns = [turn for start in starts for turn in range(start, start + LEARNED)]
    return _only([*turns, *range(last, calls + 1)], document(task, tokenizer), tokenizer)


def _only(turns: Collection[int], made: Document, tokenizer: Tokenizer) -> Document:
    """The document with nothing to learn but these turns of the model, counted from 0."""
    said, turn = list[bool](), -1
    for token, learned in zip(made.ids, made.said, strict=True):
        turn += token == tokenizer.special("<|im_assistant|>")
        said.append(learned and turn in turns)
    return Document(made.ids, tuple(said))


def passages(seed: int, tokenizer: Tokenizer) -> list[Document]:
    """Ends of queue tasks of up to 300 calls, short ones more often; and a few whole chains."""
    rng = random.Random(f"passages {seed}")
    low, high = map(math.log, PASSAGE)
    made = []
    for number in range(POOL // PASSAGE_EVERY + POOL // CHAIN_EVERY):
        whole = number >= POOL // PASSAGE_EVERY
        length = rng.randint(*CHAIN) if whole else rng.randint(PASSAGE[0], LONGEST)
        (task,) = generate(seed + number, 1, split="train", families=["queue"], queue_length=length)
        calls = round(math.exp(rng.uniform(low, high)))
        made.append(chain(task, tokenizer, rng) if whole else passage(task, tokenizer, calls))
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


@lru_cache(maxsize=1)  # whoever compares plans reads the same one for each of them
def pool(seed: int, index: int, tokenizer: Tokenizer, more: Weights = ()) -> tuple[Document, ...]:
    """The documents of one pool, shortest first; families come in the proportions of training.

    Those in `more` have the weights that stand there. Passages of long chains are among them.
    """
    first = seed + index * STRIDE
    tasks = generate(first, POOL, split="train", weights={**TRAINING_MIX, **dict(more)})
    made = [each for task in tasks for each in documents(task, tokenizer)]
    made += passages(first, tokenizer)
    return tuple(sorted(made, key=lambda document: len(document.ids)))


def batches(
    seed: int,
    tokenizer: Tokenizer,
    *,
    tokens: int,
    together: int = 1,
    first_pool: int = 0,
    more: Weights = (),
) -> Iterator[tuple[int, Batch]]:
    """Endless (pool, batch) with about `tokens` tokens each; batches of a pool come shuffled.

    Of so many as are learned together all are long chains of like length, or none is: they wait
    for each other. What is left over of a pool is left out.
    """
    pad = tokenizer.special("[PAD]")
    index = first_pool
    while True:
        rows: list[Document] = []
        made: list[Batch] = []
        for each in pool(seed, index, tokenizer, more):
            if rows and (len(rows) + 1) * len(each.ids) > tokens:
                made.append(padded(rows, pad))
                rows = []
            rows.append(each)
        made.append(padded(rows, pad))
        rng = random.Random(seed + index)
        long = [batch for batch in made if batch.tokens > tokens]  # one chain each
        short = [batch for batch in made if batch.tokens <= tokens]
        rng.shuffle(short)
        groups = [*_groups(short, together), *_groups(long, together)]
        rng.shuffle(groups)
        yield from ((index, batch) for group in groups for batch in group)
        index += 1


def _groups(made: Sequence[Batch], size: int) -> Iterator[Sequence[Batch]]:
    whole = len(made) // size * size
    return (made[k : k + size] for k in range(0, whole, size))


def padded(rows: Sequence[Document], pad: int) -> Batch:
    """Documents as one rectangle."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    said = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        said[place, : len(row.said)] = torch.tensor(row.said)
    return Batch(ids, said)
