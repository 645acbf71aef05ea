"""Taps: every site once per layer with its axes; watching changes nothing, editing does."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from k2lab.engine.taps import RouteCapture, chain, edit, keeping, untouched, watch, watches
from k2lab.errors import SiteError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2, Form
from k2lab.spec.config import K2Config
from k2lab.spec.sites import SITES, Tap, describe, expand, parts

Configs = Callable[..., K2Config]
Models = Callable[..., K2]

IDS = (torch.arange(2 * 9).reshape(2, 9) * 31) % 640


@pytest.fixture
def model(tiny_config: Configs, tiny_model: Models) -> K2:
    return tiny_model(tiny_config())


def forward(
    model: K2,
    tap: Tap,
    ids: Tensor = IDS,
    *,
    cache: LatentCache | None = None,
    form: Form | None = None,
) -> Tensor:
    with torch.inference_mode():
        return model(ids, model.step(ids.shape[1], cache=cache, tap=tap, form=form))


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None, "first_k_dense_replace": 2},
        {"n_group": 4, "topk_group": 2, "n_shared_experts": 2},
    ],
)
def test_every_site_is_tapped_once_with_its_axes_and_no_other(
    form: Form, past: int, changes: dict[str, int], tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(**changes)
    model, cache = tiny_model(config), LatentCache(config, batch=2)
    if past:
        forward(model, untouched, IDS[:, :past], cache=cache)
    seen: list[str] = []
    sizes = {
        "token": 9,
        "source": past + 9,
        "head": config.num_attention_heads,
        "hidden": config.hidden_size,
        "nope": config.qk_nope_head_dim,
        "rope": config.qk_rope_head_dim,
        "latent": config.kv_lora_rank,
        "value": config.v_head_dim,
        "expert": config.n_routed_experts,
        "slot": config.num_experts_per_tok,
        "vocab": config.vocab_size,
    }

    def tap(site: str, value: Tensor) -> Tensor:
        seen.append(site)
        assert value.shape == (2, *(sizes[axis] for axis in describe(site).axes)), site
        return value

    forward(model, tap, cache=cache, form=form)
    assert tuple(seen) == expand(config)
    assert max(Counter(seen).values()) == 1
    assert {describe(site).name for site in seen} == {site.name for site in SITES}


def test_values_at_the_sites_mean_what_the_table_says(model: K2) -> None:
    values: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> None:
        values[site] = value.clone()

    forward(model, watch("*", model.config, keep))
    for layer in range(3):
        at = f"layers.{layer}"
        middle = values[f"{at}.input"] + values[f"{at}.self_attn.output"]
        torch.testing.assert_close(values[f"{at}.middle"], middle)
        after = values[f"{at}.middle"] + values[f"{at}.mlp.output"]
        following = values.get(f"layers.{layer + 1}.input")
        if following is not None:
            torch.testing.assert_close(following, after)
        weights = values[f"{at}.self_attn.weights"]
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))
        scores = values[f"{at}.self_attn.scores"]
        assert scores.isinf().any(-1)[:, :, :-1].all()  # all but the last token may not see some
        assert torch.equal(scores.isinf(), weights == 0)
    for layer in (1, 2):
        at = f"layers.{layer}.mlp"
        rows, weights = values[f"{at}.experts.rows"], values[f"{at}.router.weights"]
        mixed = (rows * weights.unsqueeze(-1)).sum(-2) + values[f"{at}.shared_experts.output"]
        torch.testing.assert_close(values[f"{at}.output"], mixed)
        choice = values[f"{at}.router.choice"].gather(-1, values[f"{at}.router.experts"])
        assert (choice.diff(dim=-1) <= 0).all()
        assert torch.equal(values[f"{at}.router.scores"], values[f"{at}.router.logits"].sigmoid())


def test_watching_leaves_logits_equal_to_the_bit(model: K2) -> None:
    seen: list[str] = []
    plain = forward(model, untouched)
    watched = forward(model, watch("*", model.config, lambda site, value: seen.append(site)))
    assert torch.equal(plain, watched)
    assert len(seen) == len(expand(model.config))


def test_what_only_watches_is_known(model: K2) -> None:
    one = watch("layers.*.input", model.config, lambda site, value: None)
    two = RouteCapture(model.config).tap
    changing = edit("layers.1.input", model.config, lambda value: value)
    assert all(map(watches, (untouched, one, two, chain(one, two), chain(two, one))))
    assert not any(map(watches, (changing, chain(one, changing, two), lambda site, value: value)))


def test_an_identity_edit_leaves_logits_equal_to_the_bit(model: K2) -> None:
    same = forward(model, edit("*", model.config, lambda value: value))
    assert torch.equal(forward(model, untouched), same)


@pytest.mark.parametrize("site", [site.name for site in SITES])
def test_editing_any_site_changes_logits(site: str, model: K2) -> None:
    def change(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return (value + 1) % 16
        if value.isinf().any():  # a constant would cancel in the softmax
            return value * 1.5
        # Reversed along the features, except where the choice alone depends on the value.
        return value.flip(-1) * 1.1

    if site.endswith("choice"):
        change = torch.neg
    tap = edit(site.format(i=1), model.config, change)
    assert not torch.allclose(forward(model, tap), forward(model, untouched))


def test_an_edit_reaches_the_matching_layers_only(model: K2) -> None:
    inputs: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> None:
        inputs[site] = value.clone()

    config = model.config
    look = watch("layers.*.input", config, keep)
    forward(model, look)
    before = dict(inputs)
    forward(model, chain(edit("layers.1.mlp.output", config, torch.zeros_like), look))
    assert torch.equal(inputs["layers.0.input"], before["layers.0.input"])
    assert torch.equal(inputs["layers.1.input"], before["layers.1.input"])
    assert not torch.equal(inputs["layers.2.input"], before["layers.2.input"])


@pytest.mark.parametrize("make", [watch, edit])
@pytest.mark.parametrize(
    "pattern", ["layers.7.input", "layers.0.mlp.router.scores", "layer.*", "", "Embed"]
)
def test_a_pattern_that_matches_nothing_is_an_error(
    make: Callable[..., Tap], pattern: str, model: K2
) -> None:
    with pytest.raises(SiteError, match="No site of this model"):
        make(pattern, model.config, lambda *value: value[-1])


def test_a_chain_passes_values_on_in_order(model: K2) -> None:
    one = edit("embed", model.config, lambda value: value + 1)
    two = edit("embed", model.config, lambda value: value * 2)
    value = torch.ones(1)
    assert chain(one, two)("embed", value) == 4
    assert chain(two, one)("embed", value) == 3
    assert chain(untouched, one) is one
    assert chain(untouched, untouched) is untouched
    assert chain() is untouched


@pytest.mark.parametrize(
    ("place", "shown", "told"),
    [(0, [2, 2], 2), (1, [1, 2], 1), (2, [1, 1], 0), (None, [1, 1], 2)],
)
def test_what_a_chain_is_told_is_what_a_call_would_show(
    place: int | None, shown: list[int], told: int, tiny_config: Configs
) -> None:
    """An edit before, between or after two taps that keep what they see, or nowhere."""
    lists: list[list[Any]] = [[], []]
    taps = [keeping({"embed": kept}) for kept in lists]
    if place is not None:
        taps.insert(place, edit("embed", tiny_config(), lambda value: value + 1))
    whole = chain(*taps)
    result = whole("embed", torch.ones(()))
    assert [[int(value) for value in kept] for kept in lists] == [[each] for each in shown]
    for kept in lists:
        kept.clear()
    called, notes = parts(whole)
    value = called("embed", torch.ones(()))
    assert value == result
    assert sum(map(len, lists)) == 2 - told  # those before an edit must be called
    for note in notes.values():
        note(value)
    assert [[int(value) for value in kept] for kept in lists] == [[each] for each in shown]


def test_route_capture_reports_what_the_router_did(model: K2) -> None:
    values: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> None:
        values[site] = value.clone()

    capture = RouteCapture(model.config)
    forward(model, chain(capture.tap, watch("*.router.*", model.config, keep)), IDS[:1])
    routed = capture.take(40)
    assert routed is not None
    assert routed.start == 40
    assert (routed.experts.shape, routed.experts.dtype) == ((9, 2, 4), np.uint16)
    assert (routed.weights.shape, routed.weights.dtype) == ((9, 2, 4), np.uint8)
    assert (routed.margin.shape, routed.margin.dtype) == ((9, 2), np.float16)
    for place, layer in enumerate(model.config.moe_layers):
        at = f"layers.{layer}.mlp.router"
        assert np.array_equal(routed.experts[:, place], values[f"{at}.experts"][0].numpy())
        share = values[f"{at}.weights"][0].numpy() / model.config.routed_scaling_factor
        assert np.abs(routed.weights[:, place] / 255 - share).max() <= 0.5 / 255 + 1e-6
        ranked = values[f"{at}.choice"][0].sort(-1, descending=True).values.numpy()
        margin = ranked[:, 3] - ranked[:, 4]
        assert np.allclose(routed.margin[:, place], margin, rtol=1e-3)
    assert capture.take(49) is None  # taken, so forgotten


def test_route_capture_without_experts_or_without_a_rest(
    tiny_config: Configs, tiny_model: Models
) -> None:
    dense = tiny_model(tiny_config(first_k_dense_replace=3))
    capture = RouteCapture(dense.config)
    forward(dense, capture.tap, IDS[:1])
    assert capture.take(0) is None
    everyone = tiny_model(tiny_config(n_routed_experts=4))
    capture = RouteCapture(everyone.config)
    forward(everyone, capture.tap, IDS[:1])
    routed = capture.take(0)
    assert routed is not None
    assert np.isinf(routed.margin).all()


def test_margins_stay_finite_where_groups_are_closed(
    tiny_config: Configs, tiny_model: Models
) -> None:
    config = tiny_config(n_group=4, topk_group=1)  # all four open experts are chosen
    capture = RouteCapture(config)
    forward(tiny_model(config), capture.tap, IDS[:1])
    routed = capture.take(0)
    assert routed is not None
    assert (routed.margin == np.float16(65504.0)).all()


def test_routes_of_single_tokens_are_those_of_one_forward(model: K2) -> None:
    """One that was halted half-way is not among them."""
    tokens = 40
    ids = IDS[:1].repeat(1, 1 + tokens // IDS.shape[1])[:, :tokens]
    whole, single = RouteCapture(model.config), RouteCapture(model.config)
    forward(model, whole.tap, ids)
    cache = LatentCache(model.config)

    def halt(site: str, value: Tensor) -> Tensor:
        if site == "layers.2.middle":
            raise RuntimeError
        return value

    for place in range(tokens):
        with torch.inference_mode():
            model(ids[:, place : place + 1], model.step(1, cache=cache, tap=single.tap))
    with torch.inference_mode(), pytest.raises(RuntimeError):
        model(ids[:, :1], model.step(1, cache=cache, tap=chain(single.tap, halt)))
    expected, told = whole.take(0), single.take(0, tokens - 1)
    assert expected is not None and told is not None and single.take(0) is None
    assert np.array_equal(told.experts, expected.experts[:-1])  # of the last one nobody asked
    assert np.allclose(told.weights, expected.weights[:-1], atol=1)
    assert np.allclose(told.margin, expected.margin[:-1], rtol=1e-2, atol=1e-4)
