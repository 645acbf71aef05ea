"""What the network remembers of a run, and how that is shortened in the same run.

    near its limit → compact → the cache is emptied → what is left is read anew

The conversation is cut where its messages end, at tokens that no text from outside can hold. What
the model wrote stays as it wrote it, token for token, also a turn that it has not ended; results
are hidden first, then settled exchanges go (`memory.compact`). Results that do not fit even so are
cut before they are read. The tokens before stay in the trace and in the journal: each token's index
goes on counting, and `PromptRead.context` tells from where on things are remembered.
Not here: what is hidden, and in which order (`memory.py`).
"""

from collections.abc import Sequence
from dataclasses import replace

from k2lab.agent.memory import Memory, compact, cut_notice
from k2lab.agent.turns import Mind
from k2lab.engine.generate import Prompt, pieces
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.text.messages import Call, Message, Role, without_surrogates
from k2lab.text.template import render

FULL = 0.85  # of the room: from there on it is compacted, where Moonshot's own harness does
AIMS = (0.5, 0.6, 0.7)  # of the room: so far it is shortened, as all that is left is read again
LAST = (0.8, 0.9)  # the same where the run would end otherwise
AGAIN = 0.02  # of the room, that more must have come before it is tried again in vain
SPARE = 1  # token of the room that is not used: a full context can be read again and gone on with
SHARES = (1.0, 0.5, 0.25, 0.1)  # of the room, that new results may take; the first that fits holds
CHARACTERS = 16  # looked at for each token of room: more than a token holds in any usual text


class Context:
    """The tokens in a cache, and where in the run they stand."""

    def __init__(self, mind: Mind, cache: LatentCache, limit: int | None = None) -> None:
        """`limit` are tokens, where they are to be fewer than the model's context."""
        self.mind, self.cache, self.first = mind, cache, 0
        self.number = 0  # of contexts before this one
        most = mind.model.config.max_position_embeddings
        self.room = most if limit is None else min(most, limit)
        self._parts: list[Prompt] = []
        self._in_vain = 0  # tokens that could not be made fewer

    @property
    def length(self) -> int:
        """Tokens that are remembered."""
        return sum(len(each.ids) for each in self._parts)

    @property
    def left(self) -> int:
        """Tokens that may still come before it is full."""
        return max(0, self.room - SPARE - self.length)

    @property
    def next(self) -> int:
        """Index, in the run, of the next token."""
        return self.first + self.cache.length

    def add(self, prompt: Prompt) -> None:
        """These tokens come next: they are read, or were chosen."""
        self._parts.append(prompt)

    def renew(self) -> None:
        """Forget everything; what is read next begins a context of its own."""
        self.first, self.number = self.next, self.number + 1
        self.cache.truncate(0)
        self._parts, self._in_vain = [], 0

    def compacted(self, prompt: Prompt, memory: Memory | None = None) -> Prompt | None:
        """All that is remembered and the prompt, shortened; None where it need not or cannot be.

        What is hidden goes into the memory, and its citation stands in its place.
        """
        whole = self.length + len(prompt.ids)
        fits_still = whole < self.room - SPARE
        if fits_still and whole < max(FULL * self.room, self._in_vain):
            return None
        frames, tail = self._frames(prompt)
        written = {id(message): tokens for message, tokens in frames}  # as it stands there
        anew: dict[Message, Prompt] = {}

        def tokens_of(message: Message) -> Prompt:
            if id(message) in written:
                return written[id(message)]
            if message not in anew:
                segments = render([message], system=None, generation_prompt=False)
                anew[message] = Prompt.of(segments, self.mind.tokenizer)
            return anew[message]

        for share in AIMS if fits_still else AIMS + LAST:
            most = share * self.room - len(tail.ids)

            def fits(messages: Sequence[Message], most: float = most) -> bool:
                return sum(len(tokens_of(each).ids) for each in messages) < most

            try:
                kept = compact(
                    [message for message, _ in frames],
                    fits,
                    memory.scratch if memory else None,
                    keep=memory.keep if memory else None,
                )
            except InputError:
                continue
            return Prompt.joined([*map(tokens_of, kept), tail])
        self._in_vain = int(whole + AGAIN * self.room)
        return None

    def cut(
        self, messages: Sequence[Message], share: float, memory: Memory | None = None
    ) -> list[Message]:
        """The messages, of which the results take at most this share of the room together.

        The longest are cut, to equal lengths. Their whole texts go into the memory, and where each
        breaks off stands the citation of what follows.
        """
        results = [each.content if each.role == "tool" else "" for each in messages]
        most = int(share * self.room)
        if sum(len(each.encode("utf-8", "surrogatepass")) for each in results) <= most:
            return list(messages)  # a token has at least one byte
        lengths = [len(self._parts_of(each)) for each in results]
        most = fair(lengths, most)
        return [
            each if length <= most else self._cut(each, most, memory)
            for each, length in zip(messages, lengths, strict=True)
        ]

    def _cut(self, message: Message, most: int, memory: Memory | None) -> Message:
        """The result's beginning with a notice, at most so many tokens where the notice fits."""
        text = without_surrogates(message.content)  # so that the spans are those of what is kept
        keep = memory.keep if memory is not None and text.strip() else None
        longest = cut_notice(text, len(text), keep)  # its figures have the most digits
        shown = most - len(self.mind.tokenizer.encode(longest))
        start = "".join(self._parts_of(text)[: max(0, shown)])
        return replace(message, content=start + cut_notice(text, len(start), keep))

    def _parts_of(self, text: str) -> list[str]:
        """The texts of a result's tokens, of those that could ever fit."""
        start, tokenizer = text[: CHARACTERS * self.room], self.mind.tokenizer
        return pieces(tokenizer.encode(start), tokenizer)

    def _frames(self, prompt: Prompt) -> tuple[list[tuple[Message, Prompt]], Prompt]:
        """The messages so far with their tokens, and the tokens that open the next turn."""
        whole = Prompt.joined([*self._parts, prompt])
        ends = {*self.mind.model.config.stop_ids, self.mind.tokenizer.special("<|im_end|>")}
        frames, start = list[tuple[Message, Prompt]](), 0
        for place, each in enumerate(whole.ids, 1):
            if each in ends:
                tokens = whole.after(start, place)
                frames.append((self._message(tokens), tokens))
                start = place
        return frames, whole.after(start)

    def _message(self, tokens: Prompt) -> Message:
        """What of a message decides about it, from its tokens."""
        special = self.mind.tokenizer.special
        headers: dict[int, Role] = {special("<|im_user|>"): "user"}
        headers[special("<|im_system|>")] = "system"
        role = headers.get(tokens.ids[0], "assistant")
        if role == "assistant":
            called = special("<|tool_call_begin|>") in tokens.ids
            return Message("assistant", calls=(Call("", "", ""),) if called else ())
        text = "".join(
            text
            for text, kind in zip(tokens.texts, tokens.kinds, strict=True)
            if kind in ("system", "user", "result")
        )
        if "result" not in tokens.kinds:
            return Message(role, text)
        head, _, content = text.partition("\n")
        name = "".join(tokens.texts[1 : tokens.ids.index(special("<|im_middle|>"))])
        return Message("tool", content, call_id=head.removeprefix("## Return of "), name=name)


def fair(lengths: Sequence[int], most: int) -> int:
    """The length to which the longer ones are to be cut, so that all together take `most`.

    >>> fair([10, 200, 300], 110), fair([10, 20], 110)
    (50, 20)
    """
    ordered = sorted(lengths)
    for place, length in enumerate(ordered):
        share = most // (len(ordered) - place)
        if length > share:
            return share
        most -= length
    return ordered[-1] if ordered else 0
