"""Tools a model may call: a name, a JSON Schema and a Python function.

A tool is described to the model with `declare` and run with `call`, which turns every failure
into text that the model gets to read. What is not covered: permissions, timeouts and isolation;
a tool runs in this process with all the rights of this process.
Sources: JSON Schema Draft 2020-12; the OpenAI form of tool declarations.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from k2lab.errors import K2LabError, ToolError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""What a tool may be called: the name stands inside call ids such as `functions.price:0`."""

SCALARS: Mapping[type, str] = types.MappingProxyType(
    {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
)


class _Derived(dict[str, Any]):
    """A schema made from annotations: valid by construction.

    So that the lab's own tools do not load jsonschema, which takes longer than a first token.
    """


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is the JSON Schema of its arguments object."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., object]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ToolError(
                f"The tool name {self.name!r} cannot stand in a call id.",
                expected="A letter or underscore, then up to 63 letters, digits, - or _.",
                mend="Rename the tool.",
            )
        if not callable(self.function):
            raise ToolError(
                f"The function of the tool {self.name!r} is a {type(self.function).__name__}.",
                expected="Something callable.",
                mend="Pass the function itself, not its result.",
            )
        if not isinstance(self.parameters, Mapping) or self.parameters.get("type") != "object":
            raise ToolError(
                f"The parameters of the tool {self.name!r} do not describe an object.",
                expected='A JSON Schema with "type": "object".',
                mend="List the arguments under properties of one object.",
            )
        problem = _schema_problem(self.parameters)
        if problem:
            raise ToolError(
                f"The parameters of the tool {self.name!r} are not JSON Schema: {problem}.",
                expected="A JSON Schema of Draft 2020-12 made of plain JSON values.",
                mend="Correct the schema, or let tool() derive it from a function.",
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model gets to read after a call; `ok` is false where the text tells of a failure."""

    content: str
    ok: bool


def tool(function: Callable[..., object]) -> Tool:
    """A `Tool` from a function: its name, its docstring, and a schema from its annotations.

    Understood: str, int, float, bool, None, list[T], Literal, unions, defaults, and
    `Annotated[T, "meaning"]` for the description of one argument.
    """
    name = getattr(function, "__name__", "")
    if inspect.iscoroutinefunction(function):
        raise ToolError(
            f"The tool {name!r} is a coroutine function.",
            expected="A plain function.",
            mend="Wrap it in a function that waits for the result.",
        )
    try:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise ToolError(
            f"The annotations of the tool {name!r} cannot be read: {error}.",
            expected="A function whose annotations name types that exist.",
            mend="Correct the annotations, or build a Tool with its own schema.",
        ) from error
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            _refuse(name, parameter.name, "cannot be given by name")
        if parameter.name not in hints:
            _refuse(name, parameter.name, "has no annotation")
        schema = _schema(hints[parameter.name], tool_name=name, argument=parameter.name)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            schema["default"] = parameter.default
        properties[parameter.name] = schema
    parameters = _Derived(
        type="object", properties=properties, required=required, additionalProperties=False
    )
    description = inspect.cleandoc(function.__doc__ or "")
    return Tool(name, description, parameters, function)


def call(tool: Tool, arguments_text: str) -> Outcome:
    """The outcome of one call with the arguments as the model wrote them; never raises Exception.

    The text of a failure starts with `error: `. A result that is not a string is written as JSON.
    """
    try:
        arguments = json.loads(arguments_text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Outcome(f"error: the arguments are not JSON: {error}", ok=False)
    from jsonschema.exceptions import best_match

    problem = best_match(_validator(_canonical(tool.parameters)).iter_errors(arguments))
    if problem is not None:
        where = "".join(f" at {step!r}" for step in problem.absolute_path)
        return Outcome(f"error: wrong arguments{where}: {problem.message}", ok=False)
    try:
        result = tool.function(**arguments)
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except K2LabError as error:
        return Outcome(f"error: {error.found}", ok=False)
    except Exception as error:  # noqa: BLE001 - whatever a tool raises, the model gets to read
        return Outcome(f"error: {str(error) or type(error).__name__}", ok=False)
    return Outcome(content, ok=True)


def declare(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """The tools in the OpenAI form, as chat templates declare them."""
    return [
        {
            "type": "function",
            "function": {
                "name": each.name,
                "description": each.description,
                "parameters": dict(each.parameters),
            },
        }
        for each in tools
    ]


def _schema(hint: Any, *, tool_name: str, argument: str) -> dict[str, Any]:
    """The JSON Schema of one annotation."""
    if isinstance(hint, type) and hint in SCALARS:
        return {"type": SCALARS[hint]}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        schema = _schema(inner[0], tool_name=tool_name, argument=argument)
        notes = [note for note in inner[1:] if isinstance(note, str)]
        return {**schema, "description": " ".join(notes)} if notes else schema
    if origin is Literal:
        return {"enum": list(inner)}
    if hint is list:
        return {"type": "array"}
    if origin is list:
        return {
            "type": "array",
            "items": _schema(inner[0], tool_name=tool_name, argument=argument),
        }
    if origin in (Union, types.UnionType):
        branches = [_schema(each, tool_name=tool_name, argument=argument) for each in inner]
        return {"anyOf": branches}
    _refuse(tool_name, argument, f"is annotated {hint!r}, which has no JSON Schema here")


def _refuse(tool_name: str, argument: str, reason: str) -> NoReturn:
    raise ToolError(
        f"The argument {argument!r} of the tool {tool_name!r} {reason}.",
        expected="Named arguments annotated str, int, float, bool, list[T], Literal or a union.",
        mend="Annotate the argument, or build a Tool with its own schema.",
    )


def _schema_problem(parameters: Mapping[str, Any]) -> str:
    """Why the parameters are not JSON Schema; empty if they are."""
    try:
        text = _canonical(parameters)
    except (TypeError, ValueError) as error:
        return str(error)
    if isinstance(parameters, _Derived):
        return ""
    from jsonschema.exceptions import SchemaError

    try:
        _validator(text)
    except SchemaError as error:
        return error.message
    return ""


def _canonical(parameters: Mapping[str, Any]) -> str:
    return json.dumps(dict(parameters), sort_keys=True, allow_nan=False)


@lru_cache(maxsize=512)
def _validator(schema_text: str) -> "Draft202012Validator":
    """The validator of a schema text; kept, since checking a schema costs a millisecond."""
    from jsonschema import Draft202012Validator

    schema = json.loads(schema_text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
