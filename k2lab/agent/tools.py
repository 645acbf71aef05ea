"""Tools a model may call: a name, a JSON Schema and a Python function.

A tool is described to the model with `declare` and run with `call`, which turns every failure
into text that the model gets to read. What is not covered: threads, timeouts and retries
(`calling.py`), permissions (`policy.py`) and isolation (`sandbox.py`); a tool runs in this process
with all the rights of this process.
Sources: JSON Schema Draft 2020-12; the OpenAI form of tool declarations.
"""

import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
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
    overload,
)

from k2lab.errors import InputError, K2LabError, ToolError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""What a tool may be called: the name stands inside call ids such as `functions.price:0`."""

SCALARS: Mapping[type, str] = types.MappingProxyType(
    {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
)


Effect = Literal["reads", "repeatable", "writes"]
"""What a call does to the world: nothing; the same however often it is made; or more each time."""

IRIS = "rfc3987_syntax"  # a package that jsonschema imports where it is there

TIMEOUT = 60.0  # seconds for one attempt, unless the tool says otherwise


class _Derived(dict[str, Any]):
    """A schema made from annotations: valid by construction.

    So that the lab's own tools do not load jsonschema, which takes longer than a first token.
    """


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is the JSON Schema of its arguments object.

    What is not said is taken for the worse: that a call changes the world, so that it is never
    made twice, and that its result holds somebody else's words.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., object]
    effect: Effect = field(default="writes", kw_only=True)
    trusted: bool = field(default=False, kw_only=True)  # no outsider can put words in its results
    timeout: float = field(default=TIMEOUT, kw_only=True)  # seconds for one attempt
    cost: float = field(default=0.0, kw_only=True)  # of one call, in the unit of `Budget.cost`

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
        if self.effect not in get_args(Effect) or not self.timeout > 0 or not self.cost >= 0:
            raise ToolError(
                f"The tool {self.name!r} has the effect {self.effect!r}, the timeout "
                f"{self.timeout} and the cost {self.cost}.",
                expected=f"An effect of {', '.join(get_args(Effect))}, seconds, and no refund.",
                mend="Correct what stands in `tool(…)`.",
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


@overload
def tool(function: Callable[..., object], **habits: Any) -> Tool: ...
@overload
def tool(**habits: Any) -> Callable[[Callable[..., object]], Tool]: ...
def tool(
    function: Callable[..., object] | None = None, **habits: Any
) -> Tool | Callable[[Callable[..., object]], Tool]:
    """A `Tool` from a function: its name, its docstring, and a schema from its annotations.

    Understood: str, int, float, bool, None, list[T], Literal, unions, defaults, and
    `Annotated[T, "meaning"]` for the description of one argument. `@tool(effect="reads")` and the
    like say what a `Tool` should know beyond that.
    """
    if function is None:
        return partial(tool, **habits)
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
    return Tool(name, description, parameters, function, **habits)


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """The tools by their names; a ToolError where two have the same."""
    found: dict[str, Tool] = {}
    for each in tools:
        if each.name in found:
            raise ToolError(
                f"Two tools are called {each.name!r}.",
                expected="a name of its own for each, those of a memory among them.",
                mend="Rename one; tools of an MCP server take a `prefix`.",
            )
        found[each.name] = each
    return found


def call(tool: Tool, arguments_text: str) -> Outcome:
    """The outcome of one call with the arguments as the model wrote them; never raises Exception.

    The text of a failure starts with `error: `. A result that is not a string is written as JSON.
    """
    try:
        return perform(tool, read_arguments(tool, arguments_text))
    except K2LabError as error:
        return Outcome(f"error: {error.found}", ok=False)
    except Exception as error:  # noqa: BLE001 - whatever a tool raises, the model gets to read
        return Outcome(f"error: {str(error) or type(error).__name__}", ok=False)


def perform(tool: Tool, arguments: Mapping[str, Any]) -> Outcome:
    """The outcome of the function itself; raises what it raises."""
    result = tool.function(**arguments)
    content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return Outcome(content, ok=True)


def read_arguments(tool: Tool, text: str) -> dict[str, Any]:
    """The arguments that a text holds; an InputError unless they are JSON of the tool's schema.

    Refused too: a key twice, since programs differ in which they take, NaN, and numbers
    that are infinite as a float.
    """
    try:
        arguments = _json(text)
    except (ValueError, RecursionError) as error:
        raise _unfit(f"the arguments are not JSON: {error}", tool) from error
    if not isinstance(arguments, dict):
        raise _unfit(f"wrong arguments: {text[:40]} is not an object", tool)
    problem = misfit(tool.parameters, arguments)
    if problem:
        raise _unfit(f"wrong arguments{problem}", tool)
    return arguments


def misfit(schema: Mapping[str, Any], value: object) -> str:
    """Where and why a value does not fit a schema, to stand after a word; empty if it fits."""
    load_jsonschema()
    from jsonschema.exceptions import SchemaError, best_match
    from referencing.exceptions import Unresolvable

    try:
        problem = best_match(_validator(_canonical(schema)).iter_errors(value))
    except (SchemaError, Unresolvable, TypeError, ValueError) as error:
        return f": the schema cannot be used ({type(error).__name__})"
    if problem is None:
        return ""
    where = "".join(f" at {step!r}" for step in problem.absolute_path)
    return f"{where}: {problem.message}"


def canonical_arguments(text: str) -> str:
    """The arguments as JSON with sorted keys and no spaces; text that is not JSON as it stands."""
    try:
        value = _json(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


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
    load_jsonschema()
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
    load_jsonschema()
    from jsonschema import Draft202012Validator
    from referencing import Registry

    schema = json.loads(schema_text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=Registry())  # fetches nothing from anywhere


def load_jsonschema() -> None:
    """Import jsonschema without the grammar of IRIs, which takes 0.7 s to build (measured).

    JupyterLab brings that along. Whoever checks a text against the format gets it then.
    """
    if "jsonschema" in sys.modules or IRIS in sys.modules or find_spec(IRIS) is None:
        return

    def is_valid_syntax(term: str, text: str) -> object:
        return import_module(IRIS).is_valid_syntax(term, text)

    sys.modules[IRIS] = later = types.ModuleType(IRIS)
    later.is_valid_syntax = is_valid_syntax  # type: ignore[attr-defined]
    try:
        import_module("jsonschema")
    finally:
        sys.modules.pop(IRIS, None)  # another thread may have been as quick


def _json(text: str) -> Any:
    return json.loads(
        text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
    )


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no finite JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _unfit(found: str, tool: Tool) -> InputError:
    return InputError(
        found,
        expected=f"JSON that fits the parameters of the tool {tool.name}.",
        mend="Write the call again.",
    )
