"""Generation: what is chosen, what is told about it, in which order, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from k2lab.engine import capture as capture_module
from k2lab.engine import generate as module
from k2lab.engine.capture import OFF
from k2lab.engine.events import Event, PromptRead, Routed, TokenChosen
from k2lab.engine.generate import KindTracker, Prompt, Settings, describe, generate, pieces
from k2lab.engine.sampling import sampled
from k2lab.engine.taps import untouched
from k2lab.errors import ContextError, InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config
from k2lab.text.template import Segment
from k2lab.text.tokenizer import Tokenizer

Configs = Callable[..., K2Config]
Models = Callable[..., K2]
GIVEN = (70, 5, 300, 41, 12, 90, 7)


@pytest.fixture
def model(tiny_config: Configs, tiny_model: Models) -> K2:
    return tiny_model(tiny_config())


def prompt_of(ids: tuple[int, ...], tokenizer: Tokenizer) -> Prompt:
    return Prompt(ids, tuple(pieces(ids, tokenizer)), ("user",) * len(ids))


def events_of(
    model: K2,
    tokenizer: Tokenizer,
    ids: tuple[int, ...] = GIVEN,
    cache: LatentCache | None = None,
    settings: Settings | None = None,
) -> list[Event]:
    cache = cache or LatentCache(model.config)
    settings = settings or Settings(max_tokens=12)
    return list(generate(model, tokenizer, prompt_of(ids, tokenizer), cache, settings))


def chosen(events: list[Event]) -> list[TokenChosen]:
    return [event for event in events if isinstance(event, TokenChosen)]


def full_logits(model: K2, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        step = model.step(len(ids), cache=None, tap=untouched)
        return model(torch.tensor([ids]), step)[0]


def test_greedy_tokens_are_the_argmax_of_the_full_forward(
    model: K2, tiny_tokenizer: Tokenizer
) -> None:
    ids = list(GIVEN)
    for event in chosen(events_of(model, tiny_tokenizer)):
        logits = full_logits(model, ids)[-1]
        assert event.id == int(logits.argmax())
        logs = logits.log_softmax(-1)
        assert event.logprob == pytest.approx(float(logs[event.id]), abs=1e-4)
        assert event.entropy == pytest.approx(float(-(logs.exp() * logs).sum()), abs=1e-3)
        assert [entry[0] for entry in event.top] == logits.topk(5).indices.tolist()
        assert event.top[0][2] == pytest.approx(float(logs.exp().max()), abs=1e-4)
        ids.append(event.id)


def test_events_come_in_order_and_count_every_token(
    model: K2, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "HELD_SECONDS", -1.0)  # as on a slow model
    events = events_of(model, tiny_tokenizer)
    kinds = [type(event) for event in events]
    assert kinds == [PromptRead, Routed, *(TokenChosen, Routed) * 12]
    assert isinstance(events[0], PromptRead)
    assert (events[0].start, events[0].ids) == (0, GIVEN)
    assert [event.index for event in chosen(events)] == list(range(7, 19))
    seconds = [event.seconds for event in chosen(events)]
    assert seconds == sorted(seconds)


def test_routing_covers_every_token_once(model: K2, tiny_tokenizer: Tokenizer) -> None:
    events = events_of(model, tiny_tokenizer)
    parts = [event for event in events if isinstance(event, Routed)]
    starts = [part.start for part in parts]
    lengths = [len(part.experts) for part in parts]
    assert starts[:2] == [0, 7] and sum(lengths) == 7 + 12
    assert starts == [0, *np.cumsum(lengths)[:-1]]


def test_routes_of_several_tokens_at_once_are_those_of_each(
    model: K2, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for held in (-1.0, 1e9):
        monkeypatch.setattr(capture_module, "HELD_SECONDS", held)
        parts = [each for each in events_of(model, tiny_tokenizer) if isinstance(each, Routed)]
        found.append((len(parts), parts))
    (each, apart), (few, together) = found
    assert (each, few) == (13, 2)
    for name in ("experts", "weights", "margin"):
        arrays = [
            np.concatenate([getattr(part, name) for part in parts]) for parts in (apart, together)
        ]
        assert np.array_equal(*arrays), name


def test_what_was_read_is_told_before_a_check_ends_it(
    model: K2, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "HELD_SECONDS", 1e9)
    found, prompt = list[Event](), prompt_of(GIVEN, tiny_tokenizer)

    def check() -> None:
        if len(chosen(found)) == 5:
            raise TimeoutError

    settings = Settings(max_tokens=12, check=check)
    events = generate(model, tiny_tokenizer, prompt, LatentCache(model.config), settings)
    with pytest.raises(TimeoutError):
        found.extend(events)
    told = [len(event.experts) for event in found if isinstance(event, Routed)]
    assert (len(chosen(found)), told) == (5, [7, 4])


def test_routing_is_not_told_where_nobody_asked(model: K2, tiny_tokenizer: Tokenizer) -> None:
    events = events_of(model, tiny_tokenizer, settings=Settings(max_tokens=3, capture=OFF))
    assert not [event for event in events if isinstance(event, Routed)]
    assert len(chosen(events)) == 3


def test_a_prompt_in_chunks_gives_the_same_tokens(
    model: K2, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tuple((i * 17) % 384 for i in range(50))
    whole = events_of(model, tiny_tokenizer, ids)
    monkeypatch.setattr(module, "CHUNK", 16)
    parts = events_of(model, tiny_tokenizer, ids)
    read = [event for event in parts if isinstance(event, PromptRead)]
    assert [(event.start, len(event.ids)) for event in read] == [
        (0, 16),
        (16, 16),
        (32, 16),
        (48, 2),
    ]
    assert sum((event.ids for event in read), ()) == ids
    assert [e.id for e in chosen(parts)] == [e.id for e in chosen(whole)]


def test_a_second_turn_finds_the_first_in_the_cache(model: K2, tiny_tokenizer: Tokenizer) -> None:
    cache = LatentCache(model.config)
    first = [e.id for e in chosen(events_of(model, tiny_tokenizer, cache=cache))]
    assert cache.length == 7 + 12  # the last chosen token was read too
    second = events_of(model, tiny_tokenizer, (9, 8), cache)
    assert isinstance(second[0], PromptRead)
    assert second[0].start == 19
    logits = full_logits(model, [*GIVEN, *first, 9, 8])[-1]
    assert chosen(second)[0].id == int(logits.argmax())


def test_a_stop_token_ends_the_turn_and_is_read(model: K2, tiny_tokenizer: Tokenizer) -> None:
    tokens = [e.id for e in chosen(events_of(model, tiny_tokenizer))]
    stop = tokens[4]
    cache = LatentCache(model.config)
    settings = Settings(max_tokens=12, stop_ids=frozenset({stop}))
    got = [e.id for e in chosen(events_of(model, tiny_tokenizer, cache=cache, settings=settings))]
    assert got == tokens[: tokens.index(stop) + 1]
    assert cache.length == 7 + len(got)


def test_the_same_seed_gives_the_same_run(model: K2, tiny_tokenizer: Tokenizer) -> None:
    def run(seed: int) -> list[int]:
        settings = Settings(sampler=sampled(temperature=2.0, seed=seed), max_tokens=10)
        return [e.id for e in chosen(events_of(model, tiny_tokenizer, settings=settings))]

    assert run(1) == run(1)
    assert run(1) != run(2)


def scripted(ids: list[int]) -> Settings:
    """Settings whose sampler chooses these ids, whatever the logits."""
    left = iter(ids)
    return Settings(sampler=lambda logits: next(left), max_tokens=len(ids))


@pytest.mark.parametrize(
    "text", ["twelve answer", "Äpfel 🙂 für 你好", "𝔘𝔫𝔦\u0301", "a\u200db", "\n\n\t 12"]
)
def test_text_pieces_join_to_the_decoded_text(
    text: str, model: K2, tiny_tokenizer: Tokenizer
) -> None:
    ids = tiny_tokenizer.encode(text)
    events = events_of(model, tiny_tokenizer, tuple(ids), settings=scripted(ids))
    assert isinstance(events[0], PromptRead)
    assert "".join(events[0].texts) == text
    assert "".join(event.text for event in chosen(events)) == text


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_half_a_character_at_the_end_is_told_as_the_tokenizer_decodes_it(
    cut: int, model: K2, tiny_tokenizer: Tokenizer
) -> None:
    ids = tiny_tokenizer.encode("ab🙂")[: -4 + cut]
    events = events_of(model, tiny_tokenizer, settings=scripted(ids))
    joined = "".join(event.text for event in chosen(events))
    assert joined == tiny_tokenizer.decode(ids) == "ab\ufffd"


def test_a_text_cut_by_a_marker_tells_both(model: K2, tiny_tokenizer: Tokenizer) -> None:
    ids = [*tiny_tokenizer.encode("🙂")[:2], tiny_tokenizer.special("</think>"), 65]
    events = events_of(model, tiny_tokenizer, settings=scripted(ids))
    assert "".join(event.text for event in chosen(events)) == "\ufffd</think>A"


def test_kinds_follow_the_markers(tiny_tokenizer: Tokenizer) -> None:
    tracker, special = KindTracker(tiny_tokenizer), tiny_tokenizer.special
    written: list[tuple[int, str]] = [
        (special("<think>"), "marker"),
        (65, "thinking"),
        (special("</think>"), "marker"),
        (66, "answer"),
        (special("<|tool_calls_section_begin|>"), "marker"),
        (special("<|tool_call_begin|>"), "marker"),
        (67, "call"),
        (special("<|tool_calls_section_end|>"), "marker"),
        (68, "answer"),
        (special("<|im_end|>"), "marker"),
    ]
    assert [tracker.feed(token) for token, _ in written] == [kind for _, kind in written]


def test_a_prompt_of_segments_keeps_their_kinds(tiny_tokenizer: Tokenizer) -> None:
    segments = [
        Segment("<|im_user|>", markers=True, kind="marker"),
        Segment("<|im_end|> ü", markers=False, kind="user"),
    ]
    prompt = Prompt.of(segments, tiny_tokenizer)
    assert prompt.kinds[0] == "marker"
    assert set(prompt.kinds[1:]) == {"user"}
    assert not any(tiny_tokenizer.is_special(token) for token in prompt.ids[1:])
    assert "".join(prompt.texts) == "<|im_user|><|im_end|> ü"
    later = prompt.after(1)
    assert (len(later.ids), len(later.texts), len(later.kinds)) == (len(prompt.ids) - 1,) * 3


@pytest.mark.parametrize("bad", [-1, 640, 10**9])
def test_an_id_out_of_range_is_refused_with_its_place(
    bad: int, model: K2, tiny_tokenizer: Tokenizer
) -> None:
    prompt = Prompt((1, bad), ("a", "b"), ("user", "user"))
    with pytest.raises(InputError, match=rf"{bad} at position 1.*0 to 639"):
        list(generate(model, tiny_tokenizer, prompt, LatentCache(model.config), Settings()))


def test_an_empty_prompt_is_refused(model: K2, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no tokens"):
        events_of(model, tiny_tokenizer, ())


def test_a_prompt_longer_than_the_context_is_refused_before_it_is_read(
    model: K2, tiny_tokenizer: Tokenizer
) -> None:
    cache = LatentCache(model.config)
    with pytest.raises(ContextError, match="512"):
        events_of(model, tiny_tokenizer, (1,) * 512, cache)
    assert cache.length == 0


def test_generation_ends_where_the_context_ends(model: K2, tiny_tokenizer: Tokenizer) -> None:
    cache = LatentCache(model.config)
    got = chosen(events_of(model, tiny_tokenizer, (1,) * 509, cache))
    assert len(got) == 3
    assert cache.length == 512


def test_leaving_the_iterator_early_does_not_leave_inference_mode_on(
    model: K2, tiny_tokenizer: Tokenizer
) -> None:
    cache = LatentCache(model.config)
    steps = generate(model, tiny_tokenizer, prompt_of(GIVEN, tiny_tokenizer), cache, Settings())
    next(steps)
    assert not torch.is_inference_mode_enabled()
    steps.close()
    assert cache.length == 7


def test_impossible_tokens_do_not_spoil_the_entropy(tiny_tokenizer: Tokenizer) -> None:
    logits = torch.full((640,), -torch.inf)
    logits[3] = logits[4] = 1.0
    logprob, entropy, top = describe(logits, 3, tiny_tokenizer)
    assert logprob == pytest.approx(-np.log(2))
    assert entropy == pytest.approx(np.log(2))
    assert {entry[0] for entry in top[:2]} == {3, 4}
