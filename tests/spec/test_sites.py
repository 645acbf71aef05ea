"""The table of sites and the matching of patterns."""

import pytest

from k2lab.errors import SiteError
from k2lab.spec.config import K2_NANO, K2_THINKING
from k2lab.spec.sites import SITES, describe, expand, match, names


def test_names_are_unique_and_described() -> None:
    every = [site.name for site in SITES]
    assert len(every) == len(set(every)) == 21
    for site in SITES:
        assert site.meaning and site.symbol and site.axes[0] in ("token", "head")
        assert ("{i}" in site.name) == (site.where != "once")


def test_expansion_covers_every_layer_once() -> None:
    every = expand(K2_THINKING)
    assert len(every) == len(set(every)) == 3 + 61 * 11 + 60 * 7
    assert every[0] == "embed" and every[-2:] == ("norm", "logits")


def test_a_dense_layer_has_no_router() -> None:
    every = expand(K2_NANO)
    assert "layers.0.mlp.output" in every
    assert not [name for name in every if name.startswith("layers.0.mlp.router")]
    assert "layers.1.mlp.router.logits" in every


def test_patterns_match_in_forward_order() -> None:
    assert match("layers.*.input", K2_NANO) == tuple(f"layers.{i}.input" for i in range(6))
    assert match("layers.2.mlp.router.scores", K2_NANO) == ("layers.2.mlp.router.scores",)
    assert match("*", K2_NANO) == expand(K2_NANO)
    assert len(match("layers.[12].mlp.router.*", K2_NANO)) == 10


def test_names_under_a_prefix_are_attributes() -> None:
    assert names("layers.3.self_attn").q_nope == "layers.3.self_attn.q_nope"
    assert names("layers.12.mlp").experts_rows == "layers.12.mlp.experts.rows"
    given = {name for each in ("layers.1", "layers.1.mlp") for name in vars(names(each)).values()}
    assert given == set(match("layers.1.*", K2_NANO))


@pytest.mark.parametrize("pattern", ["layers.0.mlp.router.scores", "layers.6.input", "", "LOGITS"])
def test_nothing_matched_is_an_error(pattern: str) -> None:
    with pytest.raises(SiteError):
        match(pattern, K2_NANO)


def test_the_error_names_the_nearest() -> None:
    with pytest.raises(SiteError, match=r"layers\.3\.mlp\.router\.scores"):
        match("layers.3.mlp.rooter.score", K2_NANO)


@pytest.mark.parametrize("name", expand(K2_NANO))
def test_every_concrete_name_is_described(name: str) -> None:
    assert describe(name).name.replace("{i}", name.split(".")[1] if "." in name else "") == name


@pytest.mark.parametrize("name", ["layers.{i}.input", "layers.x.input", "layers.1", "head", ""])
def test_other_texts_are_not_described(name: str) -> None:
    with pytest.raises(SiteError):
        describe(name)
