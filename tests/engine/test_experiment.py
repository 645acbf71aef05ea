"""Control and treatment: what is random is seeded, what has an effect is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from k2lab.engine.edits import BiasExperts, SwapRouter, ZeroExperts, ZeroHeads
from k2lab.engine.experiment import NEAREST, Subject, experiment
from k2lab.engine.line import Stretch
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import watch
from k2lab.errors import InputError
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config

COUNT = 48
IDS = tuple((37 * i + 11) % 384 for i in range(COUNT))


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., K2Config], tiny_model: Callable[..., K2]) -> K2:
    return tiny_model(tiny_config(), 5)


@pytest.fixture(scope="module")
def subject(model: K2) -> Subject:
    seen: list[Any] = []
    tap = watch("layers.*.mlp.router.experts", model.config, lambda _, value: seen.append(value))
    with torch.inference_mode():
        model(torch.tensor([IDS]), model.step(COUNT, cache=None, tap=tap))
    experts = torch.stack([each[0] for each in seen], dim=1).numpy().astype(np.uint16)
    kinds = ("user",) * 8 + ("thinking",) * 20 + ("answer",) * 20
    return Subject(ids=IDS, kinds=kinds, scored=tuple(range(8, COUNT - 1)), experts=experts)


def load(subject: Subject, layer: int) -> Any:
    return np.bincount(subject.experts[:, layer - 1].ravel(), minlength=16)


def test_the_same_seed_gives_the_same_experiment(model: K2, subject: Subject) -> None:
    edits = [ZeroExperts(layer=1, experts=(3, 4))]
    first = experiment(model, subject, edits, controls=5, seed=7)
    assert experiment(model, subject, edits, controls=5, seed=7) == first
    assert experiment(model, subject, edits, controls=5, seed=8).controls != first.controls
    assert (len(first.controls), first.tokens, first.seed) == (5, COUNT - 9, 7)
    assert json.loads(json.dumps(first.to_json()))["effects"][1]["measure"] == "kl"
    assert "5 controls" in str(first)


def test_measures_are_those_of_two_plain_forwards(model: K2, subject: Subject) -> None:
    edits = [ZeroHeads(layer=1, heads=(0, 1))]
    found = {e.measure: e for e in experiment(model, subject, edits, controls=2).effects}
    with torch.inference_mode():
        tap = Surgery(edits, model.config).tap(0, None, COUNT)
        ids = torch.tensor([IDS])
        plain, other = (
            model(ids, model.step(COUNT, cache=None, tap=each))[0, 8:-1].double()
            for each in (lambda site, value: value, tap)
        )
    kl = torch.nn.functional.kl_div(
        other.log_softmax(-1), plain.log_softmax(-1), log_target=True, reduction="none"
    )
    assert found["kl"].treatment == pytest.approx(float(kl.sum(-1).mean()), rel=1e-3)
    flips = (plain.argmax(-1) != other.argmax(-1)).double().mean()
    assert found["tokens"].treatment == pytest.approx(float(flips), abs=1e-9)
    centred = [each - each.mean(-1, keepdim=True) for each in (plain, other)]
    assert found["logits"].treatment == pytest.approx(
        float((centred[0] - centred[1]).abs().mean()), rel=1e-3
    )


def test_controls_are_other_experts_of_nearly_the_same_load(model: K2, subject: Subject) -> None:
    expert = int(load(subject, 2).argmax())
    found = experiment(model, subject, [ZeroExperts(layer=2, experts=(expert,))], controls=16)
    drawn = [edits[0].experts[0] for edits in found.controls]
    assert expert not in drawn
    assert len(set(drawn)) == len(drawn) == NEAREST  # there are no more
    loads = load(subject, 2)
    distance = np.abs(loads - loads[expert])
    others = [each for each in range(16) if each not in (*drawn, expert)]
    assert max(distance[drawn]) <= min(distance[others])


def test_an_expert_that_matters_stands_out_from_its_controls(
    model: K2, subject: Subject, tiny_model: Callable[..., K2]
) -> None:
    """One expert's output made large: dropping it must do more than dropping any like it."""
    expert = int(np.sort(load(subject, 1))[-4])
    expert = int(np.flatnonzero(load(subject, 1) == expert)[0])
    loud = tiny_model(model.config, 5)
    experts = loud.store.experts

    class Louder:
        def __init__(self, batch: Any, ids: torch.Tensor) -> None:
            self.batch, self.ids = batch, ids

        def rows(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.batch.rows(x)
            return torch.where((self.ids == expert).unsqueeze(-1), rows * 12, rows)

    loud.store.experts = lambda layer, ids: (  # type: ignore[method-assign]
        Louder(experts(layer, ids), ids) if layer == 1 else experts(layer, ids)
    )
    edits = [ZeroExperts(layer=1, experts=(expert,))]
    found = {e.measure: e for e in experiment(loud, subject, edits, controls=12).effects}
    assert found["kl"].low > 0  # the interval excludes no difference
    assert found["kl"].p == pytest.approx(1 / 13)
    assert found["logits"].treatment > 2 * found["logits"].control
    same = {e.measure: e for e in experiment(model, subject, edits, controls=12).effects}
    assert same["kl"].treatment < found["kl"].treatment


def test_an_edit_that_does_nothing_has_no_effect(model: K2, subject: Subject) -> None:
    edits = [BiasExperts(layer=1, experts=(3,), amount=0.0)]
    effects = experiment(model, subject, edits, controls=3).effects
    assert all(e.treatment == e.control == e.low == e.high == 0 for e in effects)
    assert all(e.p == 1 for e in effects)


def test_the_difference_lies_in_its_interval(model: K2, subject: Subject) -> None:
    for expert in range(0, 16, 3):
        edits = [ZeroExperts(layer=2, experts=(expert,))]
        for effect in experiment(model, subject, edits, controls=12).effects[:2]:
            assert effect.difference == pytest.approx(effect.treatment - effect.control)
            assert effect.low <= effect.difference <= effect.high
            assert effect.low < effect.high


def test_what_comes_before_the_range_is_not_counted(model: K2, subject: Subject) -> None:
    edits = [ZeroExperts(layer=1, experts=(3,), tokens=(30, 40))]
    assert experiment(model, subject, edits, controls=2).tokens == COUNT - 31
    with pytest.raises(InputError, match="wrote nothing"):
        experiment(
            model, subject, [ZeroExperts(layer=1, experts=(3,), tokens=(47, 48))], controls=2
        )


def test_edits_of_the_run_itself_are_in_every_arm(model: K2, subject: Subject) -> None:
    own = replace(subject, line=(Stretch(0, (ZeroExperts(layer=1, experts=(3,)),)),))
    again = experiment(model, own, [ZeroExperts(layer=1, experts=(3,))], controls=2)
    assert all(e.treatment == 0 for e in again.effects)


def test_a_branch_s_edits_are_in_every_arm_from_its_beginning_on(
    model: K2, subject: Subject
) -> None:
    silent = ZeroHeads(layer=1, heads=(0, 1))
    own = replace(subject, line=(Stretch(0, ()), Stretch(30, (silent,))))
    late, early = (replace(silent, tokens=tokens) for tokens in ((30, COUNT), (0, 30)))
    assert all(e.treatment == 0 for e in experiment(model, own, [late], controls=1).effects)
    assert experiment(model, own, [early], controls=1).effects[1].treatment > 0


def test_ranges_count_from_the_run_s_first_token(model: K2, subject: Subject) -> None:
    later = replace(subject, first=1000)
    edit = ZeroExperts(layer=1, experts=(3,), tokens=(30, 40))
    moved = replace(edit, tokens=(1030, 1040))
    here, there = experiment(model, subject, [edit]), experiment(model, later, [moved])
    assert (here.effects, here.loads) == (there.effects, there.loads)
    assert there.edits == (moved,)  # as it was asked, to be found again
    for tokens in ((30, 40), (100, 1000)):
        with pytest.raises(InputError, match="compacted away"):
            experiment(model, later, [replace(edit, tokens=tokens)])
    reaching = replace(edit, tokens=(0, 1040))
    wanted = replace(edit, tokens=(0, 40))
    assert (
        experiment(model, later, [reaching]).effects == experiment(model, subject, [wanted]).effects
    )


def test_loads_are_told_and_that_they_are_far_apart(model: K2, subject: Subject) -> None:
    loads = load(subject, 2)
    busiest = int(loads.argmax())
    found = experiment(model, subject, [ZeroExperts(layer=2, experts=(busiest,))], controls=4)
    assert found.load == loads[busiest]
    assert found.loads == tuple(int(loads[each[0].experts[0]]) for each in found.controls)
    mean = sum(found.loads) / len(found.loads)
    assert found.load > 1.2 * mean  # so that this shows something
    told = f"Load: {found.load}, controls {mean:.1f} on average"
    assert told in str(found) and "Not equal: the edited experts are busier" in str(found)
    assert "mean control" in str(found) and found.to_json()["notes"] == list(found.notes)
    alike = replace(found, loads=(found.load,) * 4)
    assert "Load:" in str(alike) and "Not equal" not in str(alike)
    idle = replace(found, load=0, loads=(0, 0, 0, 0))
    assert "Not equal" not in str(idle)
    assert "less busy" in str(replace(found, load=0))


def test_heads_have_no_load(model: K2, subject: Subject) -> None:
    found = experiment(model, subject, [ZeroHeads(layer=1, heads=(0,))], controls=2)
    assert (found.load, found.loads) == (None, ())
    assert "Load" not in str(found) and "mean control" in str(found)


@pytest.mark.parametrize(
    ("edits", "controls", "words"),
    [
        ([], 5, "0 edits"),
        ([ZeroExperts(layer=1, experts=(1,))], 0, "0 controls"),
        ([SwapRouter(layer=1, rule="softmax")], 5, "router"),
        ([ZeroExperts(layer=1, experts=tuple(range(9)))], 5, "9 of 16"),
    ],
)
def test_experiments_without_a_control_are_refused(
    edits: Any, controls: int, words: str, model: K2, subject: Subject
) -> None:
    with pytest.raises(InputError, match=words):
        experiment(model, subject, edits, controls=controls)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 0.5}, {"controls": 2.5}])
def test_an_experiment_has_a_whole_number_of_controls_and_a_seed(
    options: Any, model: K2, subject: Subject
) -> None:
    with pytest.raises(InputError, match="a whole number from 0 as seed"):
        experiment(model, subject, [ZeroExperts(layer=1, experts=(1,))], **options)
