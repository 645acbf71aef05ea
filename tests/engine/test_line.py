"""Edits of a line of runs: each acts where its run read, and nowhere else."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from k2lab.engine.edits import Edit, ForceExperts, RouteAround, ZeroHeads
from k2lab.engine.line import Line, Stretch
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import untouched
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config

IDS = torch.tensor([[7, 1, 300, 42, 5, 99, 12, 8]])
HEADS = ZeroHeads(layer=1, heads=(0, 1))
AROUND = RouteAround(layer=2, experts=(0, 1, 2, 3))


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., K2Config], tiny_model: Callable[..., K2]) -> K2:
    return tiny_model(tiny_config(), 3)


def in_parts(model: K2, *parts: tuple[int, int, Sequence[Edit]]) -> Tensor:
    """Logits of all tokens, read part after part into one cache, each under edits of its own."""
    cache, found = LatentCache(model.config), []
    with torch.inference_mode():
        for start, stop, edits in parts:
            tap = Surgery(edits, model.config).tap(start, None, stop - start)
            found.append(model(IDS[:, start:stop], model.step(stop - start, cache=cache, tap=tap)))
    return torch.cat(found, dim=1)


def at_once(model: K2, line: Line) -> Tensor:
    with torch.inference_mode():
        tap = line.tap(0, None, IDS.shape[1])
        return model(IDS, model.step(IDS.shape[1], cache=None, tap=tap))


def test_each_run_s_edits_act_where_it_read(model: K2) -> None:
    line = Line([Stretch(0, (HEADS,)), Stretch(3, ()), Stretch(5, (AROUND,))], model.config)
    wanted = in_parts(model, (0, 3, [HEADS]), (3, 5, []), (5, 8, [AROUND]))
    torch.testing.assert_close(at_once(model, line), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(wanted, in_parts(model, (0, 8, [AROUND])), atol=1e-3)


def test_of_a_branch_that_another_leaves_before_it_began_nothing_acts(model: K2) -> None:
    line = Line([Stretch(0, ()), Stretch(6, (HEADS,)), Stretch(3, (AROUND,))], model.config)
    wanted = in_parts(model, (0, 3, []), (3, 8, [AROUND]))
    torch.testing.assert_close(at_once(model, line), wanted, atol=1e-5, rtol=1e-4)


def test_more_edits_act_in_every_stretch_within_their_range(model: K2) -> None:
    late = ZeroHeads(layer=1, heads=(0, 1), tokens=(2, 6))
    line = Line([Stretch(0, ()), Stretch(4, (AROUND,))], model.config, [late])
    wanted = in_parts(model, (0, 2, []), (2, 4, [HEADS]), (4, 6, [AROUND, HEADS]), (6, 8, [AROUND]))
    torch.testing.assert_close(at_once(model, line), wanted, atol=1e-5, rtol=1e-4)


def test_where_no_edit_acts_nothing_is_touched(model: K2) -> None:
    line = Line([Stretch(0, (HEADS,)), Stretch(4, ())], model.config)
    assert line.tap(4, None, 4) is untouched
    assert line.tap(0, None, 4) is not untouched


def test_only_edits_that_meet_are_checked_together(model: K2) -> None:
    slots = model.config.num_experts_per_tok
    one, other = (
        ForceExperts(layer=1, experts=tuple(range(first, first + slots))) for first in (0, slots)
    )
    Line([Stretch(0, (one,)), Stretch(4, (other,))], model.config)
    for stretches in ([Stretch(0, (one,)), Stretch(4, ())], [Stretch(0, (one,))]):
        with pytest.raises(InputError, match="Forcing"):
            Line(stretches, model.config, [other])
    with pytest.raises(InputError, match="layer 99"):  # also where none of its tokens is left
        gone = ZeroHeads(layer=99, heads=(0,), tokens=(0, 2))
        Line([Stretch(0, ()), Stretch(4, (gone,))], model.config)
