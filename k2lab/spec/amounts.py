"""Amounts of memory as people write them: `20GiB`, `1.5 TB`, `4096`.

What it is not: a parser of durations or speeds.
"""

import re
from fractions import Fraction
from operator import index

from k2lab.errors import InputError

UNITS = {"": 1, "B": 1} | {
    name: base**power
    for base, names in ((1000, ("kB", "MB", "GB", "TB")), (1024, ("KiB", "MiB", "GiB", "TiB")))
    for power, name in enumerate(names, 1)
}
"""Bytes of each unit."""

_FOLDED = {name.casefold(): size for name, size in UNITS.items()}


def nbytes(amount: str | int) -> int:
    """Bytes of an amount of memory.

    >>> nbytes("20GiB"), nbytes("1.5 GB"), nbytes(4096)
    (21474836480, 1500000000, 4096)
    """
    if isinstance(amount, str):
        found = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?|\.\d{1,30})\s*([A-Za-z]*)\s*", amount)
        if found and found[2].casefold() in _FOLDED:
            return int(Fraction(found[1]) * _FOLDED[found[2].casefold()])
    elif hasattr(amount, "__index__") and index(amount) >= 0:
        return index(amount)
    raise InputError(
        f"The amount of memory {amount!r:.80}.",
        expected="a number of bytes from 0 up, or a number and one of "
        f"{', '.join(name for name in UNITS if name)}.",
        mend="Write it as in '20GiB'.",
    )
