"""From a prompt to events: prefill in chunks, then one token at a time.

Every chosen token is also read by the network before the iterator ends, so a following turn finds
the whole conversation in the cache. Not here: what the text means (`text/parse.py`), tools
(`agent/loop.py`), threads (`engine/session.py`).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain as links

import torch
from torch import Tensor

from k2lab.engine.capture import ROUTE, Capture, Level
from k2lab.engine.events import Event, Kind, PromptRead, TokenChosen
from k2lab.engine.moves import moved
from k2lab.engine.sampling import Sampler, greedy
from k2lab.engine.session import controls, nothing_waits
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import chain, untouched
from k2lab.engine.threads import alone, few, numpy_alone, small
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.model.single import Single
from k2lab.spec.sites import Tap
from k2lab.text.template import Segment
from k2lab.text.tokenizer import Tokenizer, Utf8Stream
from k2lab.weights.store import Mover

CHUNK = 512  # prompt tokens per forward: bounds the attention scores and lets Stop act in between
ALTERNATIVES = 5  # likeliest tokens reported with each choice


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to be read, each with its text piece and its place in the conversation."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    kinds: tuple[Kind, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], tokenizer: Tokenizer) -> "Prompt":
        """The tokens of rendered segments."""
        ids, kinds = tokenizer.encode_with_kinds(segments)
        texts = pieces(ids, tokenizer)
        return cls(tuple(ids), tuple(texts), tuple(kinds))

    @classmethod
    def joined(cls, parts: Iterable["Prompt"]) -> "Prompt":
        """All the tokens of the parts, in order."""
        whole = list(parts)
        return cls(
            tuple(links.from_iterable(each.ids for each in whole)),
            tuple(links.from_iterable(each.texts for each in whole)),
            tuple(links.from_iterable(each.kinds for each in whole)),
        )

    def after(self, start: int, stop: int | None = None) -> "Prompt":
        """The tokens from `start` on, those before `stop`."""
        part = slice(start, stop)
        return Prompt(self.ids[part], self.texts[part], self.kinds[part])

    def __add__(self, other: "Prompt") -> "Prompt":
        return Prompt(self.ids + other.ids, self.texts + other.texts, self.kinds + other.kinds)


NOTHING = Prompt((), (), ())
"""The prompt without tokens."""


def go_on() -> None:
    """The check of a run that nobody ends."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to generate."""

    sampler: Sampler = greedy
    max_tokens: int = 1024  # chosen tokens
    stop_ids: frozenset[int] = frozenset()
    tap: Tap = untouched
    edits: Surgery | None = None
    turn: tuple[int, ...] = ()  # of the turn that goes on: its ids so far, those of the prompt too
    capture: Level = ROUTE  # what is reported of the inside
    clock: Callable[[], float] = field(default=time.perf_counter)  # seconds since the run began
    check: Callable[[], object] = go_on  # raises at a token after which the run must not go on
    first: int = 0  # index, in the run, of the token that the cache begins with


def generate(
    model: K2, tokenizer: Tokenizer, prompt: Prompt, cache: LatentCache, settings: Settings
) -> Iterator[Event]:
    """Read `prompt` after what the cache holds, then choose tokens until a stop id or the limit."""
    check_ids(prompt.ids, model.config.vocab_size)
    cache.room_for(len(prompt.ids) + 1)
    capture = Capture(model, settings.capture) if settings.capture else None
    store = model.store
    if moves := isinstance(store, Mover):  # asked once: on a protocol the answer takes a while
        store.take_moves()  # others': of a look, or of a run that was stopped
    watched = chain(settings.tap, capture.tap) if capture else settings.tap
    little = small(model)  # few tokens are computed by one thread
    forward, control = reader(model), controls()

    def read(ids: Sequence[int], kinds: Sequence[Kind]) -> tuple[Tensor, list[Event]]:
        """Logits after the last of `ids`, and what was captured and moved for them."""
        start, tap = settings.first + cache.length, watched
        short = few(len(ids), cache.length + len(ids))
        if settings.edits is not None:
            tap = chain(settings.edits.tap(start, kinds, len(ids)), watched)
        # inference_mode belongs to the thread, so it must not stay on across a yield.
        with torch.inference_mode(), alone(wanted=little and short):
            logits = forward(ids, cache, tap)
            seen: list[Event] = list(capture.take(start, len(ids))) if capture else []
            if capture and control.watchful:
                seen += capture.rest()
        if moves:
            seen += moved(store, start, len(ids))
        return logits, seen

    control.untold = capture.waits if capture else nothing_waits
    try:
        for offset in range(0, len(prompt.ids), CHUNK):
            part = slice(offset, offset + CHUNK)
            start, began = settings.first + cache.length, settings.clock()
            logits, seen = read(prompt.ids[part], prompt.kinds[part])
            seconds = settings.clock() - began
            ids, texts, kinds = prompt.ids[part], prompt.texts[part], prompt.kinds[part]
            yield PromptRead(start, ids, texts, kinds, seconds, settings.first)
            yield from seen

        stream, tracker = Utf8Stream(), KindTracker(tokenizer)
        for each in settings.turn:
            stream.feed(tokenizer.decode_bytes([each]))
            tracker.feed(each)
        room = model.config.max_position_embeddings - cache.length
        for left in reversed(range(min(settings.max_tokens, room))):
            with torch.inference_mode(), alone(wanted=little):
                chosen = settings.sampler(logits)
                logprob, entropy, top = describe(logits, chosen, tokenizer)
            text = stream.feed(tokenizer.decode_bytes([chosen]))
            if not left or chosen in settings.stop_ids:
                text += stream.flush()  # half a character at the very end
            index, kind = settings.first + cache.length, tracker.feed(chosen)
            yield TokenChosen(index, chosen, text, kind, logprob, entropy, top, settings.clock())
            settings.check()
            logits, seen = read([chosen], [kind])
            yield from seen
            if chosen in settings.stop_ids:
                break
        yield from capture.rest() if capture else ()
    except Exception:  # stopped, or failed: what is known is told
        yield from capture.rest() if capture else ()
        raise
    finally:
        control.untold = nothing_waits


def reader(model: K2) -> Callable[[Sequence[int], LatentCache, Tap], Tensor]:
    """What computes the logits [vocab] after the last of some tokens that follow a cache."""
    single = Single(model) if small(model) else None
    fits = single is not None and single.fits

    def read(ids: Sequence[int], cache: LatentCache, tap: Tap) -> Tensor:
        if single is not None and fits and len(ids) == 1:
            with numpy_alone:
                return torch.from_numpy(single(ids[0], cache, tap))
        step = model.step(len(ids), cache=cache, tap=tap)
        hidden = model.hidden(torch.tensor([list(ids)], device=model.device), step)
        return model.logits(hidden[:, -1:], step)[0, -1].float()

    return read


def describe(
    logits: Tensor, chosen: int, tokenizer: Tokenizer
) -> tuple[float, float, tuple[tuple[int, str, float], ...]]:
    """Log-probability of the choice, entropy (nats), and the likeliest alternatives."""
    logs, probabilities = logits.log_softmax(-1), logits.softmax(-1)
    # The network has just called softmax, products and sums: their code is at hand (measured).
    entropy = 0.0 - float(probabilities.dot(logs))  # not −0.0
    if math.isnan(entropy):  # 0 · −∞: a token is impossible
        entropy = float(torch.special.entr(probabilities).sum())  # −p ln p, 0 where p is 0
    # From the probabilities: an exponential for each would be five calls more.
    values, ids = probabilities.topk(min(ALTERNATIVES, logs.shape[-1]))
    likely = zip(ids.tolist(), values.tolist(), strict=True)
    return float(logs[chosen]), entropy, tuple((i, tokenizer.piece(i), p) for i, p in likely)


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """One text piece per id; joined they are the decoded text."""
    stream = Utf8Stream()
    texts = [stream.feed(tokenizer.decode_bytes([i])) for i in ids]
    if texts:
        texts[-1] += stream.flush()
    return texts


def check_ids(ids: Sequence[int], vocabulary: int) -> None:
    """Raise unless there is at least one id and all lie in the vocabulary."""
    if not ids:
        raise InputError(
            "The prompt has no tokens.",
            expected="at least one token.",
            mend="Give a text that is not empty.",
        )
    wrong = next((i for i in ids if not 0 <= i < vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"Token id {wrong} at position {list(ids).index(wrong)}.",
            expected=f"ids from 0 to {vocabulary - 1} (vocab_size).",
            mend="Encode the text with this checkpoint's own tokenizer.",
        )


class KindTracker:
    """Which part of an assistant's turn each chosen token belongs to, from the special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._special = tokenizer.is_special
        self._kind: Kind = "answer"
        self._turns: dict[int, Kind] = {
            tokenizer.special("<think>"): "thinking",
            tokenizer.special("</think>"): "answer",
            tokenizer.special("<|tool_calls_section_begin|>"): "call",
            tokenizer.special("<|tool_calls_section_end|>"): "answer",
        }

    def feed(self, token: int) -> Kind:
        """The kind of this token; markers switch the kind of those that follow."""
        self._kind = self._turns.get(token, self._kind)
        return "marker" if self._special(token) else self._kind
