"""The border between training and evaluation, by a hash of what a task is about.

About one in ten number pairs, item pairs, city pairs, queues and so on is reserved: never
generated for training, and always present in an evaluation task.
"""

from hashlib import blake2b
from typing import Literal

Split = Literal["train", "eval"]

ONE_IN = 10


def reserved(key: str) -> bool:
    """Whether what this key names is kept for evaluation."""
    return blake2b(key.encode(), digest_size=8).digest()[0] % ONE_IN == 0


def pair_key(first: object, second: object) -> str:
    """The key of two numbers, items or cities, whatever their order and the family."""
    return "pair " + " ".join(sorted((str(first), str(second))))
