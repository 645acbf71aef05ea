"""K2-nano from nothing: vocabulary and fine-tuning. One call, resumable at any point.

The work folder holds the tokenizer, the plan and the training checkpoint. Not here: how the
finished model is written (`model/export.py`).
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from k2lab.spec.config import K2_NANO
from k2lab.text.tokenizer import Tokenizer
from k2lab.train.data import segments
from k2lab.train.plan import LOWEST, Plan
from k2lab.train.record import go_on
from k2lab.train.sft import Progress, Training
from k2lab.train.vocabulary import learn
from k2lab.world.tasks import ENTITIES, generate

VOCABULARY_SEED = 99
VOCABULARY_TASKS = 3000
RESERVED = 256  # ids kept for special tokens, as in K2
_Stage = partial(Plan, reach=K2_NANO.max_position_embeddings)  # a chain of 300 calls needs it
STAGES = (
    _Stage(
        steps=6840,
        decay=0.302,
        ends=(6160, 6560, 6720, 6780),
        chains_from=5325,
    ),
    _Stage(
        begin=6840,
        steps=12640,
        peak=0.5,
        decay=0.75,
        ends=(12100, 12340, 12460, 12560),
        chains_from=10900,
    ),
    _Stage(
        begin=12640,
        steps=13140,
        peak=0.3,
        decay=1.0,
        ends=(12980, 13060, 13110),
        chains_from=13060,
        more=(("reflect", 30.0), ("outside", 8.0)),
    ),
    _Stage(
        begin=13140,
        steps=13700,
        peak=0.4,
        decay=1.0,
        ends=(13560, 13620, 13660),
        chains_from=13640,
        more=(("reflect", 60.0), ("outside", 14.0)),
    ),
    _Stage(
        begin=13700,
        steps=14120,
        peak=0.5,
        decay=1.0,
        ends=(14000, 14060, 14090),
        chains_from=13700,
        more=(("reflect", 40.0), ("outside", 10.0)),
    ),
    _Stage(
        begin=14120,
        steps=14520,
        peak=0.4,
        decay=1.0,
        ends=(14400, 14460, 14490),
        chains_from=14120,
        more=(("reflect", 30.0), ("outside", 8.0)),
    ),
    _Stage(
        begin=14520,
        steps=14600,
        peak=LOWEST,
        decay=1.0,
        chains_from=14600,
    ),
)
"""The whole microworld; what is half learned once more, at half the rates; then checked results.

Long chains take more than half of the time where they occur (measured), so short thoughts come
first. But what is not seen is lost: after the two stages with few chains no long one came out right
(measured), so the next two learn them throughout.
The last hardly moves the weights: its selection biases find the even load of their mean, for which
those before it were not made (one expert was idle).
"""


def train(
    work: Path,
    stages: Sequence[Plan],
    report: Callable[[Progress], None],
    *,
    start: Path | None = None,
) -> Training:
    """The finished (or continued and finished) training in the folder `work`, stage after stage.

    A new work folder begins from nothing, or from the finished model in the folder `start`.
    """
    keep_memory()
    if start is not None and not (work / "tokenizer").exists():
        Tokenizer.from_folder(start).save(work / "tokenizer")
    training = Training(K2_NANO, tokenizer(work / "tokenizer"), stages[-1])
    if not training.resume(work) and start is not None:
        go_on(training, start)
    for plan in stages:
        training.plan = plan
        training.run(work, report)
    return training


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`; learned from the microworld and written there the first time."""
    if not (folder / "tiktoken.model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tasks = generate(VOCABULARY_SEED, VOCABULARY_TASKS, split="train")
        texts = [part.text for task in tasks for part in segments(task) if not part.markers]
        learn(texts, ENTITIES, ranks=K2_NANO.vocab_size - RESERVED).save(folder)
    return Tokenizer.from_folder(folder)


def keep_memory() -> None:
    """Tell glibc's allocator to keep freed memory; elsewhere nothing happens.

    A training step frees and takes the same large blocks again and again. By default each is given
    back to the system and faulted in anew, which takes about a quarter of the step (measured).
    """
    trim, top_pad, mmap = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap, 32 * 2**20)  # the largest value that glibc takes
        mallopt(trim, 2**31 - 1)
        mallopt(top_pad, 256 * 2**20)
