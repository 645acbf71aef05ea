"""One turn of the model, token by token, also where its source fails in passing.

What was written stays: a turn that breaks off goes on at the very next token, since the cache
still holds everything before it. So a failure changes no text, and nothing is shown twice.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from k2lab.agent.budget import Meter, Spent
from k2lab.engine.events import Event, PromptRead, Retried, Routed, TokenChosen
from k2lab.engine.generate import KindTracker, Prompt, Settings, generate, go_on, pieces
from k2lab.errors import TransientError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.text.parse import Tools, Turn, TurnParser
from k2lab.text.shield import shielded, unshielded
from k2lab.text.template import DEFAULT_SYSTEM
from k2lab.text.tokenizer import Tokenizer, Utf8Stream

ATTEMPTS = 5  # in a row without a new token
PAUSE = 0.05  # seconds before the second attempt; doubled before each further one
LONGEST_PAUSE = 60.0  # seconds, whatever a server asks for


@dataclass(frozen=True, slots=True)
class Mind:
    """A network with its tokenizer and the habits of its checkpoint."""

    model: K2
    tokenizer: Tokenizer

    @property
    def system(self) -> str | None:
        """The system message where the person gives none; None: it was trained without one."""
        return self.tokenizer.lab.get("system", DEFAULT_SYSTEM)  # type: ignore[return-value]

    @property
    def declares_tools(self) -> bool:
        """Whether tools are described in the prompt; False for a model that knows its own."""
        return bool(self.tokenizer.lab.get("declare_tools", True))


@dataclass(frozen=True, slots=True)
class Written:
    """A turn as far as it was written."""

    turn: Turn
    ends: tuple[int, ...]  # index of the token that ended each call
    prompt: Prompt  # its tokens, as they would be given
    whole: bool  # the model ended it itself

    @property
    def ids(self) -> tuple[int, ...]:
        """Its ids."""
        return self.prompt.ids


class Pen:
    """Writes turns into one cache."""

    def __init__(self, mind: Mind, cache: LatentCache, tools: Tools, meter: Meter) -> None:
        """`tools` help to name calls with a damaged id; tokens and waiting go by the meter."""
        self.mind, self.cache, self._tools, self._meter = mind, cache, tools, meter

    def write(self, prompt: Prompt, settings: Settings) -> Generator[Event, None, Written]:
        """The events of a turn after `prompt`; gives back the turn.

        `settings.turn` are the ids at the end of the prompt with which the turn has begun.
        """
        tokenizer, ids = self.mind.tokenizer, list(settings.turn)
        parser, ends = TurnParser(tools=self._tools), list[int]()
        stop = settings.first + self.cache.length + len(prompt.ids)
        _feed_again(parser, ends, stop, ids, tokenizer)
        if ids and ids[-1] in settings.stop_ids:  # it has ended too: only to be read
            settings = replace(settings, max_tokens=0)
        for event in self._to_its_end(prompt, settings):
            if isinstance(event, TokenChosen):
                ids.append(event.id)
                special = tokenizer.is_special(event.id)
                parser.feed(event.text if special else shielded(event.text))
                ends += [event.index] * (parser.call_count - len(ends))  # where each call ended
                self._meter.token()
            yield event
        turn = unshielded(parser.finish())
        ends += [settings.first + self.cache.length - 1] * (len(turn.calls) - len(ends))
        whole = bool(ids) and ids[-1] in settings.stop_ids
        return Written(turn, tuple(ends), as_given(ids, tokenizer), whole)

    def read(self, prompt: Prompt, settings: Settings) -> Iterator[Event]:
        """The events of reading alone, up to a place where no turn begins."""
        return self._persistently(prompt, replace(settings, max_tokens=0, turn=()))

    def _to_its_end(self, prompt: Prompt, settings: Settings) -> Iterator[Event]:
        """The events of a turn; the token chosen last is read even where all is spent.

        So its routes are known, and those of a run after it in the same trace have no gap before.
        """
        last: TokenChosen | None = None
        try:
            for event in self._persistently(prompt, settings):
                last = event if isinstance(event, TokenChosen) else last
                yield event
        except Spent:
            if last is not None and last.index == settings.first + self.cache.length:
                unread = Prompt((last.id,), (last.text,), (last.kind,))
                with suppress(TransientError):
                    for event in self.read(unread, replace(settings, check=go_on)):
                        if not isinstance(event, PromptRead):
                            yield event
            raise

    def _persistently(self, prompt: Prompt, settings: Settings) -> Iterator[Event]:
        """The events of `generate`, which goes on where a passing failure broke it off."""
        mind, cache = self.mind, self.cache
        start = cache.length
        read = routed = settings.first + start  # up to which index events have been given
        attempt, chosen = 1, list[TokenChosen]()
        while True:
            left = replace(
                settings,
                max_tokens=settings.max_tokens - len(chosen),
                turn=(*settings.turn, *(each.id for each in chosen)),
            )
            rest = _rest(prompt, chosen, cache.length - start)
            try:
                for event in generate(mind.model, mind.tokenizer, rest, cache, left):
                    match event:
                        case PromptRead() if event.start < read:
                            continue  # a token that was chosen, and is read only now
                        case PromptRead():
                            read = event.start + len(event.ids)
                        case Routed() if event.start < routed:
                            continue
                        case Routed():
                            routed = event.start + len(event.experts)
                        case TokenChosen():
                            chosen.append(event)
                            read, attempt = event.index + 1, 1
                    yield event
                return
            except TransientError as error:
                if attempt == ATTEMPTS:
                    raise
                attempt += 1
                pause = max(PAUSE * 2 ** (attempt - 2), error.after)
                yield Retried("turn", attempt, error.found)
                self._meter.wait(min(pause, LONGEST_PAUSE))
            there = settings.first + cache.length == read
            if chosen and chosen[-1].id in settings.stop_ids and there:
                return
            if cache.length == start + len(prompt.ids) + len(chosen):
                cache.truncate(cache.length - 1)  # logits are not kept: the last one is read again


def as_given(ids: Sequence[int], tokenizer: Tokenizer) -> Prompt:
    """The ids of one turn of the model, with the texts and kinds that they have in it."""
    tracker = KindTracker(tokenizer)
    kinds = tuple(tracker.feed(each) for each in ids)
    return Prompt(tuple(ids), tuple(pieces(ids, tokenizer)), kinds)


def read_again(ids: Sequence[int], stop: int, tokenizer: Tokenizer) -> tuple[Turn, list[int]]:
    """The turn in ids that end before index `stop`, and where each of its calls ended."""
    parser, ends = TurnParser(), list[int]()
    _feed_again(parser, ends, stop, ids, tokenizer)
    turn = unshielded(parser.finish())
    return turn, ends + [stop - 1] * (len(turn.calls) - len(ends))


def _rest(prompt: Prompt, chosen: Sequence[TokenChosen], done: int) -> Prompt:
    """What is still to be read of the prompt and the tokens chosen after it."""
    ids = prompt.ids + tuple(each.id for each in chosen)
    texts = prompt.texts + tuple(each.text for each in chosen)
    kinds = prompt.kinds + tuple(each.kind for each in chosen)
    return Prompt(ids[done:], texts[done:], kinds[done:])


def _feed_again(
    parser: TurnParser, ends: list[int], stop: int, ids: Sequence[int], tokenizer: Tokenizer
) -> None:
    """Bring the parser to where a turn goes on: its ids so far end at index `stop`."""
    stream = Utf8Stream()
    for index, each in enumerate(ids, start=stop - len(ids)):
        text = stream.feed(tokenizer.decode_bytes([each]))
        parser.feed(text if tokenizer.is_special(each) else shielded(text))
        ends += [index] * (parser.call_count - len(ends))
