"""Surgery, against the same thing done by hand."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from k2lab.engine.edits import (
    BiasExperts,
    Edit,
    ForceExperts,
    RouteAround,
    SwapRouter,
    ZeroExperts,
    ZeroHeads,
)
from k2lab.engine.events import Kind
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import chain, edit, untouched, watch
from k2lab.errors import InputError
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config

IDS = torch.tensor([[7, 1, 300, 42, 5, 99, 12, 8]])
ROUTER = "layers.1.mlp.router"


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., K2Config], tiny_model: Callable[..., K2]) -> K2:
    return tiny_model(tiny_config(), 3)


def seen(
    model: K2, tap: Callable[..., Tensor] = untouched, pattern: str = f"{ROUTER}.*"
) -> dict[str, Tensor]:
    """Values at the sites, and the logits, with the tap in place."""
    found: dict[str, Tensor] = {}
    looking = watch(pattern, model.config, lambda site, value: found.update({site: value.clone()}))
    with torch.inference_mode():
        step = model.step(IDS.shape[1], cache=None, tap=chain(tap, looking))
        found["out"] = model(IDS, step)
    return found


def edited(model: K2, *edits: Edit, kinds: Sequence[Kind] | None = None) -> dict[str, Tensor]:
    return seen(model, Surgery(edits, model.config).tap(0, kinds, IDS.shape[1]))


def busiest(model: K2) -> int:
    return int(seen(model)[f"{ROUTER}.experts"].flatten().mode().values)


def test_no_edit_changes_no_bit(model: K2) -> None:
    assert torch.equal(edited(model)["out"], seen(model)["out"])


def test_a_zeroed_expert_is_one_whose_rows_are_zero(model: K2) -> None:
    expert = busiest(model)
    chosen = seen(model)[f"{ROUTER}.experts"]

    def silence(rows: Tensor) -> Tensor:
        return rows.masked_fill((chosen == expert).unsqueeze(-1), 0)

    wanted = seen(model, edit("layers.1.mlp.experts.rows", model.config, silence))
    found = edited(model, ZeroExperts(layer=1, experts=(expert,)))
    torch.testing.assert_close(found["out"], wanted["out"])
    assert torch.equal(found[f"{ROUTER}.experts"], chosen)  # still chosen
    weights, plain = found[f"{ROUTER}.weights"], seen(model)[f"{ROUTER}.weights"]
    assert torch.equal(weights[chosen != expert], plain[chosen != expert])  # not renormalised
    assert not torch.equal(found["out"], seen(model)["out"])


def test_routing_around_takes_the_next_best_and_weights_add_up(model: K2) -> None:
    expert, plain = busiest(model), seen(model)
    found = edited(model, RouteAround(layer=1, experts=(expert,)))
    scores = plain[f"{ROUTER}.choice"].clone()
    scores[..., expert] = float("-inf")
    wanted = scores.topk(model.config.num_experts_per_tok, -1).indices
    assert torch.equal(found[f"{ROUTER}.experts"], wanted)
    assert not (found[f"{ROUTER}.experts"] == expert).any()
    total = found[f"{ROUTER}.weights"].sum(-1)
    torch.testing.assert_close(total, torch.full_like(total, model.config.routed_scaling_factor))


def test_forced_experts_are_chosen_with_the_weight_of_their_score(model: K2) -> None:
    rare = seen(model)[f"{ROUTER}.scores"].mean((0, 1)).argsort()[:2].tolist()
    found = edited(model, ForceExperts(layer=1, experts=tuple(rare)))
    chosen, weights = found[f"{ROUTER}.experts"], found[f"{ROUTER}.weights"]
    for expert in rare:
        assert (chosen == expert).any(-1).all()
    scores = found[f"{ROUTER}.scores"].gather(-1, chosen)
    wanted = scores / scores.sum(-1, keepdim=True) * model.config.routed_scaling_factor
    torch.testing.assert_close(weights, wanted)


def test_a_bias_moves_the_choice_and_never_the_weights(model: K2) -> None:
    rare = int(seen(model)[f"{ROUTER}.scores"].mean((0, 1)).argmin())
    found = edited(model, BiasExperts(layer=1, experts=(rare,), amount=50.0))
    assert (found[f"{ROUTER}.experts"] == rare).any(-1).all()
    assert torch.equal(found[f"{ROUTER}.scores"], seen(model)[f"{ROUTER}.scores"])
    torch.testing.assert_close(
        found[f"{ROUTER}.choice"][..., rare], seen(model)[f"{ROUTER}.choice"][..., rare] + 50
    )
    below = edited(model, BiasExperts(layer=1, experts=(busiest(model),), amount=-50.0))
    assert not (below[f"{ROUTER}.experts"] == busiest(model)).any()


def test_zeroed_heads_say_nothing(model: K2) -> None:
    found = seen(
        model,
        Surgery([ZeroHeads(layer=2, heads=(0, 3))], model.config).tap(0, None, 8),
        "layers.2.self_attn.heads",
    )
    heads = found["layers.2.self_attn.heads"]
    plain = seen(model, pattern="layers.2.self_attn.heads")["layers.2.self_attn.heads"]
    assert not heads[:, :, [0, 3]].any()
    assert torch.equal(heads[:, :, [1, 2]], plain[:, :, [1, 2]])


@pytest.mark.parametrize(
    "make",
    [
        lambda scope: ZeroExperts(layer=1, experts=tuple(range(8)), **scope),
        lambda scope: RouteAround(layer=1, experts=tuple(range(8)), **scope),
        lambda scope: ForceExperts(layer=1, experts=(0, 1, 2, 3), **scope),
        lambda scope: BiasExperts(layer=1, experts=(0, 1, 2, 3), amount=9.0, **scope),
        lambda scope: ZeroHeads(layer=1, heads=(0, 1), **scope),
        lambda scope: SwapRouter(layer=1, rule="softmax", **scope),
    ],
)
def test_an_edit_of_some_tokens_leaves_the_earlier_ones_alone(
    model: K2, make: Callable[..., Edit]
) -> None:
    plain = seen(model)["out"]
    ranged = edited(model, make({"tokens": (5, 6)}))["out"]
    kinds: list[Kind] = ["user"] * 5 + ["thinking"] + ["answer"] * 2
    by_segment = edited(model, make({"segment": "thinking"}), kinds=kinds)["out"]
    torch.testing.assert_close(ranged[:, :5], plain[:, :5])  # grouped by expert: last bits differ
    assert (ranged[:, 5] - plain[:, 5]).abs().max() > 1e-3
    assert torch.equal(by_segment, ranged)


def test_ranges_count_from_the_beginning_of_the_run(model: K2) -> None:
    surgery = Surgery([ForceExperts(layer=1, experts=(0,), tokens=(100, 104))], model.config)
    assert surgery.tap(0, None, 8) is untouched
    assert surgery.tap(104, None, 1) is untouched
    assert surgery.tap(100, None, 1) is not untouched
    assert surgery.tap(96, None, 8) is not untouched


def test_softmax_and_unbiased_choose_without_the_bias(model: K2) -> None:
    plain, k = seen(model), model.config.num_experts_per_tok
    soft = edited(model, SwapRouter(layer=1, rule="softmax"))
    shares = plain[f"{ROUTER}.logits"].softmax(-1)
    assert torch.equal(soft[f"{ROUTER}.experts"], shares.topk(k, -1).indices)
    torch.testing.assert_close(soft[f"{ROUTER}.scores"], shares)
    free = edited(model, SwapRouter(layer=1, rule="unbiased"))
    assert torch.equal(free[f"{ROUTER}.experts"], plain[f"{ROUTER}.scores"].topk(k, -1).indices)
    assert not torch.equal(free[f"{ROUTER}.experts"], plain[f"{ROUTER}.experts"])


def test_adaptive_keeps_as_many_as_the_entropy_says(model: K2) -> None:
    plain = seen(model)
    sharpened = edit(f"{ROUTER}.logits", model.config, lambda value: value * 8)
    tap = Surgery([SwapRouter(layer=1, rule="adaptive")], model.config).tap(0, None, 8)
    found = seen(model, chain(sharpened, tap))
    logits = plain[f"{ROUTER}.logits"] * 8
    effective = torch.special.entr(logits.softmax(-1)).sum(-1).exp().ceil()
    kept = (found[f"{ROUTER}.weights"] > 0).sum(-1)
    assert torch.equal(kept, effective.clamp(max=model.config.num_experts_per_tok).long())
    assert kept.min() < model.config.num_experts_per_tok  # else this shows nothing
    total = found[f"{ROUTER}.weights"].sum(-1)
    torch.testing.assert_close(total, torch.full_like(total, model.config.routed_scaling_factor))


def test_grouped_routers_are_edited_inside_their_groups(
    tiny_config: Callable[..., K2Config], tiny_model: Callable[..., K2]
) -> None:
    model = tiny_model(tiny_config(n_group=4, topk_group=2), 3)
    plain = seen(model)
    shut = plain[f"{ROUTER}.choice"].isinf()
    found = edited(model, SwapRouter(layer=1, rule="unbiased"))
    assert torch.equal(found[f"{ROUTER}.choice"].isinf(), shut)
    raised = edited(model, BiasExperts(layer=1, experts=(0,), amount=1e5))
    assert not (raised[f"{ROUTER}.experts"] == 0)[shut[..., 0]].any()


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([ZeroExperts(layer=0, experts=(1,))], "layer 0"),
        ([ZeroExperts(layer=3, experts=(1,))], "layer 3"),
        ([ZeroExperts(layer=1, experts=(16,))], "expert 16"),
        ([ZeroHeads(layer=1, heads=(4,))], "head 4"),
        ([RouteAround(layer=1, experts=tuple(range(13)))], "13 experts"),
        ([ForceExperts(layer=1, experts=(0, 1, 2)), ForceExperts(layer=1, experts=(3, 4))], "5"),
    ],
)
def test_edits_that_the_model_has_no_place_for_are_refused(
    edits: list[Edit], words: str, model: K2
) -> None:
    with pytest.raises(InputError, match=words):
        Surgery(edits, model.config)


def test_segments_need_tokens_of_known_kind(model: K2) -> None:
    surgery = Surgery([ZeroExperts(layer=1, experts=(1,), segment="thinking")], model.config)
    with pytest.raises(InputError, match="thinking"):
        surgery.tap(0, None, 4)
