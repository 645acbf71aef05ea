"""Amounts of memory: what people write is read, and nothing else."""

import numpy as np
import pytest

from k2lab.errors import InputError
from k2lab.spec.amounts import nbytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20GiB", 20 * 2**30),
        ("20 gib", 20 * 2**30),
        ("1.5GB", 1_500_000_000),
        (".5 kB", 500),
        ("80e", None),
        ("4096", 4096),
        ("7B", 7),
        ("9007199254740993", 2**53 + 1),
        ("9" * 30 + " TiB", (10**30 - 1) * 2**40),
        ("2 TiB", 2 * 2**40),
        (0, 0),
        (12345678901, 12345678901),
        (np.int32(7), 7),
    ],
)
def test_amounts(text: str | int, value: int | None) -> None:
    if value is None:
        with pytest.raises(InputError, match="80e"):
            nbytes(text)
    else:
        assert nbytes(text) == value


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1,5 GB", "20 GiBs", "1e9", -1, 2e7, None, b"1", "9" * 5000]
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(InputError, match="20GiB"):
        nbytes(text)  # type: ignore[arg-type]
