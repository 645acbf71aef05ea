"""How many threads compute a forward: one, where a second one takes longer to wake than to help.

A token of a small network is some hundred products of microseconds each. Threads that sleep between
them (OMP_WAIT_POLICY=passive, as in the lab) cost more than they compute: 7.0 ms a token of K2-nano
against 2.1 alone. Threads that never sleep gain a tenth and keep a whole core from everybody else
(measured on two cores). Not here: threads of training, of reading from disk.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from k2lab.model.k2 import K2
from k2lab.spec.costs import parameters

FEW = 128  # tokens of a forward
PAIRS = 2**18  # of a token and one that it looks at: 64 after 4,000 tokens gain by a second thread
SMALL = 2**22  # parameters that compute a token in one layer, at twenty products


def small(model: K2) -> bool:
    """Whether few tokens of this network are computed fastest by one thread of a CPU."""
    config = model.config
    active = parameters(config).active // config.num_hidden_layers
    return model.device.type == "cpu" and active <= SMALL


def few(tokens: int, sources: int) -> bool:
    """Whether a forward of `tokens`, each looking at `sources`, is short enough for one thread."""
    return tokens <= FEW and tokens * sources <= PAIRS


@contextmanager
def alone(*, wanted: bool) -> Iterator[None]:
    """One thread of torch for the time of the block, if wanted."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(before)


class _NumpyAlone:
    """One thread for NumPy's matrix products as long as anybody is in the block.

    Two take a fifth longer for a token of K2-nano, on two quiet cores and on busy ones (measured).
    Their number belongs to the process: the first one to come sets it, the last one to go gives
    back what was there.
    """

    def __init__(self) -> None:
        self._lock, self._wanting = threading.Lock(), 0
        self._libraries: ThreadpoolController | None = None  # found when first needed
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._libraries is None:
                self._libraries = ThreadpoolController().select(user_api="blas")
            if not self._wanting:
                self._limit = self._libraries.limit(limits=1)
            self._wanting += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._wanting -= 1
            if not self._wanting:
                self._limit.restore_original_limits()


numpy_alone = _NumpyAlone()


def as_here(work: Callable[[], object]) -> Callable[[], object]:
    """The work, for a thread of its own, with the number of threads that is set here.

    By itself a thread takes on the number that was set last anywhere, be it for one token.
    """
    count = torch.get_num_threads()

    def begin() -> object:
        torch.set_num_threads(count)
        return work()

    return begin
