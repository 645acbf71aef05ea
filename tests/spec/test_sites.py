"""The table of sites and the matching of patterns."""

import pytest

from k2lab.errors import SiteError
from k2lab.spec.config import K2_NANO, K2_THINKING
from k2lab.spec.sites import SITES, describe, expand, match


def test_names_are_unique_and_described() -> None:
    names = [site.name for site in SITES]
    assert len(names) == len(set(names)) == 21
    for site in SITES:
        assert site.meaning and site.symbol and site.axes[0] in ("token", "head")
        assert ("{i}" in site.name) == (site.where != "once")


def test_expansion_covers_every_layer_once() -> None:
    names = expand(K2_THINKING)
    assert len(names) == len(set(names)) == 3 + 61 * 11 + 60 * 7
    assert names[0] == "embed" and names[-2:] == ("norm", "logits")


def test_a_dense_layer_has_no_router() -> None:
    names = expand(K2_NANO)
    assert "layers.0.mlp.output" in names
    assert not [name for name in names if name.startswith("layers.0.mlp.router")]
    assert "layers.1.mlp.router.logits" in names


def test_patterns_match_in_forward_order() -> None:
    assert match("layers.*.input", K2_NANO) == tuple(f"layers.{i}.input" for i in range(6))
    assert match("layers.2.mlp.router.scores", K2_NANO) == ("layers.2.mlp.router.scores",)
    assert match("*", K2_NANO) == expand(K2_NANO)
    assert len(match("layers.[12].mlp.router.*", K2_NANO)) == 10


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
