"""Notices that a run goes round in circles: the same calls with the same results, again and again.

A step is known by its calls and their results, so a poll whose results differ is no repetition.
Where a call may have changed the world, the model's thought belongs to the step too: taking the
same number twice from a queue is progress if the thought moved on. Cycles of up to four steps are
seen (A-B-A-B counts as two).
Source of the thresholds: MoonshotAI/kimi-cli, which acts after 3, 5, 8 and 12 repetitions.
"""

import hashlib
from collections.abc import Iterable, Sequence

from k2lab.engine.events import Repeated

LONGEST = 4  # steps of a cycle
WARN, URGE, WITHDRAW, END = 3, 5, 8, 12

WARNINGS = {
    "warned": "The last {n} steps made the same calls and got the same results. Asking again will "
    "not change them: use what is known, or try something else.",
    "urged": "Stop repeating: these calls were made {n} times with the same results. Do not make "
    "them again. Take another way, or answer with what is known.",
    "tools withdrawn": "The tools are withdrawn after {n} equal steps. Answer now with what is "
    "known.",
}
WITHDRAWN = "error: the tools are withdrawn, since the same calls were made again and again"


def signature(parts: Iterable[str]) -> str:
    """The digest of all that makes a step what it is."""
    lengths = ((part.encode("utf-8", "surrogatepass"), len(part)) for part in parts)
    digest = hashlib.sha256()
    for part, length in lengths:
        digest.update(f"{length}:".encode() + part)
    return digest.hexdigest()


class Repeats:
    """The steps so far, as far back as it matters."""

    def __init__(self, before: Sequence[str] = ()) -> None:
        """`before`: signatures of earlier steps."""
        self._steps: list[str] = []
        self._times = 0
        for each in before:
            self.step(each)

    @property
    def withdrawn(self) -> bool:
        """Whether calls are no longer made; once so, for the rest of the run."""
        return self._times >= WITHDRAW

    def step(self, signature: str) -> Repeated | None:
        """Take in a step; what has to be done about it, told once per threshold."""
        self._steps = [*self._steps, signature][-LONGEST * END :]
        before = self._times
        if self.withdrawn:  # results are no longer real: each further step of calls counts
            self._times += 1
        else:
            self._times = max(self._count(length) for length in range(1, LONGEST + 1))
        if self._times >= END:
            return Repeated(self._times, "ended")
        if self._times >= WITHDRAW > before:
            return Repeated(self._times, "tools withdrawn")
        if self._times >= URGE > before:
            return Repeated(self._times, "urged")
        if self._times >= WARN > before:
            return Repeated(self._times, "warned")
        return None

    def _count(self, length: int) -> int:
        """How often the last `length` steps stand at the end, one after the other."""
        steps = self._steps
        cycle, count = steps[-length:], 1
        if length > 1 and len(set(cycle)) == 1:
            return 1  # a shorter cycle, counted there
        while steps[-length * (count + 1) : -length * count] == cycle:
            count += 1
        return count
