"""Edits of experts, heads and routers as plain records, with a JSON form.

An edit names what is done, in which layer, to whom, and for which tokens: all, a range
`[first, last)` of the run, or one segment (thinking, answer, call …). It acts while the network
*reads* these tokens, so it shows in the choice of the tokens after them. A page, a file and a cell
of code can say the same edit.

    zero        the expert is computed and its output dropped; the others keep their weights
    around      the expert cannot be chosen; the next best takes its place, weights add up again
    force       the expert is always chosen, with the weight that its own score gives it
    bias        the choice score changes by `amount` before the top k; weights are not biased
    zero_heads  the heads' outputs are dropped before the output projection
    router      another rule chooses: see `SwapRouter`

Not here: how an edit is carried out (`surgery.py`), and edits of any other site (`taps.edit`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, fields
from operator import index
from typing import Any, ClassVar, Literal, TypedDict, get_args

from k2lab.engine.events import KINDS, Kind
from k2lab.errors import InputError
from k2lab.spec.config import K2Config
from k2lab.spec.sites import match

Rule = Literal["softmax", "unbiased", "adaptive"]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoped:
    """Where an edit acts."""

    layer: int  # as in site names, from 0
    tokens: tuple[int, int] | None = None  # [first, last) of the run; None: all
    segment: Kind | None = None  # tokens of one kind only


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroExperts(_Scoped):
    """The experts' outputs are dropped; nothing is renormalised."""

    do: ClassVar[str] = "zero"
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteAround(_Scoped):
    """The experts cannot be chosen; the router's own normalisation makes up for them."""

    do: ClassVar[str] = "around"
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForceExperts(_Scoped):
    """The experts are always among the chosen."""

    do: ClassVar[str] = "force"
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasExperts(_Scoped):
    """The experts' choice scores are raised by `amount`, lowered where it is negative."""

    do: ClassVar[str] = "bias"
    experts: tuple[int, ...]
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroHeads(_Scoped):
    """The attention heads' outputs are dropped."""

    do: ClassVar[str] = "zero_heads"
    heads: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapRouter(_Scoped):
    """Another rule in the router's place.

    softmax: experts compete, scores are a softmax over all of them, no balancing bias.
    unbiased: the model's own scores, no balancing bias.
    adaptive: as many of the chosen as the softmax over all experts has effective choices,
    exp(entropy) rounded up, at most the model's own number; their weights add up again.
    """

    do: ClassVar[str] = "router"
    rule: Rule


Edit = ZeroExperts | RouteAround | ForceExperts | BiasExperts | ZeroHeads | SwapRouter
OfExperts = ZeroExperts | RouteAround | ForceExperts | BiasExperts
EDITS: tuple[type[Edit], ...] = get_args(Edit)
BY_NAME: dict[str, type[Edit]] = {kind.do: kind for kind in EDITS}


class How(TypedDict, total=False):
    """What `lab.edit(site, …)` does at the site, and for which tokens; numbers may be NumPy's."""

    ablate: Sequence[int]  # of a router: ZeroExperts; of an attention: ZeroHeads
    around: Sequence[int]
    force: Sequence[int]
    bias: Mapping[int, float]
    rule: Rule
    tokens: tuple[int, int]
    segment: Kind


def edits_at(site: str, how: How, config: K2Config) -> tuple[Edit, ...]:
    """The edits at a router or an attention, e.g. `layers.4.mlp.router`; `*` for many layers."""
    unknown = sorted(how.keys() - How.__annotations__.keys())
    if unknown:
        raise refused(f"An edit with {', '.join(unknown)}", ", ".join(How.__annotations__))
    attention = site.rpartition(".")[2] == "self_attn"
    names = match(f"{site}.heads" if attention else f"{site}.choice", config)
    made: list[Edit] = []
    # An iterator is read once, for every layer.
    once: Any = {key: [*it] if isinstance(it, Iterator) else it for key, it in how.items()}
    for name in names:
        scope: dict[str, Any] = {"layer": int(name.split(".")[1])}
        scope |= {key: how[key] for key in ("tokens", "segment") if key in how}  # type: ignore[literal-required]
        made += map(from_json, _made(once, scope, attention=attention))
    if not made:
        raise InputError(
            f"Nothing is to be done at {site!r}.",
            expected="ablate, around, force, bias or rule (for an attention: ablate).",
            mend="Write e.g. lab.edit('layers.4.mlp.router', ablate=[12]).",
        )
    return tuple(made)


def to_json(edit: Edit) -> dict[str, Any]:
    """The edit as JSON values: `do`, `layer`, and what differs from "everywhere"."""
    known = {field.name: getattr(edit, field.name) for field in fields(edit)}
    plain = {
        name: list(value) if isinstance(value, tuple | list) else value
        for name, value in known.items()
        if value is not None
    }
    return {"do": edit.do, **plain}


def from_json(source: object) -> Edit:
    """The edit that JSON values describe; everything about them is checked."""
    name = source.get("do") if isinstance(source, Mapping) else type(source).__name__
    if not isinstance(source, Mapping) or not isinstance(name, str) or name not in BY_NAME:
        raise refused(f"An edit with do = {str(name)[:40]!r}", f"one of {', '.join(BY_NAME)}")
    kind = BY_NAME[name]
    known = {field.name for field in fields(kind)}
    unknown = [str(name) for name in source if name not in {"do", *known}]
    missing = [name for name in known - {"tokens", "segment"} if name not in source]
    if unknown or missing:
        found = f"has {', '.join(unknown)}" if unknown else f"lacks {', '.join(sorted(missing))}"
        raise refused(f"An edit '{kind.do}' that {found}", ", ".join(sorted(known)))
    return kind(**{name: _value(name, source[name]) for name in known if name in source})


def unique(edits: Iterable[Edit | Json]) -> tuple[Edit, ...]:
    """The edits without repetitions, in order; JSON forms are read, records checked like them."""
    sources = (to_json(each) if isinstance(each, EDITS) else each for each in edits)
    return tuple(dict.fromkeys(map(from_json, sources)))


def _made(how: How, scope: Mapping[str, Any], *, attention: bool) -> Iterator[Json]:
    """What is to be done at one site, as JSON values that nobody has checked yet."""
    if attention:
        wrong = sorted(how.keys() - {"ablate", "tokens", "segment"})
        if wrong:
            raise refused(f"An edit of heads with {', '.join(wrong)}", "ablate=[head, …]")
        if (heads := _given(how, "ablate")) is not None:
            yield {"do": ZeroHeads.do, "heads": heads, **scope}
        return
    for key, kind in (("ablate", ZeroExperts), ("around", RouteAround), ("force", ForceExperts)):
        if (experts := _given(how, key)) is not None:
            yield {"do": kind.do, "experts": experts, **scope}
    if (bias := _given(how, "bias")) is not None:
        if not isinstance(bias, Mapping):
            raise refused(f"An edit with bias = {str(bias)[:80]}", "amounts by expert, {12: -0.5}")
        for expert, amount in bias.items():
            yield {"do": BiasExperts.do, "experts": [expert], "amount": amount, **scope}
    if "rule" in how:
        yield {"do": SwapRouter.do, "rule": how["rule"], **scope}


def _given(how: How, key: str) -> Any:
    """What the key says; None where it says nothing or names nobody."""
    value = _plain(how.get(key))
    return None if isinstance(value, Sized) and not len(value) else value


def _value(name: str, value: object) -> Any:
    """One value of an edit as its field wants it."""
    value, wholes = _plain(value), _wholes(value)
    if name == "layer" and (number := whole(value)) is not None:
        return number
    if name in ("experts", "heads") and wholes:
        return tuple(dict.fromkeys(wholes))
    if name in ("tokens", "segment") and value is None:
        return None
    pair = isinstance(value, list | tuple) and len(wholes) == 2  # a range would be misread
    if name == "tokens" and pair and 0 <= wholes[0] < wholes[1]:
        return wholes
    if name == "segment" and value in KINDS:
        return value
    if name == "rule" and value in get_args(Rule):
        return value
    if name == "amount" and type(value) in (int, float) and abs(value) < 1e6:  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    wanted = {
        "layer": "a layer number",
        "experts": "a list of expert numbers",
        "heads": "a list of head numbers",
        "tokens": "two positions, the first before the last",
        "segment": f"one of {', '.join(KINDS)}",
        "rule": f"one of {', '.join(get_args(Rule))}",
        "amount": "a number between −1,000,000 and 1,000,000",
    }
    raise refused(f"An edit with {name} = {str(value)[:80]}", wanted[name])


def _plain(value: Any) -> Any:
    """NumPy's and PyTorch's numbers and arrays as Python's own; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def whole(value: Any) -> int | None:
    """The number, where it is a whole one: not True, and not 1.0."""
    value = _plain(value)
    try:
        return None if isinstance(value, bool) else index(value)
    except TypeError:
        return None


def _wholes(value: object) -> tuple[int, ...]:
    """The numbers of a list, a range, a set or an array of whole ones; () for anything else."""
    value = _plain(value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | Set):
        return ()
    found = tuple(whole(each) for each in value)
    return () if None in found else found  # type: ignore[return-value]


def refused(found: str, expected: str) -> InputError:
    """The error for an edit that cannot be."""
    return InputError(
        f"{found}.", expected=f"{expected}.", mend="Correct the edit; see k2lab.engine.edits."
    )
