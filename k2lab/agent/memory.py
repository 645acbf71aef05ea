"""Memory in three tiers: a system around the model, not a part of it.

    short   the latent cache of the conversation: what is in it, and what it costs
    mid     a scratch buffer of facts with the calls they come from, kept through compaction
    long    documents on disk (`library.py`), across conversations and kernels, cited exactly

What comes from memory is text from outside for the model: it is rendered without special tokens,
and taints like any other untrusted result. Compaction hides old tool results first, as Moonshot's
own harness does; thinking of the open tool loop, calls and pinned facts stay.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from k2lab.agent.library import Library
from k2lab.agent.tools import Tool, tool
from k2lab.engine.events import Kind
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.text.messages import Message, without_surrogates

HITS = 3  # passages that one recall gives
LONGEST_FACT = 500  # characters of one fact in the scratch buffer
HIDDEN = "[hidden to save room: {n} characters; the call may be made again]"
KEPT = "[hidden to save room; recall {citation}]"
HIDES = ("[hidden to save room", 200)  # how such a text begins, and more than its length
CUT = "\n[cut to save room: characters 0-{shown} of {whole}; ask for less at once]"
CUT_KEPT = "\n[cut to save room: characters 0-{shown} of {whole}; recall {citation} for more]"
CITATION = re.compile(r"[^:]+:\d+-\d+")
SCRATCH = "Facts from earlier results:\n"


@dataclass(frozen=True, slots=True)
class ShortTerm:
    """What the cache of a conversation holds."""

    tokens: int
    limit: int  # of the model's context
    bytes: int
    by_kind: dict[Kind, int]  # tokens

    @classmethod
    def of(cls, cache: LatentCache, kinds: Iterable[Kind]) -> "ShortTerm":
        """Of a cache, with the kinds of its tokens in order."""
        counted = Counter(kind for _, kind in zip(range(cache.length), kinds, strict=False))
        limit = cache.config.max_position_embeddings
        return cls(cache.length, limit, cache.nbytes(), dict(counted))


@dataclass(frozen=True, slots=True)
class Fact:
    """An intermediate result, and where it comes from."""

    text: str
    source: str  # the key or id of a call, or a citation
    pinned: bool = False  # never given up


class Scratch:
    """The mid-term tier: facts in the order in which they came, at most so many characters."""

    def __init__(self, most: int = 2000) -> None:
        self.most = most
        self._facts: list[Fact] = []

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All that is kept."""
        return tuple(self._facts)

    def note(self, text: str, source: str, *, pinned: bool = False) -> Fact:
        """Keep a fact; the oldest that are not pinned make room."""
        if not text.strip() or len(text) > LONGEST_FACT:
            raise InputError(
                f"A fact of {len(text)} characters.",
                expected=f"1 to {LONGEST_FACT} characters.",
                mend="Keep what matters; long texts belong into the library.",
            )
        fact = Fact(text, source, pinned)
        if fact not in self._facts:
            self._facts.append(fact)
        loose = [each for each in self._facts if not each.pinned and each is not fact]
        while len(self.text()) > self.most and loose:
            self._facts.remove(loose.pop(0))
        return fact

    def text(self) -> str:
        """The facts with their sources, one a line; empty where there is none."""
        lines = [f"- {each.text} [{each.source}]" for each in self._facts]
        return SCRATCH + "\n".join(lines) if lines else ""


class Memory:
    """The tiers that outlive a run, and the tools by which a model uses them."""

    def __init__(self, path: str | Path | None = None, *, scratch: Scratch | None = None) -> None:
        """`path` is the file of the long-term tier; without it that ends with this object."""
        self.library = Library(path)
        self.scratch = scratch or Scratch()

    def keep(self, text: str) -> str:
        """Take a result into the long-term tier, named after its content; its citation."""
        text = without_surrogates(text)  # as the model would read it
        source = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.library.add(source, text)
        return f"{source}:0-{len(text)}"

    def tools(self) -> list[Tool]:
        """`recall` and `remember`."""

        @tool(effect="reads")
        def recall(query: Annotated[str, "words to look for, or a citation"]) -> str:
            """Look something up in memory; each passage comes with its citation in brackets."""
            if (citation := CITATION.fullmatch(query.strip("[] "))) is not None:
                with suppress(InputError):
                    return f"[{citation[0]}] {self.library.cited(citation[0])}"
            hits = self.library.search(query, HITS)
            return "\n".join(f"[{each.citation}] {each.text}" for each in hits) or "nothing found"

        @tool(effect="repeatable", trusted=True)
        def remember(
            source: Annotated[str, "a short name for it"], text: Annotated[str, "what to keep"]
        ) -> str:
            """Keep a text for later conversations."""
            self.library.add(source, text)
            return f"kept as {source}"

        return [recall, remember]


def compact(
    messages: Sequence[Message],
    fits: Callable[[Sequence[Message]], bool],
    scratch: Scratch | None = None,
    *,
    keep: Callable[[str], str] | None = None,
) -> list[Message]:
    """The messages, as little shortened as makes them fit; raises InputError where nothing does.

    In this order: results before the open tool loop are hidden, then those inside it but the
    latest, each time the oldest first; then whole settled exchanges go, the oldest first. Calls
    keep their results, the thinking of the open loop stays, and the facts of the scratch buffer
    stand after the first system messages. `keep` takes what is hidden and gives its citation.
    """
    kept = _with_facts(list(messages), scratch)
    if fits(kept):
        return kept
    opened = _open_loop(kept)
    results = [place for place, each in enumerate(kept) if each.role == "tool"]
    before = [place for place in results if place < opened]
    inside = [place for place in results if place >= opened]
    last = _last_call(kept)
    for place in (*before, *(each for each in inside if each < last)):
        kept[place] = _hidden(kept[place], keep)
        if fits(kept):
            return kept
    while (end := _first_exchange(kept)) is not None:
        start = next(place for place, each in enumerate(kept) if each.role != "system")
        kept = kept[:start] + kept[end:]
        if fits(kept):
            return kept
    raise InputError(
        f"{len(messages)} messages do not fit the context, however they are shortened.",
        expected="room for the question, its open calls and their latest results.",
        mend="Ask for shorter results, or load a model with a longer context.",
    )


def cut_notice(content: str, shown: int, keep: Callable[[str], str] | None = None) -> str:
    """What stands after the first `shown` characters of a result in the place of the others.

    Where the result is kept, it is the citation of what follows, a little shorter than what is
    shown, so that it fits where that did.
    """
    whole = len(content)
    if keep is None:
        return CUT.format(shown=shown, whole=whole)
    source = keep(content).rpartition(":")[0]
    start = min(shown, whole - 1)
    stop = min(whole, start + max(1, 3 * shown // 4))
    return CUT_KEPT.format(shown=shown, whole=whole, citation=f"{source}:{start}-{stop}")


def _with_facts(messages: list[Message], scratch: Scratch | None) -> list[Message]:
    text = scratch.text() if scratch is not None else ""
    bare = [each for each in messages if not _is_facts(each)]
    if not text:
        return bare
    place = next((n for n, each in enumerate(bare) if each.role != "system"), len(bare))
    return [*bare[:place], Message("system", text), *bare[place:]]


def _is_facts(message: Message) -> bool:
    return message.role == "system" and message.content.startswith(SCRATCH)


def _hidden(message: Message, keep: Callable[[str], str] | None) -> Message:
    """The result without its text, where that saves anything."""
    content, (head, most) = message.content, HIDES
    if len(content) < most and content.startswith(head):
        return message
    text = HIDDEN.format(n=len(content))
    if len(text) >= len(content):
        return message
    if keep is not None and content.strip():
        text = KEPT.format(citation=keep(content))
    return replace(message, content=text) if len(text) < len(content) else message


def _answers(messages: Sequence[Message]) -> list[int]:
    """The places of final answers; a turn that was asked on, with a system message, is none."""
    return [
        place
        for place, each in enumerate(messages)
        if each.role == "assistant"
        and not each.calls
        and (place + 1 == len(messages) or messages[place + 1].role == "user")
    ]


def _open_loop(messages: Sequence[Message]) -> int:
    """The place after the last final answer: what comes from there on is still going on."""
    return max(_answers(messages), default=-1) + 1


def _last_call(messages: Sequence[Message]) -> int:
    """The place of the last message with calls; their results are what the model works on."""
    places = [place for place, each in enumerate(messages) if each.calls]
    return places[-1] if places else len(messages)


def _first_exchange(messages: Sequence[Message]) -> int | None:
    """Where the oldest settled exchange ends: after its final answer; None: there is none."""
    return next((place + 1 for place in _answers(messages)), None)
