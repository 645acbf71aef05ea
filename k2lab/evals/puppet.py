"""A network that follows a script, for measuring everything around a network.

It reads what a K2 reads, and writes, token by token, what a function makes of the text so far. It
holds no state beyond that text, so it goes on rightly after a cut of its cache, in a fork, or in
another process. Not a model: it says nothing about how well one would do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from k2lab.spec.config import K2Config
from k2lab.text.template import Segment
from k2lab.text.tokenizer import Tokenizer

Reply = Callable[[str], str]
"""From the whole text so far, markers spelt out, to the next turn without its end."""

SURE = 50.0  # the logit of the token that comes next


class Puppet:
    """Stands for a `K2` in `generate`; `before(puppet)` may raise, as a server that fails does."""

    def __init__(
        self,
        config: K2Config,
        tokenizer: Tokenizer,
        reply: Reply,
        before: Callable[["Puppet"], None] = lambda puppet: None,
    ) -> None:
        self.config, self.device = config, torch.device("cpu")
        self.store = None  # owns no weights
        self.forwards = 0
        self.tokenizer = tokenizer
        self._reply, self._before = reply, before
        self._ids: list[int] = []
        self._plans: dict[int, Sequence[int]] = {}  # by the index at which a turn begins
        self._opens = tokenizer.special("<|im_assistant|>")
        self._middle = tokenizer.special("<|im_middle|>")
        self._ends = tokenizer.special("<|im_end|>")

    @property
    def text(self) -> str:
        """All that was read and written so far."""
        return self.tokenizer.decode(self._ids)

    @property
    def written(self) -> int:
        """Tokens of the present turn; 0 while none is open."""
        begin = self._begin()
        return 0 if begin is None else len(self._ids) - begin

    def step(self, tokens: int, *, cache: Any, tap: Any) -> Any:
        """What the forward works on: the cache itself."""
        cache.room_for(tokens)
        return cache

    def hidden(self, ids: Tensor, step: Any) -> Tensor:
        """Nothing, of the right shape; the ids are remembered after what the cache holds."""
        given = ids[0].tolist()
        self._ids[step.length :] = given
        if not step.length:  # another conversation, or this one read anew
            self._plans = {}
        self._before(self)
        self.forwards += 1
        step.advance(len(given))
        return torch.zeros(1, len(given), 1)

    def logits(self, x: Tensor, step: Any) -> Tensor:
        """One token that is sure, [1, 1, vocab]; none is while a prompt is not read to its end."""
        logits = torch.zeros(1, 1, self.config.vocab_size)
        begin = self._begin()
        if begin is None:
            return logits
        if begin not in self._plans:
            text = self._reply(self.tokenizer.decode(self._ids[:begin])) + "<|im_end|>"
            self._plans[begin] = self.tokenizer.encode_segments([Segment(text, True, "answer")])
        plan, place = self._plans[begin], len(self._ids) - begin
        logits[..., plan[place] if place < len(plan) else 0] = SURE
        return logits

    def _begin(self) -> int | None:
        """The index at which the present turn begins, after its header; None: no turn is open."""
        for place in range(len(self._ids) - 1, -1, -1):
            if self._ids[place] == self._ends:
                return None
            if self._ids[place] == self._opens:
                header = self._ids[place:]
                return place + header.index(self._middle) + 1 if self._middle in header else None
        return None


def calls(*asked: tuple[str, str, str]) -> str:
    """A section of calls (name, number, arguments), as a K2 writes it."""
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{arguments}"
        "<|tool_call_end|>"
        for name, number, arguments in asked
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"
