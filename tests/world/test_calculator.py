"""The calculator: exact where it is allowed to compute, and closed to everything else."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2lab.errors import InputError
from k2lab.world.calculator import calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2", 3),
        ("3*24+2*7", 86),
        (" (12 + 7) * 45 ", 855),
        ("-3 - -4", 1),
        ("7//2", 3),
        ("-7//2", -4),
        ("9" * 60 + "*" + "9" * 60, (10**60 - 1) ** 2),
    ],
)
def test_value(expression: str, value: int) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "1+",
        "2**3",
        "7/2",
        "7%2",
        "1//0",
        "007",
        "1 2",
        "()",
        "(1,)",
        "+1",
        "1.5",
        "1_000",
        "a",
        "__import__('os')",
        "1if 1else 2",
        "٣+٣",
        "1\n+2",
        "(" * 150 + "1",
        "1+" * 100 + "1",
        "3(4)",
        "-" * 150 + "x",
    ],
)
def test_anything_else_is_refused(expression: str) -> None:
    with pytest.raises(InputError):
        calculate(expression)


@given(st.text(alphabet="0123456789+-*/() ", max_size=60))
def test_any_string_gives_a_number_or_an_input_error(expression: str) -> None:
    with suppress(InputError):
        assert isinstance(calculate(expression), int)
