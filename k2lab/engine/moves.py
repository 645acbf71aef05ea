"""What an offloading store moved, as an event of the run.

Not here: the moving (`weights/tiered.py`) and its replay (`weights/residency.py`).
"""

from collections.abc import Iterator

import numpy as np

from k2lab.engine.events import ExpertsMoved
from k2lab.weights.store import Mover, WeightStore


def moved(store: WeightStore, start: int, tokens: int) -> Iterator[ExpertsMoved]:
    """One event for the forward over `tokens` tokens from `start`; none where nothing can move."""
    if not isinstance(store, Mover):
        return
    moves = store.take_moves()
    yield ExpertsMoved(
        start,
        tokens,
        store.slots,
        np.array(moves.hits, np.int64),
        np.array(moves.misses, np.int64),
        np.array(moves.stall_seconds, np.float64),
        np.array(moves.loads, np.int32).reshape(-1, 4),
        moves.bytes_moved,
    )
