"""Table: columns of equal length that grow while others read, and may forget their first rows.

Every column is written before the length that publishes it, and a full buffer is replaced by a
longer copy, never moved: what a reader has got stays valid. Columns may be views of a file or of
another table; the first row that is appended makes a copy.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FIRST_CAPACITY = 256

Column = tuple[int, NDArray[Any]]  # number of its first row, and the buffer


class Table:
    """Columns by name; rows `first … length − 1` are kept."""

    def __init__(self, columns: Mapping[str, Column], *, first: int, length: int) -> None:
        self.first, self.length = first, length
        self._columns = dict(columns)

    @classmethod
    def empty(
        cls, columns: Mapping[str, tuple[DTypeLike, tuple[int, ...]]], *, first: int = 0
    ) -> "Table":
        """No rows yet; dtype and shape of a row by name; the first row will have this number."""
        made = {
            name: (first, np.zeros((0, *shape), dtype))  # the first row makes room
            for name, (dtype, shape) in columns.items()
        }
        return cls(made, first=first, length=first)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], *, first: int = 0) -> "Table":
        """These arrays [row, …] as they are, the first row with this number."""
        rows = {len(array) for array in arrays.values()}
        assert len(rows) <= 1, f"columns of {sorted(rows)} rows"
        columns = {name: (first, array) for name, array in arrays.items()}
        return cls(columns, first=first, length=first + (rows.pop() if rows else 0))

    @property
    def names(self) -> Iterable[str]:
        """Names of the columns."""
        return self._columns.keys()

    def __getitem__(self, name: str) -> NDArray[Any]:
        length = self.length  # before the buffer: it may be replaced in between, by a longer one
        base, buffer = self._columns[name]
        view = buffer[max(0, self.first - base) : length - base]
        view.flags.writeable = False
        return view

    def append(self, count: int, **values: Any) -> None:
        """Adds `count` rows; a scalar is the same in all of them."""
        stop = self.length + count
        for name, value in values.items():
            base, column = self._columns[name]
            full = stop - base > len(column)
            if count and (full or not column.flags.writeable):
                kept = column[self.first - base : self.length - base]
                capacity = max(stop - self.first, 2 * len(kept), FIRST_CAPACITY)
                longer = np.zeros((capacity, *column.shape[1:]), column.dtype)
                longer[: len(kept)] = kept
                base, column = self.first, longer
                self._columns[name] = base, column
            column[self.length - base : stop - base] = value
        self.length = stop

    def forget(self, first: int) -> None:
        """Rows before `first` are given up; their memory goes when a buffer is next replaced."""
        self.first = min(max(first, self.first), self.length)

    def fork(self, length: int) -> "Table":
        """A table with the rows before `length`, which grows on its own; shares them until then."""
        length = min(self.length, length)  # before the buffers: it may grow in between
        columns = {}
        for name, (base, buffer) in self._columns.items():
            view = buffer[: max(0, length - base)]
            view.flags.writeable = False
            columns[name] = base, view
        return Table(columns, first=min(self.first, length), length=length)

    @property
    def nbytes(self) -> int:
        """Bytes of the kept rows."""
        return sum(self[name].nbytes for name in self._columns)
