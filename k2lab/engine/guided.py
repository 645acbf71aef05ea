"""Guided decoding: tool calls that are valid by construction.

A sampler around a sampler. It leaves thinking, answers and the choice to call alone; from the
marker of a call on it lets only such tokens through as lead to a declared name, a counter, and
arguments that are JSON of that tool's schema. What a model would have written instead is not known
afterwards; entropies and alternatives of a run are those before the mask.
Source: llguidance, Earley parsing over the token trie; it takes ranks in tiktoken's format.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from k2lab.engine.sampling import Sampler, anew, at, greedy, state_of
from k2lab.errors import InputError
from k2lab.text.parse import ARGUMENTS, CALL, CALL_END
from k2lab.text.tokenizer import Tokenizer

DIGITS = 4  # of the counter in a call's id
SPACES = {"x-guidance": {"whitespace_pattern": "[ ]?"}}  # else a model can pad without end


class Grammar:
    """What may follow the marker of a call, for a tokenizer and some tools; compiled once."""

    def __init__(
        self, tokenizer: Tokenizer, schemas: Mapping[str, Mapping[str, Any]], vocabulary: int
    ) -> None:
        """`schemas` are JSON Schemas by name, `vocabulary` is the width of the logits."""
        if not schemas:
            raise InputError(
                "Guided decoding without tools.",
                expected="at least one tool.",
                mend="Give tools, or leave the guide out.",
            )
        self.begin, self.end = tokenizer.special(CALL), tokenizer.special(CALL_END)
        self.vocabulary = vocabulary
        self._trie = _trie(tokenizer, vocabulary)
        self._text = grammar(schemas)
        self.matcher()  # says at once what cannot be compiled

    def matcher(self) -> LLMatcher:
        """The state at the beginning of a call."""
        made = LLMatcher(self._trie, self._text, log_level=0)
        if made.is_error():
            raise InputError(
                f"The tools' schemas cannot guide: {made.get_error()[:300]}",
                expected="JSON Schema as far as llguidance knows it.",
                mend="Simplify the schema, or run without the guide.",
            )
        return made


class Guided:
    """A sampler whose calls fit a grammar; one object for one run."""

    def __init__(self, grammar: Grammar, sampler: Sampler = greedy) -> None:
        self.grammar, self.sampler = grammar, sampler
        self._matcher: LLMatcher | None = None  # inside a call
        self._ids: list[int] = []  # of that call

    def __call__(self, logits: Tensor) -> int:
        """The chosen id."""
        if self._matcher is not None:
            logits = logits.masked_fill(~self._allowed(logits), -torch.inf)
        chosen = self.sampler(logits)
        self._read(chosen)
        return chosen

    def _read(self, chosen: int) -> None:
        if self._matcher is None:
            if chosen == self.grammar.begin:
                self._matcher, self._ids = self.grammar.matcher(), []
            return
        self._ids.append(chosen)
        if chosen == self.grammar.end or not self._matcher.consume_token(chosen):
            self._matcher = None

    def anew(self) -> "Guided":
        """The same guide outside of any call, with its sampler at its seed."""
        return Guided(self.grammar, anew(self.sampler))

    def within(self, turn: Iterable[int]) -> "Guided":
        """The same guide after these ids of a turn, be it in the middle of a call."""
        made = Guided(self.grammar, self.sampler)
        for each in turn:
            made._read(each)
        return made

    @property
    def state(self) -> str:
        """Where its sampler stands, and what was written of a call it is in."""
        ids = None if self._matcher is None else self._ids
        return json.dumps([ids, state_of(self.sampler)])

    def at(self, state: str) -> "Guided":
        """The same guide where it stood, and its sampler too."""
        ids, inner = json.loads(state)
        made = Guided(self.grammar, at(self.sampler, inner))
        return made if ids is None else made.within((self.grammar.begin, *ids))

    def _allowed(self, logits: Tensor) -> Tensor:
        """Which tokens may come [vocab]."""
        assert self._matcher is not None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[-1]].astype(bool)
        return torch.from_numpy(allowed).to(logits.device)


def grammar(schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """The grammar in llguidance's form of Lark."""
    rules = [f"start: {' | '.join(f'call_{place}' for place in range(len(schemas)))}"]
    for place, (name, schema) in enumerate(schemas.items()):
        head = json.dumps(f"functions.{name}:")
        rules += [
            f"call_{place}: {head} COUNTER {ARGUMENTS} arguments_{place} {CALL_END}",
            f"arguments_{place}: %json {json.dumps({**SPACES, **schema})}",
        ]
    rules.append(f"COUNTER: /[0-9]{{1,{DIGITS}}}/")
    return "\n".join(rules)


def _trie(tokenizer: Tokenizer, vocabulary: int) -> LLTokenizer:
    first = tokenizer.n_vocab - len(tokenizer.specials)
    ranks = {tokenizer.decode_bytes([each]): each for each in range(first)}
    return LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]
        encoder=ranks,
        special_tokens=dict(tokenizer.specials),
        pattern=tokenizer.pattern,
        eos_token=tokenizer.special("<|im_end|>"),
        n_vocab=vocabulary,
        slices=None,
    )
