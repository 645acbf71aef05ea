"""K2-nano from nothing: vocabulary, fine-tuning, export. One call, resumable at any point.

The work folder holds the tokenizer, the plan and the training checkpoint; the finished model is
written in the layout of a Hugging Face checkpoint with INT4 routed experts.
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

from k2lab.spec.config import K2_NANO
from k2lab.text.tokenizer import Tokenizer
from k2lab.train.data import segments
from k2lab.train.plan import Plan
from k2lab.train.record import go_on
from k2lab.train.sft import Progress, Training
from k2lab.train.vocabulary import learn
from k2lab.world.tasks import ENTITIES, generate

VOCABULARY_SEED = 99
VOCABULARY_TASKS = 3000
RESERVED = 256  # ids kept for special tokens, as in K2
PLAN = Plan(
    steps=10500,
    decay=0.302,
    ends=(9114, 9960, 10260, 10340, 10420),
    reach=K2_NANO.max_position_embeddings,
    reach_from=0.0,
    chains_from=0.75,
)
"""From nothing to the whole microworld; chains of 300 calls need positions up to the context.

The long ones take two thirds of the time where they occur (measured): short thoughts come first.
"""


def train(
    work: Path, plan: Plan, report: Callable[[Progress], None], *, start: Path | None = None
) -> Training:
    """The finished (or continued and finished) training in the folder `work`.

    A new work folder begins from nothing, or from the finished model in the folder `start`.
    """
    keep_memory()
    if start is not None and not (work / "tokenizer").exists():
        Tokenizer.from_folder(start).save(work / "tokenizer")
    training = Training(K2_NANO, tokenizer(work / "tokenizer"), plan)
    if not training.resume(work) and start is not None:
        go_on(training, start)
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
