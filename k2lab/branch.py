"""Where a run leaves its parent: what is read again or given there, and what is new.

Pure functions; a `LabRun` puts them together. What a person gives as text is text: only a token
asked for by its id or its name can be a special one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from k2lab.agent.tools import Tool, by_name, call
from k2lab.engine.edits import whole
from k2lab.engine.events import KINDS, Captured, Event, PromptRead, Routed
from k2lab.engine.experiment import Subject
from k2lab.engine.generate import KindTracker, Prompt, check_ids
from k2lab.engine.line import Stretch
from k2lab.errors import InputError
from k2lab.spec.config import K2Config
from k2lab.text.messages import canonical_ids, message_from_dict
from k2lab.text.tokenizer import Tokenizer, Utf8Stream
from k2lab.trace.trace import CallRecord, Trace

Token = int | str | Sequence[int]
"""An id, the text of one token (a special one's name too), or several ids."""

HANDED_ON = "handed on"  # stands for the call of what a message says that others wrote


def place_of(trace: Trace, at: int) -> int:
    """The index at which a run is to branch, as Python's own number."""
    length, place = len(trace), whole(at)
    if place is None or not 0 <= place <= length:
        raise _nowhere(f"A branch at {at!r:.80} of a run of {length} tokens")
    return place


def turn_of(trace: Trace, turns: Sequence[int], stops: Sequence[int], at: int) -> int:
    """The beginning of the model's turn in which a run may branch at this index."""
    length = len(trace)
    start = max((turn for turn in turns if turn <= at), default=None)
    if start is None:
        raise _nowhere(f"A branch at {at}, inside the prompt")
    end = next((i for i in range(start, at) if int(trace.ids[i]) in stops), None)
    if end is not None:
        inside = "after the end of the run" if at == length else "inside a tool result"
        raise _nowhere(f"A branch at {at}, {inside} (the turn ended with token {end})")
    return start


def beyond(trace: Trace, event: Event) -> Event | None:
    """The event without what the trace holds already; None if that is all of it."""
    if isinstance(event, Routed) and event.start >= trace.routed:  # nearly every one
        return event
    match event:
        case PromptRead(start, ids, texts, kinds):
            new = max(0, len(trace) - start)
            if new >= len(ids):
                return None
            return replace(
                event, start=start + new, ids=ids[new:], texts=texts[new:], kinds=kinds[new:]
            )
        case Routed(start, experts, weights, margin):
            new = max(0, trace.routed - start)
            if new >= len(experts):
                return None
            rest = experts[new:], weights[new:], margin[new:]
            return Routed(start + new, *rest, event.seconds)
        case Captured(start, arrays=arrays):
            new = max(0, trace.captured.stop - start)
            kept = {name: values[new:] for name, values in arrays.items()}
            left = any(len(values) for values in kept.values())
            return replace(event, start=start + new, arrays=kept) if left else None
    return event


def again(trace: Trace, start: int) -> Prompt:
    """The tokens from `start` on, to be read once more."""
    kinds = tuple(KINDS[code] for code in trace.kinds[start:].tolist())
    return Prompt(tuple(trace.ids[start:].tolist()), tuple(trace.texts[start : len(trace)]), kinds)


def given_in(turn: Sequence[int], given: Sequence[int], tokenizer: Tokenizer) -> Prompt:
    """What is given after the first tokens of a turn, with the texts and kinds it has there."""
    stream, tracker = Utf8Stream(), KindTracker(tokenizer)
    read = [(stream.feed(tokenizer.decode_bytes([i])), tracker.feed(i)) for i in (*turn, *given)]
    mine = read[len(turn) :]
    return Prompt(tuple(given), tuple(text for text, _ in mine), tuple(kind for _, kind in mine))


def subject_of(trace: Trace, line: tuple[Stretch, ...]) -> Subject:
    """What an experiment is made with: the tokens that the last context read, and their edits."""
    first, read = trace.contexts[-1].start, trace.routed
    kinds = tuple(KINDS[code] for code in trace.kinds[first:read].tolist())
    return Subject(
        ids=tuple(trace.ids[first:read].tolist()),
        kinds=kinds,
        scored=tuple(np.flatnonzero(~np.isnan(trace.entropy[first + 1 : read])).tolist()),
        experts=trace.experts[first:],
        first=first,
        line=line,
    )


def ask_again(calls: Iterable[CallRecord], tools: Sequence[Tool]) -> None:
    """Bring a new world to where another was after these calls: make them, in order."""
    named = by_name(tools)
    for each in calls:
        call(named[each.name], each.arguments)


def outside(
    messages: Sequence[Mapping[str, Any]], calls: Iterable[CallRecord], tools: Sequence[Tool]
) -> Iterator[tuple[str, str]]:
    """What a context begins with that is not to be trusted: (of which call, its text).

    That is results, and what a message says was handed on from outside.
    """
    trusted = {tool.name for tool in tools if tool.trusted}
    for each in canonical_ids([message_from_dict(each) for each in messages]):
        if each.role == "tool" and each.name not in trusted:
            yield each.call_id, each.content
        elif each.outside:
            yield HANDED_ON, each.outside
    for made in calls:
        if made.name not in trusted and made.content is not None:
            yield made.key, made.content


def given_ids(
    token: Token | None, text: str | None, tokenizer: Tokenizer, config: K2Config
) -> tuple[int, ...]:
    """Ids of the token or the text; none if there is neither."""
    if token is None and text is None:
        return ()
    if token is not None and text is not None:
        raise _unclear("Both a token and a text were given", "one of them")
    if text is not None:
        if not isinstance(text, str):
            raise _unclear(f"A branch with the text {text!r:.40}", "a text in quotes")
        what, ids = f"the text {text[:40]!r}", tokenizer.encode(text)  # never a special token
    else:
        assert token is not None
        what, ids = f"the token {str(token)[:40]!r}", _ids_of(token, tokenizer)
    if not ids:
        raise _unclear(f"A branch with {what}, which is empty", "at least one token")
    check_ids(ids, min(config.vocab_size, tokenizer.n_vocab))
    if any(each in config.stop_ids for each in ids[:-1]):
        raise _unclear(f"A branch with {what}, in which a turn ends", "that as the last token only")
    return tuple(ids)


def _ids_of(token: Token, tokenizer: Tokenizer) -> list[int]:
    if isinstance(token, str):
        special = tokenizer.specials.get(token)
        ids = tokenizer.encode(token) if special is None else [special]
        if len(ids) != 1:
            raise _unclear(
                f"The token {token[:40]!r} is {len(ids)} tokens of this vocabulary",
                "the text of one token; give longer texts as `text=`",
            )
        return ids
    several = whole(token) is None and hasattr(token, "__len__")
    given: Sequence[Any] = token if several else [token]  # type: ignore[assignment]
    found = [number for each in given if (number := whole(each)) is not None]
    if len(found) < len(given):
        raise _unclear(
            f"A branch with the token {str(token)[:40]}", "an id, a text, or a list of ids"
        )
    return found


def _nowhere(found: str) -> InputError:
    return InputError(
        f"{found}.",
        expected="the index of a token that the model chose, or the one after its last.",
        mend="Look the index up in `run.trace.texts`, or hover the token.",
    )


def _unclear(found: str, expected: str) -> InputError:
    return InputError(f"{found}.", expected=f"{expected}.", mend="Correct what `branch` is given.")
