"""Capture levels: what they record, what they cost in bytes, and what they refuse."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from k2lab.engine import capture
from k2lab.engine.capture import FULL, OFF, ROUTE, Level, attention, level_of, residual, scores
from k2lab.engine.edits import ZeroExperts
from k2lab.engine.events import Captured, Routed
from k2lab.engine.generate import Prompt, Settings, generate
from k2lab.engine.lens import lens
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import chain, watch
from k2lab.errors import BudgetError, InputError, SiteError, TraceError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_NANO, K2_THINKING, K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.trace import attention as reading
from k2lab.trace.trace import About, Trace

Configs = Callable[..., K2Config]
Models = Callable[..., K2]


@pytest.fixture(scope="module")
def model(tiny_config: Configs, tiny_model: Models) -> K2:
    return tiny_model(tiny_config())


def recorded(
    model: K2, tokenizer: Tokenizer, level: Level, tokens: int = 6, *, given: int = 11, **more
) -> Trace:
    config = model.config
    about = About("tiny", config.num_hidden_layers, config.first_k_dense_replace,
                  config.n_routed_experts, config.num_experts_per_tok,
                  config.routed_scaling_factor, config.vocab_size)  # fmt: skip
    prompt = Prompt(tuple(range(20, 20 + given)), ("x",) * given, ("user",) * given)
    settings = Settings(max_tokens=tokens, capture=level, **more)
    events = generate(model, tokenizer, prompt, LatentCache(config), settings)
    return Trace.collect(events, about)


def watching(model: K2, trace: Trace, pattern: str) -> dict[str, Tensor]:
    """Values of the sites in one forward over all of the trace's tokens."""
    seen: dict[str, Tensor] = {}
    tap = watch(pattern, model.config, lambda site, value: seen.update({site: value.clone()}))
    with torch.inference_mode():
        step = model.step(len(trace), cache=None, tap=tap)
        model.hidden(torch.tensor([trace.ids.tolist()]), step)
    return seen


def test_levels_have_names_and_join() -> None:
    assert [str(level) for level in (OFF, ROUTE, FULL)] == ["off", "route", "full"]
    assert not OFF and ROUTE and FULL
    assert level_of("attention") == attention() and level_of(FULL) is FULL
    joined = attention(3, heads=(0, 1)) | scores(2) | attention(1, heads=(2,))
    assert joined == Level(attention=(1, 3), heads=(0, 1, 2), scores=(2,))
    assert str(attention(3, heads=(0,)) | scores(2)) == "scores(2) | attention(3, heads=(0,))"
    assert scores() | attention() | residual() == FULL
    assert (ROUTE | attention(1, heads=(2,))).heads == (2,)
    assert str(attention(3).within(2**20)) == "attention(3), 1 MiB"
    assert eval(repr(joined), {"Level": Level}) == joined
    with pytest.raises(InputError, match="'everything'"):
        level_of("everything")


@pytest.mark.parametrize(
    "level", [OFF, ROUTE, FULL, attention(3, heads=(0, 1)) | scores(), residual(2).within(2**30)]
)
def test_a_level_comes_back_from_its_json(level: Level) -> None:
    text = json.dumps(level.to_json())
    assert Level.from_json(json.loads(text)) == level
    assert Level.from_json({}) == ROUTE
    with pytest.raises(InputError, match="with depth"):
        Level.from_json({"depth": 3})


def test_off_records_nothing_and_route_only_routes(model: K2, tiny_tokenizer: Tokenizer) -> None:
    off, route = (recorded(model, tiny_tokenizer, level) for level in (OFF, ROUTE))
    assert off.routed == 0 and route.routed == len(route)
    assert not off.captured and not route.captured
    assert off.ids.tolist() == route.ids.tolist()


def test_captured_values_are_those_of_the_sites(model: K2, tiny_tokenizer: Tokenizer) -> None:
    trace = recorded(model, tiny_tokenizer, FULL)
    assert trace.captured.stop == len(trace) == 17
    seen = watching(model, trace, "layers.*")
    for name, site in [("latent", "self_attn.latent"), ("key_rope", "self_attn.k_rope"),
                       ("scores", "mlp.router.scores"), ("choice", "mlp.router.choice"),
                       ("residual", "input")]:  # fmt: skip
        layers = trace.captured.layers(name)
        assert layers == ((1, 2) if "router" in site else (0, 1, 2))
        for layer in layers:
            expected = seen[f"layers.{layer}.{site}"][0].numpy()
            assert np.allclose(trace.captured.values(name, layer), expected, atol=1e-5)


def test_attention_from_the_latent_equals_the_site(model: K2, tiny_tokenizer: Tokenizer) -> None:
    """For every head of every layer at every token: those of the prompt and those chosen later."""
    trace = recorded(model, tiny_tokenizer, attention())
    seen = watching(model, trace, "layers.*.self_attn.*")
    assert trace.captured.heads == (0, 1, 2, 3)
    for layer in range(3):
        weights = seen[f"layers.{layer}.self_attn.weights"][0].numpy()
        logits = seen[f"layers.{layer}.self_attn.scores"][0].numpy()
        for token in range(len(trace)):
            here = slice(0, token + 1)
            assert np.allclose(
                reading.scores(trace, layer, token), logits[:, token, here], atol=1e-5
            )
            found = reading.weights(trace, layer, token)
            assert np.allclose(found, weights[:, token, here], atol=1e-6)
        top = reading.strongest(trace, layer, token, 3)
        assert np.array_equal(top[:, 0], found.argmax(-1)) and top.shape == (4, 3)


def test_a_reading_tells_the_share_of_position(model: K2, tiny_tokenizer: Tokenizer) -> None:
    from k2lab.engine.replay import reading as again

    trace = recorded(model, tiny_tokenizer, attention(1))
    found, expected = reading.reading(trace, 1, 13), again(model, trace.ids[:14].tolist(), 1)
    for name in ("weights", "rope", "norm"):
        assert np.allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


def test_chosen_layers_and_heads_alone_are_kept(model: K2, tiny_tokenizer: Tokenizer) -> None:
    trace = recorded(model, tiny_tokenizer, attention(2, heads=(1, 3)))
    whole = recorded(model, tiny_tokenizer, attention())
    assert trace.captured.heads == (1, 3) and trace.captured.layers("latent") == (2,)
    both = [reading.weights(each, 2, 15) for each in (trace, whole)]
    assert np.allclose(both[0], both[1][[1, 3]], atol=1e-6)
    with pytest.raises(TraceError, match="capture='attention'"):
        reading.weights(trace, 1, 15)
    with pytest.raises(TraceError, match="capture='scores'"):
        trace.captured.values("scores", 1)
    with pytest.raises(TraceError, match="a token from 0 to 16"):
        reading.weights(trace, 2, 17)


def test_bfloat16_is_kept_as_it_is(
    tiny_config: Configs, tiny_model: Models, tiny_tokenizer: Tokenizer
) -> None:
    model = tiny_model(tiny_config(dtype="bfloat16"), dtype=torch.bfloat16)
    trace = recorded(model, tiny_tokenizer, FULL)
    assert trace.captured.raw("latent").dtype == np.uint16
    seen = watching(model, trace, "layers.0.self_attn.*")
    latent = trace.captured.values("latent", 0)
    expected = seen["layers.0.self_attn.latent"][0].float().numpy()
    assert np.array_equal(latent[:11], expected[:11])  # the prompt, read in one forward both times
    weights = seen["layers.0.self_attn.weights"][0].float().numpy()
    assert np.allclose(reading.weights(trace, 0, 10), weights[:, 10, :11], atol=0.02)


def test_capture_changes_no_token(model: K2, tiny_tokenizer: Tokenizer) -> None:
    route, full = (recorded(model, tiny_tokenizer, level, 12) for level in (ROUTE, FULL))
    assert route.ids.tolist() == full.ids.tolist()
    assert np.array_equal(route.logprob, full.logprob, equal_nan=True)


def test_captured_values_are_those_after_edits(model: K2, tiny_tokenizer: Tokenizer) -> None:
    def double(site: str, value: Tensor) -> Tensor:
        return value * 2 if site == "layers.1.self_attn.latent" else value

    plain = recorded(model, tiny_tokenizer, attention(1), 1)
    edited = recorded(model, tiny_tokenizer, attention(1), 1, tap=chain(double))
    values = [trace.captured.values("latent", 1)[:11] for trace in (edited, plain)]
    assert np.allclose(values[0], 2 * values[1], atol=1e-4)


def test_a_full_budget_gives_up_the_oldest_and_says_so(
    model: K2, tiny_tokenizer: Tokenizer
) -> None:
    level = residual(0)
    each = capture.bytes_per_token(model.config, level, 4)
    assert each == 64 * 4
    trace = recorded(model, tiny_tokenizer, level.within(256 * each), 40, given=250)
    assert trace.dropped is not None and trace.dropped.budget == 256 * each
    assert trace.captured.first == trace.dropped.first > 0
    assert 256 - 256 // 8 <= trace.captured.stop - trace.captured.first <= 256
    assert trace.captured.nbytes <= 256 * each
    whole = recorded(model, tiny_tokenizer, level, 40, given=250)
    kept = whole.captured.values("residual", 0)[trace.captured.first :]
    assert np.array_equal(trace.captured.values("residual", 0), kept)
    assert trace.routed == whole.routed


def test_attention_without_all_latents_is_refused(model: K2, tiny_tokenizer: Tokenizer) -> None:
    level = attention(0, heads=(0,))
    each = capture.bytes_per_token(model.config, level, 4)
    trace = recorded(model, tiny_tokenizer, level.within(256 * each), 40, given=250)
    with pytest.raises(TraceError, match="given up"):
        reading.weights(trace, 0, 280)


def test_what_does_not_fit_or_does_not_exist_is_refused(
    model: K2, tiny_tokenizer: Tokenizer
) -> None:
    with pytest.raises(BudgetError, match="holds 0 tokens"):
        recorded(model, tiny_tokenizer, FULL.within(100))
    with pytest.raises(SiteError, match=r"layers\.7"):
        recorded(model, tiny_tokenizer, attention(7))
    with pytest.raises(SiteError, match="router"):
        recorded(model, tiny_tokenizer, scores(0))  # a dense layer
    with pytest.raises(InputError, match="Heads"):
        recorded(model, tiny_tokenizer, attention(1, heads=(4,)))


def test_bytes_per_token_are_those_of_the_arrays(model: K2, tiny_tokenizer: Tokenizer) -> None:
    for level in (FULL, attention(1, heads=(0, 2)) | scores(2), residual(0, 1)):
        trace = recorded(model, tiny_tokenizer, level)
        each = capture.bytes_per_token(model.config, level, 4)
        assert trace.captured.nbytes == each * len(trace)


def test_full_capture_is_for_k2_nano() -> None:
    assert capture.bytes_per_token(K2_NANO, FULL) * 4096 < capture.BUDGET
    assert capture.bytes_per_token(K2_THINKING, FULL) * capture.FEWEST > capture.BUDGET
    assert capture.bytes_per_token(K2_THINKING, attention(30)) * 4096 < capture.BUDGET


@pytest.mark.parametrize(("held", "starts"), [(0.0, (0, 2, 3, 4)), (1e9, (0, 2))])
def test_events_come_in_the_order_of_the_tokens(
    held: float,
    starts: tuple[int, ...],
    model: K2,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "HELD_SECONDS", held)
    prompt = Prompt((20, 21), ("x",) * 2, ("user",) * 2)
    settings = Settings(max_tokens=3, capture=scores(1))
    found = [
        (type(event), event.start)
        for event in generate(model, tiny_tokenizer, prompt, LatentCache(model.config), settings)
        if isinstance(event, Routed | Captured)
    ]
    assert found == [(kind, start) for start in starts for kind in (Routed, Captured)]


@pytest.mark.parametrize("level", [FULL, attention(1, heads=(1, 3)), replace(FULL, routes=False)])
@pytest.mark.parametrize("edited", [False, True])
def test_what_is_told_of_several_tokens_at_once_is_what_is_told_of_each(
    level: Level,
    edited: bool,
    model: K2,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Edits of some tokens among them: values are arrays without and tensors with one."""
    edits = (ZeroExperts(layer=1, experts=(2,), tokens=(13, 15)),) if edited else ()
    traces = []
    for held in (0.0, 1e9):
        monkeypatch.setattr(capture, "HELD_SECONDS", held)
        surgery = Surgery(edits, model.config)
        traces.append(recorded(model, tiny_tokenizer, level, edits=surgery))
    one, other = traces
    assert one.captured.stop == other.captured.stop == len(one) == len(other)
    assert np.array_equal(one.experts, other.experts)
    for name in one.captured.names:
        mine, its = one.captured.raw(name), other.captured.raw(name)
        assert np.array_equal(mine, its) or name == "query_latent"
        assert np.allclose(mine, its, rtol=1e-5, atol=1e-6)  # a product: its last bit may differ


def test_a_fork_shares_captured_values_until_it_grows(model: K2, tiny_tokenizer: Tokenizer) -> None:
    trace = recorded(model, tiny_tokenizer, FULL)
    fork = trace.fork(13)
    assert (len(fork), fork.routed, fork.captured.stop) == (13, 13, 13)
    assert np.shares_memory(fork.experts, trace.experts)
    before = trace.captured.raw("latent").copy()
    arrays = {name: trace.captured.raw(name)[:1] for name in trace.captured.names}
    layers = {name: trace.captured.layers(name) for name in trace.captured.names}
    fork.append(Captured(13, trace.captured.heads, layers, arrays))
    assert fork.captured.stop == 14
    assert np.array_equal(trace.captured.raw("latent"), before)
    assert np.array_equal(reading.weights(fork, 1, 12), reading.weights(trace, 1, 12))


def test_the_lens_after_the_last_layer_is_the_network(model: K2, tiny_tokenizer: Tokenizer) -> None:
    trace = recorded(model, tiny_tokenizer, residual())
    with torch.inference_mode():
        step = model.step(len(trace), cache=None, tap=lambda site, value: value)
        last = model.hidden(torch.tensor([trace.ids.tolist()]), step)
        logits = model.logits(last, step)[0].float()
    view = lens(model, last[0].numpy(), count=3)
    assert np.array_equal(view.ids, logits.topk(3).indices.numpy())
    assert np.allclose(view.probabilities, logits.softmax(-1).topk(3).values.numpy(), atol=1e-6)
    assert (view.entropy >= 0).all()
    assert view.ids[10:-1, 0].tolist() == trace.ids[11:].tolist()  # greedy: it is what was chosen
    early = lens(model, trace.captured.values("residual", 1))
    assert early.ids.shape == (17, 5)
    with pytest.raises(InputError, match="shape"):
        lens(model, np.zeros((3, 5), np.float32))
