"""Samplers: from logits to one token id.

    sampler(logits [vocab]) -> id

K2 Thinking is meant to be sampled at temperature 1.0; K2-nano's exact tasks are run greedily.
A sampler with a seed owns its generator, so the same seed gives the same tokens again, and its
state is what an interrupted run needs to go on with the draws it would have made.
"""

import ast
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from operator import index

import torch
from torch import Tensor

from k2lab.errors import InputError

SEEDS = range(-(2**63), 2**64)  # those that torch's generators take

Sampler = Callable[[Tensor], int]
"""Takes float32 logits [vocab], gives the chosen id."""


def greedy(logits: Tensor) -> int:
    """The likeliest token; the lowest id among equals."""
    return int(logits.cpu().numpy().argmax())  # NumPy's: it promises the first of equals


def sampled(
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> Sampler:
    """A sampler that draws from softmax(logits / temperature), cut to its likely part.

    `top_k` keeps the k likeliest (0: all), `top_p` the smallest set that holds this much
    probability, `min_p` those at least this fraction as likely as the likeliest. The cuts apply in
    that order, each to what the one before left. Temperature 0 is greedy. InputError where one of
    them is no number of its range.
    """
    made = Sampled(
        _number("temperature", temperature, low=0.0, high=100.0),
        _whole("top_k", top_k, low=0, high=2**31),
        _number("top_p", top_p, low=0.0, high=1.0),
        _number("min_p", min_p, low=0.0, high=1.0),
        _whole("seed", seed, low=SEEDS.start, high=SEEDS.stop - 1),
    )
    return greedy if made.temperature == 0 else made


@dataclass(frozen=True, slots=True)
class Sampled:
    """What `sampled` gives: its options, and the generator that they are drawn with."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    _generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(self.seed))

    def __call__(self, logits: Tensor) -> int:
        """The chosen id."""
        # From the largest down, so that a temperature near 0 gives −∞ and never ∞.
        spread = (logits - logits.max()).cpu() / self.temperature
        probabilities, ids = spread.softmax(-1).sort(descending=True, stable=True)
        if self.top_k:
            probabilities = probabilities[: self.top_k] / probabilities[: self.top_k].sum()
        if self.top_p < 1:
            # A token stays while what stands before it is less than top_p; the first always does.
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities[(before < self.top_p) | (before == 0)]
        if self.min_p:
            probabilities = probabilities[probabilities >= self.min_p * probabilities[0]]
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])

    @property
    def state(self) -> str:
        """Where its generator stands, as text."""
        return b64encode(zlib.compress(self._generator.get_state().numpy().tobytes())).decode()

    def at(self, state: str) -> "Sampled":
        """The same, with the generator where it stood."""
        made, generator = replace(self), torch.Generator()
        data = bytearray(zlib.decompress(b64decode(state)))
        generator.set_state(torch.frombuffer(data, dtype=torch.uint8))
        object.__setattr__(made, "_generator", generator)
        return made

    def __repr__(self) -> str:
        given = (each for each in fields(self) if each.init)
        options = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in given)
        return f"sampled({options})"


def anew(sampler: Sampler) -> Sampler:
    """The sampler with its generator at its seed; one of a person's own as it is.

    One that wraps others, such as a guide, has an `anew` of its own.
    """
    if isinstance(sampler, Sampled):
        return replace(sampler)
    own = getattr(sampler, "anew", None)
    return sampler if own is None else own()


def state_of(sampler: Sampler) -> str:
    """What a sampler needs to draw on as it would have; empty: it has nothing to remember."""
    return str(getattr(sampler, "state", ""))


def at(sampler: Sampler, state: str) -> Sampler:
    """The sampler where it was in this state; from its seed on where there is none."""
    own = getattr(sampler, "at", None)
    return sampler if own is None or not state else own(state)


def within(sampler: Sampler, turn: Sequence[int]) -> Sampler:
    """The sampler for a turn of which these ids are written; most need not know them."""
    own = getattr(sampler, "within", None)
    return sampler if own is None else own(turn)


def named(sampler: Sampler) -> str:
    """A sampler in words, the same in each process; a person's own by what it is."""
    if sampler is greedy or isinstance(sampler, Sampled):
        return "greedy" if sampler is greedy else repr(sampler)
    inner = getattr(sampler, "sampler", None)
    return f"{type(sampler).__qualname__}({'' if inner is None else named(inner)})"


def written(text: str) -> Sampler | None:
    """The sampler of this `repr`; None if it is a person's own."""
    if text == "greedy":
        return greedy
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "sampled" or call.args:
            return None
        return sampled(**{str(each.arg): ast.literal_eval(each.value) for each in call.keywords})
    except (SyntaxError, ValueError, TypeError):
        return None


def _number(name: str, value: object, *, low: float, high: float) -> float:
    if not isinstance(value, Real) or not low <= value <= high:  # type: ignore[operator]
        raise _unfit(name, value, f"a number from {low} to {high}")
    return float(value)


def _whole(name: str, value: object, *, low: int, high: int) -> int:
    expected = f"a whole number from {low} to {high}"
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise _unfit(name, value, expected) from error
    if not low <= number <= high:
        raise _unfit(name, value, expected)
    return number


def _unfit(name: str, value: object, expected: str) -> InputError:
    return InputError(
        f"{name} is {value!r:.80}.",
        expected=f"{expected}.",
        mend=f"Give {name} in that range, or leave it out.",
    )
