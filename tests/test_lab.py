"""The lab: one object around a checkpoint, with errors at its border."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import k2lab
from k2lab.agent.tools import tool
from k2lab.engine import capture
from k2lab.engine.events import Answered, Event, PromptRead, Routed, Stopped, TokenChosen
from k2lab.engine.sampling import greedy, sampled
from k2lab.engine.taps import edit, untouched
from k2lab.errors import BusyError, ContextError, InputError, MissingError
from k2lab.lab import Lab
from k2lab.model.k2 import K2
from k2lab.spec.config import K2_NANO, K2Config

PATIENCE = 20.0


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: Callable[..., K2Config],
    random_checkpoint: Callable[[Path, K2Config, int], Path],
) -> Path:
    config = tiny_config(quantization_config=K2_NANO.quantization_config, dtype="bfloat16")
    return random_checkpoint(tmp_path_factory.mktemp("lab"), config, 9)


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    made = k2lab.load(folder)
    yield made
    if made.latest is not None:
        made.latest.stop()
        made.latest.wait(PATIENCE)


def test_a_folder_becomes_a_lab(lab: Lab, folder: Path) -> None:
    assert lab.name == "K2-nano"  # as its tokenizer_config.json says
    assert lab.config == K2Config.from_json(folder)
    assert repr(lab) == "Lab(K2-nano, layers=3, experts=4/16)"
    assert lab.tools  # those of the microworld
    assert (lab.about.layers, lab.about.dense_layers, lab.about.experts) == (3, 1, 16)


def test_a_folder_without_habits_is_named_after_itself(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "my-model"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    file = target / "tokenizer_config.json"
    entries = json.loads(file.read_text())
    del entries["k2lab"]
    file.write_text(json.dumps(entries))
    lab = Lab.open(target)
    assert (lab.name, lab.tools) == ("my-model", ())


def test_logits_are_the_full_forward_in_float32(lab: Lab) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits = lab.logits(ids)
    assert logits.shape == (2, 3, 640)
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        wanted = lab.model(ids, lab.model.step(3, cache=None, tap=untouched))
    assert torch.equal(logits, wanted)
    assert torch.equal(lab.logits(ids.int()), logits)


def test_logits_and_runs_do_not_meet_in_a_store_that_moves_weights(folder: Path) -> None:
    lab, ids = k2lab.load(folder, "tiered", device_budget="1MiB"), torch.tensor([[1, 2, 3, 4]])
    with lab.alone(), pytest.raises(BusyError):
        lab.logits(ids)
    lab.logits(ids)
    moves = lab.run("Go.", max_tokens=2).wait(PATIENCE).trace.moved
    each = lab.config.num_experts_per_tok
    assert moves and all((m.hits + m.misses == m.tokens * each).all() for m in moves)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 2]], r"\[batch, seq\]"),
        (torch.tensor([1, 2]), r"\[batch, seq\]"),
        (torch.tensor([[1.0]]), r"torch\.float32"),
        (torch.tensor([[1, 640]]), "0 to 639"),
        (torch.tensor([[-1]]), "-1"),
        (torch.zeros(1, 0, dtype=torch.long), "no tokens"),
        (torch.zeros(0, 3, dtype=torch.long), "no tokens"),
    ],
)
def test_logits_refuse_what_are_not_ids(ids: Any, words: str, lab: Lab) -> None:
    with pytest.raises(InputError, match=words):
        lab.logits(ids)


def test_a_prompt_too_long_is_a_context_error(lab: Lab) -> None:
    with pytest.raises(ContextError, match="512"):
        lab.logits(torch.ones(1, 513, dtype=torch.long))
    with pytest.raises(ContextError, match="512"):
        list(lab.generate([1] * 512))
    with pytest.raises(ContextError, match="512"):
        list(lab.events("word " * 600))
    run = lab.run("word " * 600).wait(PATIENCE)
    assert run.state == "error"
    assert "ContextError" in run.error


@pytest.mark.parametrize("bad", [[], [640], [-5]])
def test_generation_refuses_bad_ids_at_once(bad: list[int], lab: Lab) -> None:
    with pytest.raises(InputError):
        lab.generate(bad)


@pytest.mark.parametrize("bad", ["What is 1 + 1?", [1.5], torch.tensor([0.5]), [None]])
def test_generation_refuses_what_are_no_ids(bad: Any, lab: Lab) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        lab.generate(bad)


@pytest.mark.parametrize(
    ("conversation", "options", "words"),
    [
        (None, {}, "The conversation is None"),
        (b"Hello", {}, "The conversation is b'Hello'"),
        ("Hello", {"max_tokens": 0}, "max_tokens is 0"),
        ("Hello", {"max_tokens": -3}, "max_tokens is -3"),
        ("Hello", {"max_tokens": 1.5}, "max_tokens is 1.5"),
        ("Hello", {"sampler": "greedy"}, "The sampler is 'greedy'"),
        ("Hello", {"tap": 3}, "The tap is 3"),
        ("Hello", {"tools": [len]}, "One of the tools is <built-in function len>.*@tool"),
        ("Hello", {"temperature": 1.0}, "no option 'temperature'.*sampled"),
        ("Hello", {"polcy": ()}, "Write 'policy'"),
        ("Hello", {"budget": 100}, "The budget is 100.*Budget"),
        ("Hello", {"budget": 0}, "The budget is 0"),
        ("Hello", {"policy": ["deny"]}, "have policy of another kind"),
        ("Hello", {"policy": 5, "mandate": 5}, "policy and mandate of another kind"),
        ("Hello", {"approve": "yes"}, "approve of another kind"),
        ("Hello", {"journal": 5, "memory": "x"}, "journal and memory of another kind"),
        ("Hello", {"secrets": [1]}, "secrets of another kind"),
        ("Hello", {"secrets": "one"}, "secrets of another kind"),
    ],
)
def test_what_a_run_cannot_be_made_of_is_named_at_once(
    conversation: Any, options: dict[str, Any], words: str, lab: Lab
) -> None:
    for start in (lab.run, lab.events):
        with pytest.raises(InputError, match=words):
            start(conversation, **options)


def test_what_is_no_run_no_workflow_or_no_tool_is_not_taken_for_one(lab: Lab) -> None:
    with pytest.raises(InputError, match="workflow that is None"):
        lab.watch(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="One of the tools is 5"):
        lab.guide(tools=[5])  # type: ignore[list-item]
    with pytest.raises(InputError, match="nothing to show of None"):
        lab.show(None)  # type: ignore[arg-type]


def tokens(events: Iterator[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, TokenChosen)]


def test_generate_continues_greedily_from_ids_or_a_tensor(lab: Lab) -> None:
    first = tokens(lab.generate([5, 6, 7], max_tokens=6))
    assert first == tokens(lab.generate(torch.tensor([[5, 6, 7]]), max_tokens=6))
    assert first[0] == int(lab.logits(torch.tensor([[5, 6, 7]]))[0, -1].argmax())


def test_generate_takes_a_sampler_and_a_tap(lab: Lab) -> None:
    plain = tokens(lab.generate([5, 6, 7], max_tokens=8))
    hot = tokens(lab.generate([5, 6, 7], max_tokens=8, sampler=sampled(temperature=5.0, seed=1)))
    assert hot != plain
    tap = edit("layers.1.mlp.output", lab.config, torch.zeros_like)
    assert tokens(lab.generate([5, 6, 7], max_tokens=8, tap=tap)) != plain
    assert tokens(lab.generate([5, 6, 7], max_tokens=8)) == plain  # nothing stays behind


def test_a_run_and_the_same_events_agree(lab: Lab) -> None:
    events = list(lab.events("What is 3 * 14?", max_tokens=12))
    run = lab.run("What is 3 * 14?", max_tokens=12).wait(PATIENCE)
    assert run.state == "done"
    given = sum(len(event.ids) for event in events if isinstance(event, PromptRead))
    assert len(run.trace) == given + len(tokens(iter(events)))
    ids = [i for e in events if isinstance(e, PromptRead) for i in e.ids]
    assert run.trace.ids.tolist() == [*ids, *tokens(iter(events))]
    last = events[-1]
    assert isinstance(last, Stopped)
    assert run.trace.stopped.reason == last.reason
    routed = [event for event in events if isinstance(event, Routed)]
    assert sum(len(event.experts) for event in routed) == len(run.trace)
    assert any(isinstance(event, Answered) for event in events)


def test_a_question_is_a_user_message(lab: Lab) -> None:
    as_text = list(lab.events("Hi", max_tokens=2))
    as_messages = list(lab.events([{"role": "user", "content": "Hi"}], max_tokens=2))
    assert isinstance(as_text[0], PromptRead)
    assert isinstance(as_messages[0], PromptRead)
    assert as_text[0].ids == as_messages[0].ids


def test_greedy_is_the_habit_of_this_checkpoint(lab: Lab) -> None:
    assert lab._settings(None, 5, untouched).sampler is greedy


def test_one_run_at_a_time(lab: Lab) -> None:
    gate = threading.Event()

    def wait(site: str, value: Tensor) -> Tensor:
        assert gate.wait(PATIENCE)
        return value

    run = lab.run("Hello", max_tokens=3, tap=wait)
    for second in (
        lambda: lab.run("Again"),
        lambda: next(lab.events("Again")),
        lambda: next(lab.generate([1])),
    ):
        with pytest.raises(BusyError):
            second()
    assert lab.latest is run
    gate.set()
    run.wait(PATIENCE)
    assert lab.run("Again", max_tokens=2).wait(PATIENCE).state == "done"


def test_events_left_early_free_the_engine(lab: Lab) -> None:
    events = lab.events("Hello")
    next(events)
    events.close()
    assert lab.run("Hello", max_tokens=2).wait(PATIENCE).state == "done"


def test_stop_keeps_what_was_written(lab: Lab) -> None:
    run = lab.run("Hello", max_tokens=400)
    while len(run.trace) < 10 and not run.done:
        run.wait(0.01)
    run.stop()
    run.wait(PATIENCE)
    assert run.state in ("stopped", "done")
    assert len(run.trace) >= 10
    assert "Run(K2-nano, tokens=" in repr(run)


def test_a_stop_at_a_token_leaves_none_that_was_read_without_its_routes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "HELD_SECONDS", 1e9)  # as on a quick model, between two frames
    chosen = list[int]()

    def write(logits: Tensor) -> int:
        chosen.append(65)
        if len(chosen) == 7:
            assert lab.lock.held
            stop.set()
            assert stopped.wait(PATIENCE)
        return 65

    stop, stopped = threading.Event(), threading.Event()
    run = lab.run("Hello", sampler=write, max_tokens=400)
    assert stop.wait(PATIENCE)
    run.stop()
    stopped.set()
    run.wait(PATIENCE)
    assert (run.state, len(chosen)) == ("stopped", 7)
    assert run.trace.routed == len(run.trace) - 1, "the last one is not read"
    assert not lab.lock.held


def test_own_tools_replace_those_of_the_world(lab: Lab) -> None:
    @tool
    def look() -> str:
        """Look."""
        return "a door"

    run = lab.run("Hello", tools=[look], max_tokens=2).wait(PATIENCE)
    assert run.state == "done"


def test_the_engine_takes_a_store_of_ones_own(folder: Path, tiny_model: Callable[..., K2]) -> None:
    config = K2Config.from_json(folder)
    store = tiny_model(config, 9).store
    mine = k2lab.load(folder, store)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(mine.logits(ids), k2lab.load(folder).logits(ids))


def test_a_lab_of_shapes_alone_says_that_it_cannot_answer(folder: Path) -> None:
    lab = k2lab.load(folder, "meta")
    assert lab.config == K2Config.from_json(folder)
    for ask in (lab.run, lab.events, lambda text: next(lab.generate([1]))):
        with pytest.raises(InputError, match="shapes without numbers"):
            ask("Go.")
    assert lab.logits(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, lab.config.vocab_size)


def test_without_a_path_the_shipped_nano_is_loaded_or_its_absence_told() -> None:
    try:
        lab = k2lab.load()
    except MissingError as error:
        pytest.skip(f"K2-nano is not in this checkout: {error.found}")
    assert lab.name == "K2-nano"
    assert lab.config == K2_NANO
