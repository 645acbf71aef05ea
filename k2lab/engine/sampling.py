"""Samplers: from logits to one token id.

    sampler(logits [vocab]) -> id

K2 Thinking is meant to be sampled at temperature 1.0; K2-nano's exact tasks are run greedily.
A sampler with a seed owns its generator, so the same seed gives the same tokens again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from k2lab.errors import InputError

Sampler = Callable[[Tensor], int]
"""Takes float32 logits [vocab], gives the chosen id."""


def greedy(logits: Tensor) -> int:
    """The likeliest token; the lowest id among equals."""
    return int(logits.argmax())


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
    that order, each to what the one before left. Temperature 0 is greedy.
    """
    _check("temperature", temperature, low=0.0, high=100.0)
    _check("top_k", top_k, low=0, high=2**31)
    _check("top_p", top_p, low=0.0, high=1.0)
    _check("min_p", min_p, low=0.0, high=1.0)
    if temperature == 0:
        return greedy
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> int:
        # From the largest down, so that a temperature near 0 gives −∞ and never ∞.
        spread = (logits - logits.max()).cpu() / temperature
        probabilities, ids = spread.softmax(-1).sort(descending=True, stable=True)
        if top_k:
            probabilities = probabilities[:top_k] / probabilities[:top_k].sum()
        if top_p < 1:
            # A token stays while what stands before it is less than top_p; the first always does.
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities[(before < top_p) | (before == 0)]
        if min_p:
            probabilities = probabilities[probabilities >= min_p * probabilities[0]]
        return int(ids[torch.multinomial(probabilities, 1, generator=generator)])

    return choose


def _check(name: str, value: float, *, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(
            f"{name} is {value}.",
            expected=f"a number from {low} to {high}.",
            mend=f"Give {name} in that range, or leave it out.",
        )
