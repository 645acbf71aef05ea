"""A made-up trace of Kimi K2 Thinking's size, for trying out pages and measuring them.

No network ran: experts are drawn so that each layer has busy and idle ones, and so that thinking
and answer prefer different ones. Anything that is said about it is said about a random generator.
"""

import numpy as np
from numpy.typing import NDArray

from k2lab.engine.events import (
    Answered,
    Kind,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.trace.trace import About, Facts, Trace

K2_SIZE = About(
    "synthetic, size of Kimi K2 Thinking",
    layers=61,
    dense_layers=1,
    experts=384,
    slots=8,
    scaling=2.827,
    vocab=163_840,
)
MADE_UP = Facts(
    engine="no engine: made up",
    provenance="missing",
    latent_bytes=70_272,  # the real model's
    multi_head_bytes=64 * (192 + 128) * 2 * 61,
)
WORDS = (
    "the",
    "of",
    "to",
    "so",
    "if",
    "we",
    "then",
    "3",
    "14",
    "add",
    "call",
    "check",
    "hmm",
    "is",
)
PATTERN: tuple[tuple[Kind, int], ...] = (
    ("thinking", 60),
    ("call", 16),
    ("result", 12),
    ("answer", 24),
)
BLOCK = 1024  # tokens drawn at once
CHOICES = 64  # made-up choices of each layer and way

Pool = tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.float16]]
"""Experts and weights [way, choice, layer, slot], margins [way, choice, layer]."""


def synthetic(tokens: int, *, seed: int = 0, about: About = K2_SIZE) -> Trace:
    """A trace of `tokens` tokens, the same for the same seed."""
    draw = np.random.default_rng(seed)
    trace = Trace(about)
    trace.facts = MADE_UP if about == K2_SIZE else Facts(MADE_UP.engine, provenance="missing")
    kinds = _kinds(tokens)
    calls = 0
    for index, kind in enumerate(kinds):
        text = f" {WORDS[int(draw.integers(len(WORDS)))]}"
        if kind in ("system", "user", "result"):
            trace.append(PromptRead(index, (_id(text),), (text,), (kind,), 0.001))
        else:
            trace.append(_chosen(index, text, kind, draw))
        if kind == "call" and kinds[index + 1 : index + 2] == ["result"]:
            key = f"{calls}.0"
            trace.append(
                ToolAsked(key, f"functions.price:{calls}", "price", '{"of": "lamp"}', index)
            )
            trace.append(ToolAnswered(key, "price", str(calls), ok=True, seconds=0.002))
            calls += 1
    pool = _pool(about, draw)
    for start in range(0, tokens, BLOCK):
        trace.append(_routed(start, kinds[start : start + BLOCK], pool, draw))
    trace.append(Answered(trace.text("answer"), trace.text("thinking")))
    trace.append(Stopped("answer", "", int((~np.isnan(trace.entropy)).sum()), tokens * 0.04))
    return trace


def _kinds(tokens: int) -> list[Kind]:
    kinds: list[Kind] = ["user"] * min(24, tokens)
    place = 0
    while len(kinds) < tokens:
        kind, count = PATTERN[place % len(PATTERN)]
        kinds += [kind] * count
        place += 1
    return kinds[:tokens]


def _chosen(index: int, text: str, kind: Kind, draw: np.random.Generator) -> TokenChosen:
    rest = np.sort(draw.dirichlet(np.full(5, 0.4)))[::-1]
    first = int(draw.integers(len(WORDS)))
    words = [text, *(f" {WORDS[(first + k) % len(WORDS)]}" for k in range(4))]
    top = tuple((_id(word), word, float(p)) for word, p in zip(words, rest, strict=True))
    entropy = float(-(rest * np.log(np.maximum(rest, 1e-12))).sum())
    logprob = float(np.log(max(rest[0], 1e-12)))
    return TokenChosen(index, _id(text), text, kind, logprob, entropy, top, index * 0.04)


def _id(text: str) -> int:
    return 1000 + WORDS.index(text.strip())


def _pool(about: About, draw: np.random.Generator) -> Pool:
    """Made-up choices of both ways in all layers, to take tokens' choices from."""
    shape = (about.moe_layers, about.experts)
    common = draw.normal(0, 0.8, shape)
    liking = np.stack([common + draw.normal(0, 0.8, shape) for _ in range(2)])
    score = liking[:, None] + draw.gumbel(size=(2, CHOICES, *shape))
    best = np.argsort(-score, axis=-1)[..., : about.slots + 1]
    affinity = 1 / (1 + np.exp(-np.take_along_axis(score, best, -1)))
    chosen = affinity[..., :-1]
    share = chosen / chosen.sum(-1, keepdims=True)
    return (
        best[..., :-1].astype(np.uint16),
        np.rint(share * 255).astype(np.uint8),
        (affinity[..., -2] - affinity[..., -1]).astype(np.float16),
    )


def _routed(start: int, kinds: list[Kind], pool: Pool, draw: np.random.Generator) -> Routed:
    """Choices from the pool, another one for each token and layer."""
    layers = pool[0].shape[2]
    way = np.array([int(kind == "answer") for kind in kinds])[:, None]
    which = draw.integers(CHOICES, size=(len(kinds), layers))
    experts, weights, margin = (each[way, which, np.arange(layers)] for each in pool)
    return Routed(start, experts, weights, margin)
