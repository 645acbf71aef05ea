"""What the report on experts says of speakers whose experts are known."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from k2lab.engine.events import (
    Answered,
    Event,
    Kind,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
)
from k2lab.evals.experts import ExpertReport, report, uses
from k2lab.trace.trace import About

ABOUT = About("m", layers=3, dense_layers=1, experts=8, slots=2, scaling=1.0, vocab=9)
KINDS: tuple[Kind, ...] = ("thinking",) * 20 + ("call",) * 10 + ("answer",) * 10


class Speaker:
    """Thinks, calls and answers the same in every task; experts are drawn or belong to phases."""

    def __init__(self, *, phased: bool) -> None:
        self.draw, self.phased = np.random.default_rng(0), phased

    def events(self, _conversation: Any, /, **_options: Any) -> Iterator[Event]:
        yield PromptRead(0, (1,), ("u",), ("user",), 0.0)
        experts = np.argsort(self.draw.random((41, 2, 7)), axis=-1)[..., :2]  # never expert 7
        if self.phased:
            experts[1:21, 1], experts[21:31, 1], experts[31:, 1] = [0, 1], [2, 3], [4, 5]
        for index, kind in enumerate(KINDS, 1):
            yield TokenChosen(index, 1, "a", kind, 0.0, 0.0, (), 0.0)
        weights = np.full(experts.shape, 127, np.uint8)
        yield Routed(0, experts.astype(np.uint16), weights, np.ones((41, 2), np.float16))
        yield Answered("nothing", "")
        yield Stopped("answer", "", 40, 0.1)


def made(*, phased: bool) -> ExpertReport:
    return report(uses(Speaker(phased=phased), ABOUT, 25, seed=1), ABOUT, seed=1)  # type: ignore[arg-type]


def test_experts_of_phases_are_found() -> None:
    found = made(phased=True)
    assert (found.tasks, found.pairs) == (25, 16)
    assert found.layers.keys() == {"1", "2"}
    assert found.layers["1"].dead == 1  # expert 7
    assert found.layers["2"].dead in (1, 2)  # 6 is chosen by the prompt's token alone
    assert found.dead == sum(layer.dead for layer in found.layers.values())
    for compared, pairs in found.phases.items():
        assert compared.count("−") == 1
        assert pairs.differing == 4 and pairs.share == 0.25  # two pairs of experts in one layer
        assert pairs.strongest > 5
    assert found.differing_in_any == 6 / 16
    assert found.max_over_mean == max(layer.max_over_mean for layer in found.layers.values())


def test_experts_without_phases_are_not() -> None:
    found = made(phased=False)
    assert found.differing_in_any == 0
    assert found.dead == 2
    assert found.layers["1"].max_over_mean == pytest.approx(8 / 7, abs=0.1)
    assert 0.9 < found.layers["1"].entropy < np.log(7) / np.log(8) + 1e-3
