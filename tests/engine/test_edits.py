"""Edits as records and as JSON: what is read, what is refused."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from k2lab.engine.edits import (
    BiasExperts,
    Edit,
    ForceExperts,
    RouteAround,
    SwapRouter,
    ZeroExperts,
    ZeroHeads,
    edits_at,
    from_json,
    to_json,
    unique,
)
from k2lab.engine.events import KINDS
from k2lab.errors import InputError, SiteError
from k2lab.spec.config import K2Config

SCOPES = st.fixed_dictionaries(
    {"layer": st.integers(0, 99)},
    optional={
        "tokens": st.tuples(st.integers(0, 50), st.integers(51, 99)),
        "segment": st.sampled_from(KINDS),
    },
)
NUMBERS = st.lists(st.integers(0, 500), min_size=1, max_size=5, unique=True).map(tuple)
ALL = st.one_of(
    *(
        st.builds(lambda scope, whom, kind=kind: kind(experts=whom, **scope), SCOPES, NUMBERS)
        for kind in (ZeroExperts, RouteAround, ForceExperts)
    ),
    st.builds(
        lambda scope, whom, amount: BiasExperts(experts=whom, amount=amount, **scope),
        SCOPES,
        NUMBERS,
        st.floats(-100, 100),
    ),
    st.builds(lambda scope, whom: ZeroHeads(heads=whom, **scope), SCOPES, NUMBERS),
    st.builds(
        lambda scope, rule: SwapRouter(rule=rule, **scope),
        SCOPES,
        st.sampled_from(("softmax", "unbiased", "adaptive")),
    ),
)


@given(ALL)
def test_an_edit_survives_json(edit: Edit) -> None:
    assert from_json(json.loads(json.dumps(to_json(edit)))) == edit


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "zero",
        {},
        {"do": "heal", "layer": 1, "experts": [1]},
        {"do": ["zero"], "layer": 1, "experts": [1]},
        {"do": "ZERO", "layer": 1, "experts": [1]},
        {"do": "zero", "layer": 1, "experts": [1], 5: 6},
        {"do": "zero", "experts": [1]},
        {"do": "zero", "layer": 1},
        {"do": "zero", "layer": "1", "experts": [1]},
        {"do": "zero", "layer": True, "experts": [1]},
        {"do": "zero", "layer": 1, "experts": []},
        {"do": "zero", "layer": 1, "experts": 1},
        {"do": "zero", "layer": 1, "experts": [1.5]},
        {"do": "zero", "layer": 1, "experts": [False]},
        {"do": "zero", "layer": 1, "experts": [1], "tokens": [5, 5]},
        {"do": "zero", "layer": 1, "experts": [1], "tokens": [5]},
        {"do": "zero", "layer": 1, "experts": [1], "tokens": [-1, 5]},
        {"do": "zero", "layer": 1, "experts": [1], "segment": "dreaming"},
        {"do": "zero", "layer": 1, "experts": [1], "amount": 2.0},
        {"do": "bias", "layer": 1, "experts": [1]},
        {"do": "bias", "layer": 1, "experts": [1], "amount": "2"},
        {"do": "bias", "layer": 1, "experts": [1], "amount": float("nan")},
        {"do": "bias", "layer": 1, "experts": [1], "amount": float("inf")},
        {"do": "zero_heads", "layer": 1, "experts": [1]},
        {"do": "router", "layer": 1, "rule": "dice"},
        {"do": "router", "layer": 1, "rule": np.array(["softmax", "dice"])},
        {"do": "zero", "layer": 1, "experts": np.array([1.0, 2.0])},
        {"do": "zero", "layer": 1, "experts": np.array([True, False])},
        {"do": "zero", "layer": 1, "experts": [np.bool_(True)]},
        {"do": "zero", "layer": 1, "experts": [np.float64(1)]},
        {"do": "zero", "layer": 1, "experts": np.array([[1, 2]])},
        {"do": "zero", "layer": 1, "experts": np.array(1)},
        {"do": "zero", "layer": 1, "experts": b"12"},
        {"do": "zero", "layer": 1, "experts": {1: 2}},
        {"do": "zero", "layer": np.bool_(True), "experts": [1]},
        {"do": "bias", "layer": 1, "experts": [1], "amount": np.bool_(True)},
        {"do": "bias", "layer": 1, "experts": [1], "amount": np.array([1.0])},
    ],
)
def test_what_is_no_edit_is_refused(bad: Any) -> None:
    with pytest.raises(InputError):
        from_json(bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
FIELDS = ("layer", "experts", "heads", "tokens", "segment", "amount", "rule", "other")


@given(
    st.sampled_from(["zero", "around", "force", "bias", "zero_heads", "router"]) | JSON,
    st.dictionaries(st.sampled_from(FIELDS), JSON),
)
def test_whatever_a_page_sends_is_an_edit_or_a_told_error(do: Any, rest: dict[str, Any]) -> None:
    try:
        edit = from_json({"do": do, **rest})
    except InputError:
        return
    assert from_json(to_json(edit)) == edit


def test_repetitions_go_and_order_stays() -> None:
    one, two = ZeroExperts(layer=1, experts=(3,)), RouteAround(layer=1, experts=(3,))
    assert unique([one, to_json(two), one, to_json(one)]) == (one, two)


def test_a_site_and_keywords_become_edits(tiny_config: Callable[..., K2Config]) -> None:
    config = tiny_config()
    assert edits_at("layers.2.mlp.router", {"ablate": [3, 1]}, config) == (
        ZeroExperts(layer=2, experts=(3, 1)),
    )
    assert edits_at("layers.*.mlp.router", {"rule": "softmax"}, config) == (
        SwapRouter(layer=1, rule="softmax"),
        SwapRouter(layer=2, rule="softmax"),
    )
    assert edits_at("layers.0.self_attn", {"ablate": [2], "tokens": (3, 9)}, config) == (
        ZeroHeads(layer=0, heads=(2,), tokens=(3, 9)),
    )
    assert edits_at(
        "layers.1.mlp.router", {"bias": {4: 1, 5: -0.5}, "segment": "thinking"}, config
    ) == (
        BiasExperts(layer=1, experts=(4,), amount=1.0, segment="thinking"),
        BiasExperts(layer=1, experts=(5,), amount=-0.5, segment="thinking"),
    )


@pytest.mark.parametrize(
    ("site", "how", "error"),
    [
        ("layers.9.mlp.router", {"ablate": [1]}, SiteError),
        ("layers.0.mlp.router", {"ablate": [1]}, SiteError),  # a dense layer
        ("nowhere", {"ablate": [1]}, SiteError),
        ("layers.1.mlp.router", {}, InputError),
        ("layers.1.mlp.router", {"ablate": [1], "heal": [2]}, InputError),
        ("layers.1.mlp.router", {"tokens": (1, 2)}, InputError),
        ("layers.1.mlp.router", {"ablate": ["a"]}, InputError),
        ("layers.1.mlp.router", {"ablate": 12}, InputError),
        ("layers.1.mlp.router", {"ablate": 0}, InputError),
        ("layers.1.mlp.router", {"ablate": "12"}, InputError),
        ("layers.1.mlp.router", {"ablate": None}, InputError),
        ("layers.1.mlp.router", {"around": [1.0]}, InputError),
        ("layers.1.mlp.router", {"force": np.array([])}, InputError),
        ("layers.1.mlp.router", {"bias": [3]}, InputError),
        ("layers.1.mlp.router", {"bias": {"3": 1.0}}, InputError),
        ("layers.1.mlp.router", {"bias": {3: None}}, InputError),
        ("layers.1.mlp.router", {"ablate": [1], "tokens": 5}, InputError),
        ("layers.1.mlp.router", {"ablate": [1], "tokens": range(3, 5)}, InputError),
        ("layers.1.mlp.router", {"ablate": [1], "tokens": {3, 5}}, InputError),
        ("layers.1.mlp.router", {"ablate": [int]}, InputError),
        ("layers.1.mlp.router", {"rule": ["softmax"]}, InputError),
        ("layers.1.self_attn", {"ablate": 2}, InputError),
        ("layers.1.self_attn", {"force": [1]}, InputError),
        ("layers.1.self_attn", {}, InputError),
    ],
)
def test_a_wrong_site_or_keyword_is_told(
    site: str, how: Any, error: type[Exception], tiny_config: Callable[..., K2Config]
) -> None:
    with pytest.raises(error):
        edits_at(site, how, tiny_config())


def test_numbers_of_numpy_and_torch_are_numbers(tiny_config: Callable[..., K2Config]) -> None:
    """As `argsort` and `topk` give them."""
    config, site = tiny_config(), "layers.1.mlp.router"
    (wanted,) = edits_at(site, {"ablate": [2, 0]}, config)
    busiest = np.argsort([5, 9, 1])[:2]
    for whom in (
        busiest, list(busiest), tuple(busiest), torch.tensor([2, 0]), list(torch.tensor([2, 0])),
        range(2, -1, -2), iter([2, 0]),
    ):  # fmt: skip
        (found,) = edits_at(site, {"ablate": whom}, config)  # type: ignore[typeddict-item]
        assert found == wanted and json.dumps(to_json(found)) == json.dumps(to_json(wanted))
    amounts = {np.int64(4): np.float32(0.5)}
    tokens = np.array([3, 9])
    (found,) = edits_at(site, {"bias": amounts, "tokens": tokens}, config)  # type: ignore[dict-item, typeddict-item]
    assert found == BiasExperts(layer=1, experts=(4,), amount=0.5, tokens=(3, 9))
    assert json.dumps(to_json(found))


def test_what_is_read_once_acts_in_every_layer(tiny_config: Callable[..., K2Config]) -> None:
    found = edits_at("layers.*.mlp.router", {"ablate": iter([3])}, tiny_config())  # type: ignore[typeddict-item]
    assert [each.layer for each in found] == [1, 2]


def test_records_are_checked_as_json_is() -> None:
    array = np.array([3, 1])
    record = ZeroExperts(layer=np.int64(1), experts=array)  # type: ignore[arg-type]
    assert unique([record]) == (ZeroExperts(layer=1, experts=(3, 1)),)
    with pytest.raises(InputError, match="experts = 12"):
        unique([ZeroExperts(layer=1, experts=12)])  # type: ignore[arg-type]
