"""Branches: what they share with their parent, what they do not compute, where they may begin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import k2lab
from k2lab.agent.budget import Budget
from k2lab.agent.memory import Memory
from k2lab.agent.policy import allow, ask
from k2lab.agent.terms import Request
from k2lab.agent.tools import Tool, tool
from k2lab.engine.edits import RouteAround, ZeroExperts, ZeroHeads
from k2lab.engine.events import KINDS
from k2lab.engine.replay import reading
from k2lab.engine.sampling import Sampler, greedy, sampled
from k2lab.engine.surgery import Surgery
from k2lab.errors import BusyError, InputError, ToolError
from k2lab.lab import Lab
from k2lab.model.k2 import K2, Step
from k2lab.run import LabRun
from k2lab.text.template import Segment
from k2lab.trace.attention import weights
from k2lab.trace.trace import Trace

PATIENCE = 20.0
END = "<|im_end|>"


def section(*numbers: int) -> str:
    calls = "".join(
        f"<|tool_call_begin|>functions.count:{place}<|tool_call_argument_begin|>"
        f'{{"step": {number}}}<|tool_call_end|>'
        for place, number in enumerate(numbers)
    )
    return f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>"


TURNS = (
    f"<think>First I count.</think>{section(2, 3)}{END}",
    f"<think>And once more.</think>{section(5)}{END}",
    f"<think>Ähem.</think>Done.{END}",
)


class Counting(K2):
    """A network that counts the tokens it reads."""

    read = 0

    def hidden(self, ids: Tensor, step: Step) -> Tensor:
        self.read += ids.shape[1]
        return super().hidden(ids, step)


def counter() -> list[Tool]:
    """A tool that remembers what it was asked."""
    total = 0

    @tool
    def count(step: int) -> int:
        """Go on by so much."""
        nonlocal total
        total += step
        return total

    return [count]


@pytest.fixture
def lab(small_checkpoint: Path) -> Iterator[Lab]:
    opened = Lab.open(small_checkpoint)
    model = Counting(opened.config, opened.model.store)
    made = Lab("small", model, opened.tokenizer, counter)
    made.source = opened.source
    yield made
    if made.latest is not None:
        made.latest.stop()
        made.latest.wait(PATIENCE)


def ids_of(lab: Lab, text: str) -> list[int]:
    return lab.tokenizer.encode_segments([Segment(text, markers=True, kind="answer")])


def script(lab: Lab, *turns: str) -> Sampler:
    """A sampler that writes these turns, then ends every turn."""
    left = iter(ids_of(lab, "".join(turns)))
    return lambda logits: next(left, lab.tokenizer.special(END))


def ended(run: LabRun) -> LabRun:
    run.wait(PATIENCE)
    assert run.done
    assert run.error == ""
    return run


@pytest.fixture
def run(lab: Lab) -> LabRun:
    return ended(lab.run("Go.", sampler=script(lab, *TURNS)))


def found(run: LabRun, text: str, occurrence: int = 0) -> int:
    """Index of the first token of a text that is one token per character or a special one."""
    wanted, have = ids_of(run.lab, text), run.trace.ids.tolist()
    places = [i for i in range(len(have)) if have[i : i + len(wanted)] == wanted]
    return places[occurrence]


def same(trace: Trace, other: Trace, count: int) -> None:
    """The first `count` tokens are those of the other, in every column."""
    for name in ("ids", "kinds", "entropy", "logprob", "seconds", "experts", "weights", "margin"):
        mine, theirs = getattr(trace, name)[:count], getattr(other, name)[:count]
        assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f"), name
    assert trace.texts[:count] == other.texts[:count]
    assert trace.top[:count] == other.top[:count]


def test_a_branch_reads_what_is_new_and_nothing_else(lab: Lab, run: LabRun) -> None:
    at = found(run, "And once")
    lab.model.read = 0  # type: ignore[attr-defined]
    branch = ended(run.branch(at, text="Stop.", sampler=script(lab, f"</think>No.{END}")))
    new = len(branch.trace) - at
    assert lab.model.read == new  # type: ignore[attr-defined]
    assert 0 < new < at / 4  # so that this shows something
    same(branch.trace, run.trace, at)
    assert branch.trace.routed == len(branch.trace)
    assert branch.trace.answer == "No."


def test_with_nothing_given_one_token_is_read_again(lab: Lab, run: LabRun) -> None:
    at = found(run, "once")
    lab.model.read = 0  # type: ignore[attr-defined]
    rest = run.trace.text()[len("".join(run.trace.texts[:at])) :]
    again = rest.partition("<|im_system|>")[0]
    branch = ended(run.branch(at, sampler=script(lab, again, TURNS[2])))
    assert lab.model.read == len(branch.trace) - at + 1  # type: ignore[attr-defined]
    assert branch.trace.ids.tolist() == run.trace.ids.tolist()
    mine, theirs = branch.trace, run.trace
    assert np.array_equal(mine.entropy, theirs.entropy, equal_nan=True)  # the same bits
    assert np.array_equal(mine.experts, theirs.experts)
    calls = [(each.key, each.arguments, each.content, each.index) for each in mine.calls]
    assert calls == [(each.key, each.arguments, each.content, each.index) for each in theirs.calls]


def test_what_a_branch_computes_is_what_a_run_of_its_own_would(lab: Lab, run: LabRun) -> None:
    at = found(run, "once")
    branch = ended(run.branch(at, text="twice", sampler=script(lab, f"</think>So.{END}")))
    wanted = lab.logits(torch.tensor([branch.trace.ids.tolist()]))[0]
    chosen = np.flatnonzero(~np.isnan(branch.trace.logprob))
    logprobs = wanted.log_softmax(-1)[chosen - 1, branch.trace.ids[chosen].astype(np.int64)]
    np.testing.assert_allclose(branch.trace.logprob[chosen], logprobs, atol=1e-4)


def test_the_parent_is_as_it_was_after_its_branches(lab: Lab, run: LabRun) -> None:
    before = (run.trace.ids.tolist(), len(run.trace.calls), run.cache.length)  # type: ignore[union-attr]
    for text in ("maybe", "surely"):
        ended(run.branch(found(run, "once"), text=text, max_tokens=30))
    assert (run.trace.ids.tolist(), len(run.trace.calls), run.cache.length) == before  # type: ignore[union-attr]
    same(run.children[0].trace, run.children[1].trace, found(run, "once"))


def test_a_thought_goes_on_as_a_thought(lab: Lab, run: LabRun) -> None:
    at = found(run, "count")
    branch = ended(run.branch(at, text="wait", sampler=script(lab, f" longer</think>Ok.{END}")))
    trace = branch.trace
    assert trace.text("thinking") == "First I wait longer"
    assert [KINDS[k] for k in trace.kinds[at : at + 11]] == ["thinking"] * 11
    assert np.isnan(trace.entropy[at : at + 4]).all()  # given, not chosen
    assert not np.isnan(trace.entropy[at + 4 :]).any()
    assert (trace.answer, trace.calls) == ("Ok.", [])
    assert trace.stopped is not None and trace.stopped.reason == "answer"


def test_arguments_of_a_call_can_be_other_ones(lab: Lab, run: LabRun) -> None:
    at = found(run, "3}")
    tail = f"}}<|tool_call_end|><|tool_calls_section_end|>{END}"
    branch = ended(run.branch(at, text="40", sampler=script(lab, tail, TURNS[2])))
    calls = branch.trace.calls
    assert [each.arguments for each in calls] == ['{"step": 2}', '{"step": 40}']
    assert [each.content for each in calls] == ["2", "42"]  # a world of its own
    assert [each.index for each in calls] == [each.index for each in run.trace.calls[:1]] + [
        calls[1].index
    ]
    assert branch.trace.texts[calls[1].index] == "<|tool_call_end|>"
    assert branch.trace.answer == "Done."


def test_after_a_result_the_world_is_where_it_was(lab: Lab, run: LabRun) -> None:
    at = run.turns[1]
    assert run.trace.texts[at] == "<think>"
    turn = f"<think>Again.</think>{section(7)}{END}"
    branch = ended(run.branch(at, sampler=script(lab, turn, TURNS[2])))
    assert [each.content for each in run.trace.calls] == ["2", "5", "10"]
    assert [each.content for each in branch.trace.calls] == ["2", "5", "12"]
    assert [each.key for each in branch.trace.calls] == ["0.0", "0.1", "1.0"]
    assert branch.turns[:2] == run.turns[:2]
    assert len(branch.turns) == 3


def test_special_tokens_come_by_name_or_id_and_never_from_text(lab: Lab, run: LabRun) -> None:
    at, close = found(run, "count"), lab.tokenizer.special("</think>")
    by_name = ended(run.branch(at, token="</think>", sampler=script(lab, f"Hm.{END}")))
    by_id = ended(run.branch(at, token=close, sampler=script(lab, f"Hm.{END}")))
    assert by_name.trace.ids.tolist() == by_id.trace.ids.tolist()
    assert by_name.trace.answer == "Hm."
    as_text = ended(run.branch(at, text="</think>", sampler=script(lab, f"Hm.{END}")))
    assert close not in as_text.trace.ids[at : at + 8].tolist()
    assert as_text.trace.text("thinking") == "First I </think>Hm."


def test_the_end_of_a_turn_can_be_given(lab: Lab, run: LabRun) -> None:
    branch = ended(run.branch(found(run, "count"), token=END))
    assert len(branch.trace) == found(run, "count") + 1
    assert branch.trace.stopped is not None and branch.trace.stopped.reason == "answer"
    called = ended(run.branch(found(run, END, 1), token=END, sampler=script(lab, TURNS[1])))
    assert [each.content for each in called.trace.calls][:2] == ["2", "5"]


def test_half_a_character_is_finished_by_the_branch(lab: Lab, run: LabRun) -> None:
    first = found(run, "Ähem")
    second = run.trace.ids.tolist()[first + 1]
    branch = ended(run.branch(first + 1, token=second, sampler=script(lab, f"</think>Ja.{END}")))
    assert branch.trace.text("thinking").endswith("Ä")
    broken = ended(run.branch(first + 1, text="x", sampler=script(lab, f"</think>Ja.{END}")))
    assert broken.trace.text("thinking").endswith("\ufffdx")


def test_a_stopped_run_goes_on_from_where_it_was(lab: Lab) -> None:
    run = lab.run("Go.", max_tokens=400, sampler=sampled(temperature=1.0, seed=1))
    while len(run.trace) < 30 and not run.done:
        run.wait(0.01)
    run.stop()
    ended(run)
    length = len(run.trace)
    if int(run.trace.ids[-1]) in lab.config.stop_ids:
        pytest.skip("the random network ended its turn before it was stopped")
    branch = ended(run.branch(length, text="a", max_tokens=3))
    same(branch.trace, run.trace, run.trace.routed)
    assert branch.trace.ids[:length].tolist() == run.trace.ids.tolist()
    assert branch.trace.routed == len(branch.trace) == length + 4


@pytest.mark.parametrize("limit", [2, 6])
def test_a_run_that_met_its_limit_goes_on_as_if_it_had_not(limit: int, lab: Lab) -> None:
    whole = ended(lab.run("Go.", max_tokens=12))
    cut = ended(lab.run("Go.", max_tokens=limit))
    more = ended(cut.branch(len(cut.trace), max_tokens=12 - limit))
    assert more.trace.ids.tolist() == whole.trace.ids.tolist()
    assert np.array_equal(more.trace.entropy, whole.trace.entropy, equal_nan=True)


def test_captured_values_go_on_in_the_branch(lab: Lab) -> None:
    run = ended(lab.run("Go.", max_tokens=12, capture="full"))
    at = len(run.trace) - 5
    again = ended(run.branch(at, max_tokens=5))
    assert again.trace.ids.tolist() == run.trace.ids.tolist()
    for name in ("latent", "scores", "residual", "query_latent"):
        mine, theirs = (each.trace.captured.values(name, 2) for each in (again, run))
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_comparing_begins_where_the_branch_does(lab: Lab, run: LabRun) -> None:
    at = found(run, "once")
    branch = ended(run.branch(at, text="twice", sampler=script(lab, f"</think>So.{END}")))
    difference = run.compare(branch)
    assert difference.diverges == difference.shared == difference.start == at
    assert len(difference.entropy) == len(branch.trace) - at
    with lab.edit("layers.1.mlp.router", around=[0, 1]):
        edited = ended(lab.run("Go.", sampler=script(lab, *TURNS)))
    same_text = run.compare(edited)
    assert same_text.diverges is None
    assert same_text.jaccard[0] < 1  # the routing differs and the tokens do not


def test_runs_form_a_tree(lab: Lab, run: LabRun) -> None:
    at = found(run, "once")
    one = ended(run.branch(at, text="a", max_tokens=4))
    two = ended(run.branch(at, text="b", max_tokens=4))
    deeper = ended(two.branch(at + 1, text="c", max_tokens=4))
    assert run.parent is None
    assert (one.parent, two.parent, deeper.parent) == (run, run, two)
    assert run.children == [one, two]
    assert run.leaves == [one, deeper]
    assert deeper.leaves == [deeper]
    assert deeper.line == [run, two, deeper]
    assert [each.name for each in (run, one, two, deeper)] == ["run", "run.1", "run.2", "run.2.1"]
    assert "branch=run.2.1" in repr(deeper)
    assert lab.latest is deeper
    same(deeper.trace, two.trace, at + 1)


@pytest.mark.parametrize(
    "at",
    [-1, 0, 3, 10_000, 5.0, "5", None, True],
)
def test_places_outside_the_models_turns_are_refused(at: Any, run: LabRun) -> None:
    with pytest.raises(InputError, match="branch"):
        run.branch(at, text="x")
    assert run.children == []


def test_inside_a_result_and_after_the_end_there_is_no_branch(run: LabRun) -> None:
    with pytest.raises(InputError, match="tool result"):
        run.branch(found(run, "## Return") + 3, text="x")
    with pytest.raises(InputError, match="after the end"):
        run.branch(len(run.trace), text="x")
    assert (
        ended(run.branch(len(run.trace) - 1, text="!", max_tokens=3)).trace.answer[:6] == "Done.!"
    )


@pytest.mark.parametrize(
    "given",
    [
        {"token": 512},
        {"token": -1},
        {"token": 2.5},
        {"token": True},
        {"token": [5, "a"]},
        {"token": []},
        {"token": ""},
        {"token": "two"},  # three tokens of a vocabulary of bytes
        {"token": [258, 65]},  # goes on after the end of a turn
        {"text": ""},
        {"text": 5},
        {"token": 65, "text": "A"},
        {"text": "A", "max_tokens": 0},
        {"text": "A", "edits": [{"do": "zero", "layer": 0, "experts": [1]}]},
        {"text": "A", "edits": ["zero"]},
    ],
)
def test_nonsense_in_a_branch_is_refused(given: Any, run: LabRun) -> None:
    with pytest.raises(InputError):
        run.branch(found(run, "once"), **given)
    assert run.children == []
    assert ended(run.branch(found(run, "once"), token=65, max_tokens=2)).done  # nothing is stuck


def test_numbers_of_numpy_say_where_and_with_what_a_run_branches(run: LabRun) -> None:
    at = found(run, "once")
    for token in (np.uint32(65), np.array([65], np.int64)):
        branch = ended(run.branch(np.int64(at), token=token, max_tokens=2))  # type: ignore[arg-type]
        assert branch.recipe.given == (65,) and type(branch.recipe.at) is int


def test_a_run_that_goes_on_has_no_branches_yet(lab: Lab, run: LabRun) -> None:
    busy = lab.run("Go.", max_tokens=400)
    busy.pause()
    with pytest.raises(BusyError):
        busy.branch(30, text="x")
    with pytest.raises(BusyError):
        run.branch(found(run, "once"), text="x")
    with pytest.raises(BusyError):
        run.experiment([{"do": "zero", "layer": 1, "experts": [1]}])
    assert run.children == busy.children == []


def test_edits_are_those_of_the_open_blocks(lab: Lab) -> None:
    plain = ended(lab.run("Go.", max_tokens=6))
    with lab.edit("layers.1.mlp.router", ablate=[0, 1, 2]):
        with lab.edit({"do": "zero_heads", "layer": 0, "heads": [1]}):
            inner = ended(lab.run("Go.", max_tokens=6))
        outer = ended(lab.run("Go.", max_tokens=6))
    after = ended(lab.run("Go.", max_tokens=6))
    zero = ZeroExperts(layer=1, experts=(0, 1, 2))
    assert outer.recipe.edits == (zero,)
    assert inner.recipe.edits == (zero, ZeroHeads(layer=0, heads=(1,)))
    assert after.recipe.edits == plain.recipe.edits == lab.edits == ()
    entropies = [np.nan_to_num(each.trace.entropy[-6:]) for each in (plain, outer, inner, after)]
    assert np.array_equal(entropies[0], entropies[3])
    assert not np.allclose(entropies[0][:1], entropies[1][:1], atol=1e-7)
    assert not np.allclose(entropies[1][:1], entropies[2][:1], atol=1e-7)


def test_a_block_that_fails_leaves_no_edit_behind(lab: Lab) -> None:
    with pytest.raises(ZeroDivisionError), lab.edit("layers.1.mlp.router", ablate=[0]):
        raise ZeroDivisionError
    record = {"do": "zero", "layer": 1, "experts": [0]}
    for edits, how in (
        (["layers.1.mlp.router"], {"ablate": [99]}),
        ([record], {"segment": "thinking"}),
        ([record, "layers.1.mlp.router"], {}),
        ([], {}),
        ([], {"ablate": [1]}),
    ):
        with pytest.raises(InputError), lab.edit(*edits, **how):
            raise AssertionError("not reached")
    with (
        lab.edit("layers.1.mlp.router", force=[0, 1]),
        pytest.raises(InputError, match="Forcing"),
        lab.edit("layers.1.mlp.router", force=[2]),  # together more than a token is sent to
    ):
        raise AssertionError("not reached")
    assert lab.edits == ()


def test_logits_and_plain_continuations_are_edited_too(lab: Lab) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = lab.logits(ids)
    with lab.edit("layers.*.mlp.router", rule="softmax"):
        edited = lab.logits(ids)
        events = list(lab.generate([5, 6, 7, 8], max_tokens=1))
    assert not torch.equal(edited, plain)
    assert torch.equal(lab.logits(ids), plain)
    assert events[2].logprob == pytest.approx(  # type: ignore[union-attr]
        float(edited[0, -1].log_softmax(-1).max()), abs=1e-5
    )
    with (
        pytest.raises(InputError, match="thinking"),
        lab.edit("layers.1.mlp.router", ablate=[0], segment="thinking"),
    ):
        lab.logits(ids)


def test_an_edit_of_thinking_waits_for_the_thought(lab: Lab, run: LabRun) -> None:
    edit = {"do": "force", "layer": 2, "experts": [5], "segment": "thinking"}
    with lab.edit(edit):
        edited = ended(lab.run("Go.", sampler=script(lab, *TURNS)))
    thinking = np.flatnonzero(edited.trace.mask("thinking"))
    assert (edited.trace.experts[thinking, 1] == 5).any(-1).all()
    first = thinking[0]
    assert np.array_equal(edited.trace.experts[:first], run.trace.experts[:first])
    others = np.setdiff1d(np.arange(len(edited.trace)), thinking)
    assert not (edited.trace.experts[others, 1] == 5).any(-1).all()


def test_a_branch_inherits_edits_unless_it_is_given_its_own(lab: Lab) -> None:
    plain = ended(lab.run("Go.", max_tokens=8))
    favourite = int(np.bincount(plain.trace.experts[:, 0].ravel()).argmax())
    around = RouteAround(layer=1, experts=(favourite,))
    with lab.edit(around):
        run = ended(lab.run("Go.", max_tokens=8))
        at = len(run.trace) - 4
        inside = ended(run.branch(at, text="x", max_tokens=2))
    outside = ended(run.branch(at, text="x", max_tokens=2))
    bare = ended(run.branch(at, text="x", max_tokens=2, edits=[]))
    assert inside.recipe.edits == outside.recipe.edits == (around,)  # once, not twice
    assert bare.recipe.edits == ()
    assert not (outside.trace.experts[:, 0] == favourite).any()
    assert (bare.trace.experts[at:, 0] == favourite).any()


def test_what_a_token_that_is_read_again_does_is_recorded_anew(lab: Lab) -> None:
    root = ended(lab.run("Go.", sampler=script(lab, *TURNS), capture="full"))
    at = found(root, "And once")
    first, second = root.trace.experts[at - 1, :, 0].tolist()
    around = [RouteAround(layer=1, experts=(first,)), RouteAround(layer=2, experts=(second,))]
    branch = ended(root.branch(at, edits=around, sampler=script(lab, *TURNS[1:])))
    assert not {first} & {*branch.trace.experts[at - 1, 0].tolist()}
    assert not {second} & {*branch.trace.experts[at - 1, 1].tolist()}
    assert (branch.trace.experts[: at - 1] == root.trace.experts[: at - 1]).all()
    kinds = [KINDS[code] for code in branch.trace.kinds[:at].tolist()]
    tap = branch.surgery().tap(0, kinds, at)
    computed = reading(lab.model, branch.trace.ids[:at].tolist(), 2, tap).weights
    assert np.allclose(weights(branch.trace, 2, at - 1), computed, atol=1e-5)
    assert not np.allclose(weights(root.trace, 2, at - 1), computed, atol=1e-5)


def test_a_branch_draws_from_the_seed_on(lab: Lab) -> None:
    run = ended(lab.run("Go.", max_tokens=20, sampler=sampled(temperature=2.0, seed=4)))
    at = run.turns[0] + 3
    if at >= len(run.trace):
        pytest.skip("the random network ended its turn at once")
    one, two = (ended(run.branch(at, text="x", max_tokens=10)) for _ in range(2))
    other = ended(run.branch(at, text="x", max_tokens=10, sampler=sampled(temperature=2.0, seed=5)))
    assert one.trace.ids.tolist() == two.trace.ids.tolist()
    assert other.trace.ids.tolist() != one.trace.ids.tolist()


class Told:
    """A sampler that ends every turn, and is told in which one it goes on."""

    def __init__(self, end: int) -> None:
        self.end, self.turn = end, tuple[int, ...]()

    def within(self, turn: tuple[int, ...]) -> "Told":
        self.turn = turn
        return self

    def __call__(self, logits: Tensor) -> int:
        return self.end


def test_a_branch_tells_its_sampler_what_stands_in_the_turn(lab: Lab, run: LabRun) -> None:
    at, told = found(run, '": 3'), Told(lab.tokenizer.special(END))  # inside a call's arguments
    ended(run.branch(at, text='": ', sampler=told))
    assert [*told.turn] == [*run.trace.ids[run.turns[0] : at].tolist(), *ids_of(lab, '": ')]


def test_an_experiment_is_of_what_the_model_wrote(lab: Lab, run: LabRun) -> None:
    result = run.experiment([{"do": "zero", "layer": 1, "experts": [1]}], controls=3)
    written = int((~np.isnan(run.trace.entropy)).sum())
    assert result.tokens == written
    assert len(result.controls) == 3
    again = run.experiment([ZeroExperts(layer=1, experts=(1,))], controls=3)
    assert again == result


def gap(run: LabRun, surgery: Surgery) -> float:
    """Between the recorded log-probabilities and those of the last context read at once."""
    trace, model, first = run.trace, run.lab.model, run.trace.contexts[-1].start
    ids = torch.tensor([trace.ids[first:].tolist()])
    kinds = [KINDS[code] for code in trace.kinds[first:].tolist()]
    with torch.inference_mode():
        tap = surgery.tap(first, kinds, len(kinds))
        logs = model(ids, model.step(len(kinds), cache=None, tap=tap))[0].float().log_softmax(-1)
    chosen = np.flatnonzero(~np.isnan(trace.logprob[first:]))
    recorded = torch.tensor(trace.logprob[first:][chosen])
    return float((logs[chosen - 1, ids[0, chosen]] - recorded).abs().max())


SILENT = {"do": "zero_heads", "layer": 0, "heads": [0]}


def test_each_token_was_read_under_the_edits_of_its_own_run(lab: Lab) -> None:
    with lab.edit("layers.1.mlp.router", ablate=[0, 1, 2]):
        root = ended(lab.run("Go.", sampler=script(lab, *TURNS)))
    at = found(root, "And once")
    child = ended(root.branch(at, edits=[SILENT], sampler=script(lab, *TURNS[1:])))
    bare = ended(child.branch(found(child, "Ähem"), edits=[], sampler=script(lab, TURNS[2])))
    stop = script(lab, f"</think>No.{END}")
    before = ended(child.branch(found(child, "First I"), text="Hm", edits=[SILENT], sampler=stop))
    for each in (root, child, bare, before):
        assert gap(each, each.surgery()) < 1e-5
    for each in (child, bare, before):  # so that this shows something
        assert gap(each, Surgery(each.recipe.edits, lab.config)) > 1e-4


def compacted(lab: Lab) -> LabRun:
    """A run that forgot its first context."""

    @tool(effect="reads")
    def count(step: int) -> str:
        """A long result."""
        return f"{step} " * 150

    turns = [f"<think>{n}.</think>{section(n)}{END}" for n in range(5)]
    given = {"tools": [count], "sampler": script(lab, *turns, TURNS[2])}
    return ended(lab.run("Go.", max_tokens=5000, budget=Budget(context=1000), **given))


def test_what_is_remembered_again_is_so_under_the_edits_it_was_read_under(lab: Lab) -> None:
    """The parent forgot the branch's context since, so that its tokens are read once more."""
    run = compacted(lab)
    second = run.trace.contexts[1].start
    at = max(turn for turn in run.turns if turn < second) + 2
    sampler = script(lab, f"</think>No.{END}")
    branch = ended(run.branch(at, text="x", edits=[SILENT], sampler=sampler))
    assert branch.trace.contexts[-1].start < at < second <= run.trace.contexts[-1].start
    assert gap(branch, branch.surgery()) < 1e-5
    assert gap(branch, Surgery(branch.recipe.edits, lab.config)) > 1e-4


def test_an_experiment_counts_tokens_as_the_run_does(lab: Lab) -> None:
    run = compacted(lab)
    first, length = run.trace.contexts[-1].start, len(run.trace)
    whole, last = (
        run.experiment([edit], controls=1)
        for edit in (SILENT, {**SILENT, "tokens": [first, length]})
    )
    assert whole.effects == last.effects and whole.tokens == last.tokens
    with pytest.raises(InputError, match="compacted away"):
        run.experiment([{**SILENT, "tokens": [0, first]}], controls=1)


def test_an_experiment_with_a_branch_has_its_edits_from_its_beginning_on(
    lab: Lab, run: LabRun
) -> None:
    at, sampler = found(run, "And once"), script(lab, *TURNS[1:])
    child = ended(run.branch(at, text="x", edits=[SILENT], sampler=sampler))
    late, early = (
        child.experiment([{**SILENT, "tokens": part}], controls=1).effects
        for part in ([at, len(child.trace)], [0, at])
    )
    assert all(each.treatment == 0 for each in late)  # the branch has this edit already
    assert early[0].treatment > 0


def test_an_experiment_with_a_run_that_has_a_tap_is_refused(lab: Lab) -> None:
    seen: list[str] = []

    def tap(site: str, value: Any) -> Any:
        seen.append(site)
        return value

    run = ended(lab.run("Go.", max_tokens=4, tap=tap))
    for each in (run, ended(run.branch(run.turns[0] + 1, max_tokens=2))):
        count = len(seen)
        with pytest.raises(InputError, match="a tap of its own"):
            each.experiment([{"do": "zero", "layer": 1, "experts": [1]}], controls=1)
        assert len(seen) == count


def test_code_makes_the_same_run_again(small_checkpoint: Path) -> None:
    """The cell alone, in an empty namespace: root with edits and a seed, branch, branch of it."""
    lab = k2lab.load(small_checkpoint)
    sampler = sampled(temperature=1.5, top_k=50, seed=11)
    with lab.edit("layers.1.mlp.router", ablate=[2], bias={4: 0.25}, segment="thinking"):
        run = ended(lab.run("Go\n'on'.", sampler=sampler, max_tokens=40))
    at = run.turns[0] + 2
    branch = ended(run.branch(at, text='Hm, "no"', max_tokens=30))
    leaf = ended(
        branch.branch(
            at + 4, token="<think>", max_tokens=20, sampler=greedy,
            edits=[{"do": "zero_heads", "layer": 1, "heads": [0], "tokens": [at, at + 9]}],
        )
    )  # fmt: skip
    for made in (run, branch, leaf):
        again = executed(made.code())
        assert len(made.trace) > at
        assert again.trace.ids.tolist() == made.trace.ids.tolist()
        assert np.array_equal(again.trace.logprob, made.trace.logprob, equal_nan=True)
        assert np.array_equal(again.trace.entropy, made.trace.entropy, equal_nan=True)
        assert again.trace.top == made.trace.top
        assert np.array_equal(again.trace.experts, made.trace.experts)
        assert again.recipe.edits == made.recipe.edits


def test_code_of_a_stopped_run_stops_there_too(small_checkpoint: Path) -> None:
    lab = k2lab.load(small_checkpoint)
    run = lab.run("Go.", max_tokens=2000)
    while len(run.trace) < 40 and not run.done:
        run.wait(0.01)
    run.stop()
    ended(run)
    again = executed(run.code())
    assert again.trace.ids.tolist() == run.trace.ids.tolist()


def executed(code: str) -> LabRun:
    """What the last line of the cell shows."""
    *body, last = code.rstrip().splitlines()
    space: dict[str, Any] = {}
    exec(compile("\n".join(body), "<cell>", "exec"), space)
    return ended(eval(last, space))


def test_what_cannot_be_written_as_code_is_told(lab: Lab, run: LabRun) -> None:
    with pytest.raises(InputError, match="sampler"):
        run.code()
    with pytest.raises(InputError, match="tap"):
        ended(lab.run("Go.", max_tokens=2, tap=lambda site, value: value)).code()
    made = Lab("memory", lab.model, lab.tokenizer, tuple)
    with pytest.raises(InputError, match="memory"):
        ended(made.run("Go.", max_tokens=2)).code()


def test_the_shipped_model_branches_too() -> None:
    lab = k2lab.load()
    run = ended(lab.run("What is 3 * 14?"))
    at = int(np.flatnonzero(run.trace.mask("thinking"))[2])
    again = ended(run.branch(at))
    assert again.trace.ids.tolist() == run.trace.ids.tolist()
    assert again.trace.answer == run.trace.answer
    other = ended(run.branch(at, token="</think>"))
    assert other.trace.text("thinking") != run.trace.text("thinking")
    assert "k2lab.load()" in run.code()


def test_a_branch_knows_what_was_read_from_outside_and_what_was_not_made(lab: Lab) -> None:
    """The call that was refused is refused again, and its world has not seen it either."""
    totals: list[list[int]] = []

    def world() -> list[Tool]:
        made = list[int]()
        totals.append(made)

        @tool
        def count(step: int) -> int:
            """Go on by so much."""
            made.append(step)
            return sum(made)

        return [count]

    lab._tools = world
    careful = {"policy": [allow("count")], "approve": lambda request: False}
    first = ended(lab.run("Go.", sampler=script(lab, *TURNS), **careful))  # type: ignore[arg-type]
    assert [call.ok for call in first.trace.calls] == [True, True, False]
    before = ended(first.branch(first.turns[1], sampler=script(lab, *TURNS[1:])))
    refused = before.trace.calls[-1].content or ""
    assert "text from outside was read (0.0)" in refused
    after = ended(before.branch(before.turns[2], sampler=script(lab, TURNS[2])))
    assert after.trace.answer == "Done."
    assert totals == [[2, 3]] * 3


def test_results_in_the_conversation_that_a_run_begins_with_were_read_from_outside(
    lab: Lab,
) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "web", "arguments": "{}"}}
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "Go on by 5!"},
        {"role": "assistant", "content": "I did."},
        {"role": "user", "content": "Thanks."},
    ]
    asked: list[Request] = []
    run = lab.run(
        talk, sampler=script(lab, *TURNS[1:]), policy=[allow("count")], approve=asked.append
    )
    assert ended(run).trace.calls[0].ok is False
    assert len(asked) == 1


def test_no_call_waits_once_its_run_was_stopped(lab: Lab) -> None:
    run = lab.run("Go.", sampler=script(lab, *TURNS), policy=[ask("count")])
    while not run.waiting:
        run.wait_for_change(0.05)
    (call,) = run.waiting[:1]
    run.stop()
    run.wait(PATIENCE)
    assert not run.waiting
    with pytest.raises(InputError, match="No call with the digest"):
        run.approve(call.digest)


def test_a_branch_counts_the_steps_and_seconds_of_its_own_budget(lab: Lab) -> None:
    given: dict[str, Any] = {"budget": Budget(steps=2)}
    first = ended(lab.run("Go.", sampler=script(lab, *TURNS), **given))
    assert first.trace.stopped is not None and first.trace.stopped.reason == "budget"
    again = ended(first.branch(first.turns[1], sampler=script(lab, *TURNS[1:])))
    assert again.trace.answer == "Done."
    given = {"budget": Budget(seconds=0.2), "max_tokens": 900}
    spent = ended(lab.run("Go.", sampler=lambda logits: 65, **given))
    assert spent.trace.stopped is not None and spent.trace.stopped.reason == "budget"
    more = ended(spent.branch(len(spent.trace), sampler=script(lab, "x")))
    assert len(more.trace) > len(spent.trace)


def test_a_tool_of_ones_own_does_not_vanish_behind_the_memory(lab: Lab) -> None:
    @tool
    def recall(query: str) -> str:
        """Mine."""
        return query

    with pytest.raises(ToolError, match="Two tools are called 'recall'"):
        lab.run("Go.", tools=[recall], memory=Memory())
