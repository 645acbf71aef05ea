"""The calculator: whole numbers, + - * //, a minus sign and brackets; nothing else.

The expression is parsed into Python's syntax tree and only the nodes named here are walked, so
no name, call or attribute can be reached. There is no power and no division with remainder.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from k2lab.errors import InputError

LONGEST = 200
"""Characters of an expression at most; it bounds the nesting and the size of every result."""

OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.FloorDiv: operator.floordiv,
    }
)


def calculate(expression: str) -> int:
    """The value of an expression such as `3*24+2*7`."""
    text = expression.strip()
    if len(text) > LONGEST or not re.fullmatch(r"[0-9+\-*/() ]+", text):
        raise _wrong(expression)
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise _wrong(expression) from error


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            first, second = _value(left), _value(right)
            if isinstance(op, ast.FloorDiv) and second == 0:
                raise InputError(
                    "division by zero", expected="A divisor other than 0.", mend="Change it."
                )
            return OPERATORS[type(op)](first, second)
        case _:
            raise SyntaxError("a node outside the calculator")


def _wrong(expression: str) -> InputError:
    return InputError(
        f"cannot compute {expression[:60]!r}",
        expected=f"Whole numbers, + - * // and brackets, in at most {LONGEST} characters.",
        mend="Write the expression with these alone.",
    )
