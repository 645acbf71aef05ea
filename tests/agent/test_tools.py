"""Tools: what becomes of functions, arguments and failures."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import pytest

from k2lab.agent.tools import Outcome, Tool, by_name, call, declare, tool
from k2lab.errors import InputError, ToolError


def order(
    item: Annotated[str, "what to order"],
    count: int = 1,
    sizes: list[float] | None = None,
    *,
    speed: Literal["slow", "fast"] = "slow",
    gift: bool = False,
) -> str:
    """Order something.

    It may take a while.
    """
    return f"{count} {item} {sizes} {speed} {gift}"


def test_schema_comes_from_annotations_and_defaults() -> None:
    made = tool(order)
    assert made.name == "order"
    assert made.description == "Order something.\n\nIt may take a while."
    assert made.parameters == {
        "type": "object",
        "properties": {
            "item": {"type": "string", "description": "what to order"},
            "count": {"type": "integer", "default": 1},
            "sizes": {
                "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}],
                "default": None,
            },
            "speed": {"enum": ["slow", "fast"], "default": "slow"},
            "gift": {"type": "boolean", "default": False},
        },
        "required": ["item"],
        "additionalProperties": False,
    }


def test_declaration_is_the_openai_form_and_plain_json() -> None:
    (declared,) = declare([tool(order)])
    assert declared["type"] == "function"
    assert set(declared["function"]) == {"name", "description", "parameters"}
    assert json.loads(json.dumps(declared)) == declared


def test_valid_arguments_reach_the_function() -> None:
    text = '{"item": "tent", "count": 2, "sizes": [1.5], "speed": "fast"}'
    assert call(tool(order), text) == Outcome("2 tent [1.5] fast False", ok=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"tent"',
        "{}",
        '{"item": 3}',
        '{"item": "tent", "count": "2"}',
        '{"item": "tent", "count": true}',
        '{"item": "tent", "speed": "light"}',
        '{"item": "tent", "colour": "red"}',
        '{"item": NaN}',
        '{"item": "a", "sizes": [1e999]}',
        "[" * 100_000,
        '{"item": ' + "9" * 5000 + "}",
        '{"item": "tent"} {"item": "tent"}',
    ],
)
def test_wrong_arguments_become_text_for_the_model(text: str) -> None:
    outcome = call(tool(order), text)
    assert not outcome.ok
    assert outcome.content.startswith("error: ")


@pytest.mark.parametrize(
    ("result", "content"),
    [("a b", "a b"), (14, "14"), (True, "true"), (None, "null"), ([1, "é"], '[1, "é"]')],
)
def test_results_become_text(result: object, content: str) -> None:
    made = Tool("give", "", {"type": "object"}, lambda: result)
    assert call(made, "{}") == Outcome(content, ok=True)


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (TimeoutError("timeout"), "error: timeout"),
        (RuntimeError(), "error: RuntimeError"),
        (InputError("no tent", expected="A tent.", mend="Buy one."), "error: no tent"),
    ],
)
def test_failures_of_a_tool_become_text_for_the_model(error: Exception, content: str) -> None:
    made = Tool("fail", "", {"type": "object"}, raising(error))
    assert call(made, "{}") == Outcome(content, ok=False)


def test_result_without_json_form_is_a_failure() -> None:
    made = Tool("give", "", {"type": "object"}, object)
    assert not call(made, "{}").ok


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("", {"type": "object"}),
        ("a b", {"type": "object"}),
        ("a" * 65, {"type": "object"}),
        ("fine", {}),
        ("fine", {"type": "array"}),
        ("fine", {"type": "object", "properties": {"x": {"type": "strnig"}}}),
        ("fine", {"type": "object", "required": "x"}),
        ("fine", {"type": "object", "default": object()}),
        ("fine", {"type": "object", "default": float("nan")}),
    ],
)
def test_unusable_tool_is_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ToolError) as caught:
        Tool(name, "", parameters, print)
    assert all((caught.value.found, caught.value.expected, caught.value.mend))


def no_annotation(item) -> str:  # type: ignore[no-untyped-def]
    return str(item)


def any_arguments(*items: str) -> str:
    return str(items)


def without_schema(item: complex) -> str:
    return str(item)


async def coroutine(item: str) -> str:
    return item


@pytest.mark.parametrize("function", [no_annotation, any_arguments, without_schema, coroutine])
def test_function_without_a_schema_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ToolError):
        tool(function)


def test_function_that_is_not_callable_is_refused() -> None:
    with pytest.raises(ToolError):
        Tool("fine", "", {"type": "object"}, "text")  # type: ignore[arg-type]


LATER = """
import sys
from k2lab.agent.tools import load_jsonschema
load_jsonschema()
from jsonschema import Draft202012Validator
assert "rfc3987_syntax" not in sys.modules
check = Draft202012Validator.FORMAT_CHECKER
print(check.conforms("https://example.org/é", "iri"), check.conforms("no iri", "iri"))
assert "rfc3987_syntax" in sys.modules
load_jsonschema()
"""


@pytest.mark.skipif(find_spec("rfc3987_syntax") is None, reason="brought along by JupyterLab")
def test_the_grammar_of_iris_is_built_for_whoever_asks_for_it() -> None:
    found = subprocess.run(
        [sys.executable, "-c", LATER], check=True, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.split() == ["True", "False"]


def test_two_tools_of_one_name_are_refused() -> None:
    price = Tool("price", "", {"type": "object"}, print)
    assert by_name([price]) == {"price": price}
    with pytest.raises(ToolError, match="Two tools are called 'price'"):
        by_name([price, Tool("price", "", {"type": "object"}, repr)])
