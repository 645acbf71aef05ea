"""Rules of a lab's run: policies, approvals, mandates, a journal, and going on with it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import k2lab
from k2lab.agent.budget import Budget
from k2lab.agent.calling import cancellation
from k2lab.agent.journal import Journal, read, verify
from k2lab.agent.keys import Key
from k2lab.agent.mandate import Mandate
from k2lab.agent.memory import Memory
from k2lab.agent.policy import allow, allow_reading, deny
from k2lab.agent.resume import UNKNOWN
from k2lab.agent.tools import Tool, tool
from k2lab.engine import capture
from k2lab.engine.events import ApprovalGiven, Stopped, ToolAnswered
from k2lab.engine.sampling import Sampler, anew, at, sampled, state_of
from k2lab.engine.session import Halted
from k2lab.engine.taps import edit, untouched
from k2lab.errors import BusyError, InputError, JournalError, MissingError
from k2lab.evals.puppet import calls
from k2lab.lab import Lab
from k2lab.rules import Approve, digest_of
from k2lab.run import LabRun
from k2lab.text.template import Segment

PATIENCE = 20.0
END = "<|im_end|>"


def section(name: str, arguments: str, number: int = 0) -> str:
    return calls((name, str(number), arguments)) + END


def adding(n: int, number: int = 0) -> str:
    return section("add", f'{{"n": {n}}}', number)


TURNS = (f"<think>Now.</think>{adding(2)}", f"<think>So.</think>Done.{END}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def lab(small_checkpoint: Path) -> Iterator[Lab]:
    made = Lab.open(small_checkpoint)
    yield made
    if made.latest is not None:
        made.latest.stop()
        made.latest.wait(PATIENCE)


def script(lab: Lab, *turns: str) -> Sampler:
    segments = [Segment("".join(turns), markers=True, kind="answer")]
    left = iter(lab.tokenizer.encode_segments(segments))
    return lambda logits: next(left, lab.tokenizer.special(END))


def adder(total: list[int]) -> Tool:
    @tool
    def add(n: int) -> int:
        """Add a number."""
        total.append(n)
        return sum(total)

    return add


def ended(run: LabRun) -> LabRun:
    run.wait(PATIENCE)
    assert run.done and run.error == ""
    return run


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_denied_call_is_not_made_and_the_run_goes_on(lab: Lab) -> None:
    total = list[int]()
    run = ended(lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), policy=deny("*")))
    assert not total
    assert run.trace.calls[0].content == "error: not allowed: the policy deny *"
    assert run.trace.answer == "Done."


def test_a_call_waits_for_the_person_and_for_this_call_alone(lab: Lab) -> None:
    total = list[int]()
    run = lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), policy=allow_reading)
    until(lambda: run.waiting)
    (waiting,) = run.waiting
    assert (waiting.tool.name, waiting.canonical, total) == ("add", '{"n":2}', [])
    with pytest.raises(InputError, match="No call with the digest"):
        run.approve("0" * 64)
    run.approve()
    ended(run)
    assert total == [2] and not run.waiting
    with pytest.raises(InputError, match="0 calls wait"):
        run.approve()


def test_the_page_shows_what_waits_and_a_word_there_lets_it_go_on(lab: Lab, tmp_path: Path) -> None:
    total = list[int]()
    run = lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), policy=[])
    until(lambda: run.waiting)
    (call,) = run.trace.calls
    assert (call.approval, call.digest) == ("waiting", run.waiting[0].digest)
    assert (call.shown, call.why) == ('{"n":2}', "no policy decides about it")
    sent: list[dict] = []
    run.store.send = lambda message, *_: sent.append(message)  # type: ignore[method-assign]
    for wrong in ("0" * 64, None):
        run.store._on_message(None, {"type": "approve", "digest": wrong, "allowed": True}, [])
        until(lambda: any("No call with the digest" in each.get("error", "") for each in sent))
        sent.clear()
    message = {"type": "approve", "digest": call.digest, "allowed": True}
    run.store._on_message(None, message, [])
    ended(run)
    assert total == [2] and run.trace.calls[0].approval == "allowed"
    opened = k2lab.open(run.trace.save(tmp_path / "x.k2trace"))
    assert opened.calls == run.trace.calls
    hidden = k2lab.open(run.trace.save(tmp_path / "y.k2trace", redact=True)).calls[0]
    assert (hidden.approval, hidden.shown, hidden.why) == ("allowed", "", "")


def test_only_true_in_the_page_is_a_yes(lab: Lab) -> None:
    total = list[int]()
    run = lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), policy=[])
    until(lambda: run.waiting)
    message = {"type": "approve", "digest": run.waiting[0].digest, "allowed": "yes"}
    run.store._on_message(None, message, [])
    ended(run)
    assert not total and run.trace.calls[0].approval == "refused"


def test_a_refused_call_is_not_made(lab: Lab) -> None:
    total = list[int]()
    run = lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), policy=[])
    until(lambda: run.waiting)
    run.refuse()
    ended(run)
    assert not total and run.trace.calls[0].ok is False


def test_stop_ends_the_waiting_for_a_person(lab: Lab) -> None:
    run = lab.run("Go.", tools=[adder([])], sampler=script(lab, *TURNS), policy=[])
    until(lambda: run.waiting)
    began = time.perf_counter()
    run.stop()
    run.wait(PATIENCE)
    assert run.state == "stopped" and time.perf_counter() - began < 0.3
    assert run.trace.calls[0].approval == "undecided"  # so that no card offers what is too late


def test_a_function_may_stand_for_the_person(lab: Lab) -> None:
    for says, made in ((True, [2]), (False, []), ("yes", [])):  # only True is a yes
        total = list[int]()
        options = {"policy": [], "approve": lambda request, says=says: says}
        ended(lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), **options))
        assert total == made


def test_a_mandate_of_this_person_covers_its_calls_in_one_run(lab: Lab) -> None:
    schema = {"properties": {"n": {"maximum": 2}}}
    signed = Mandate.sign({"add": schema}, Key.own())
    strange = Mandate.sign({"add": schema}, Key.fresh())
    for mandate, made in ((signed, [2]), (signed, []), (strange, [])):
        total, options = list[int](), {"mandate": mandate, "approve": lambda request: False}
        ended(lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), **options))
        assert total == made


def test_a_journal_is_written_and_verifies(lab: Lab, tmp_path: Path) -> None:
    path, sampler = tmp_path / "run.journal", script(lab, *TURNS)
    ended(lab.run("It is tiddlywinks.", tools=[adder([])], sampler=sampler, journal=path,
                  secrets=["tiddlywinks"]))  # fmt: skip
    verdict = verify(path, trusted=[Key.own().public])
    assert verdict.whole and verdict.known_signer and verdict.ended == "answer"
    assert b"tiddlywinks" not in path.read_bytes()
    with pytest.raises(JournalError, match="ended: answer"):
        k2lab.resume(path, lab=lab, tools=[adder([])], secrets=["tiddlywinks"])
    with pytest.raises(JournalError, match="there already"):
        lab.run("Again.", journal=path)


def interrupted(lab: Lab, path: Path, effect: str) -> tuple[LabRun, Tool]:
    """A run that is stopped while its second call is under way; the first one was made."""
    began = threading.Event()

    @tool(effect=effect)
    def add(n: int) -> int:
        """Add a number; the second call hangs, once."""
        if n == 3 and not began.is_set():
            began.set()
            cancellation().wait(PATIENCE)
        return n

    turns = (TURNS[0], f"<think>Next.</think>{adding(3, 1)}")
    run = lab.run(
        "Go on.", tools=[add], sampler=script(lab, *turns), journal=path, secrets=["Go on"]
    )
    assert began.wait(PATIENCE)
    run.stop()
    run.wait(PATIENCE)
    assert run.state == "stopped"
    return run, add


@pytest.mark.parametrize(("effect", "result"), [("writes", UNKNOWN), ("reads", "3")])
def test_an_interrupted_run_goes_on_where_it_was(
    effect: str, result: str, lab: Lab, tmp_path: Path
) -> None:
    path = tmp_path / "run.journal"
    run, add = interrupted(lab, path, effect)
    sampler = script(lab, f"<think>So.</think>Done.{END}")
    again = ended(k2lab.resume(path, lab=lab, tools=[add], sampler=sampler, secrets=["Go on"]))
    assert again.trace.ids.tolist()[: len(run.trace)] == run.trace.ids.tolist()
    assert again.trace.kinds.tolist()[: len(run.trace)] == run.trace.kinds.tolist()
    assert [each.content for each in again.trace.calls] == ["2", result]
    assert [each.index for each in again.trace.calls] == [each.index for each in run.trace.calls]
    assert again.trace.answer == "Done."
    assert again.turns[:2] == run.turns
    verdict = verify(path, trusted=[Key.own().public])
    assert verdict.whole and verdict.ended == "answer"
    branch = ended(
        again.branch(again.turns[-1] + 3, text="x", sampler=script(lab, f"</think>Y.{END}"))
    )
    assert branch.trace.text().endswith(f"Y.{END}")


def test_a_run_goes_on_only_with_what_it_had(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    _, add = interrupted(lab, path, "reads")

    @tool
    def other(n: int) -> int:
        """Another tool."""
        return n

    with pytest.raises(MissingError):
        k2lab.resume(tmp_path / "nothing", lab=lab)
    with pytest.raises(JournalError, match="tools of its own"):
        k2lab.resume(path, lab=lab)
    with pytest.raises(JournalError, match=r"add is missing.*descriptions may differ.*`tools="):
        k2lab.resume(path, lab=lab, tools=[other])
    wider = Tool("add", "", {**add.parameters, "required": []}, add.function)
    with pytest.raises(JournalError, match=r'add took .*"required": \["n"\].* takes .*\[\]'):
        k2lab.resume(path, lab=lab, tools=[wider])
    with pytest.raises(JournalError, match="secrets that are not at hand"):
        k2lab.resume(path, lab=lab, tools=[add])
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"answered"', b'"answeRed"', 1))
    with pytest.raises(JournalError, match="not as it was signed"):
        k2lab.resume(path, lab=lab, tools=[add], secrets=["Go on"])


def test_a_run_goes_on_where_only_words_about_a_tool_are_other_ones(
    lab: Lab, tmp_path: Path
) -> None:
    path = tmp_path / "run.journal"
    _, add = interrupted(lab, path, "reads")
    number = {**add.parameters["properties"]["n"], "description": "Any number.", "title": "N"}
    told = {**add.parameters, "properties": {"n": number}, "title": "Adding"}
    worded = Tool("add", "Adds.", told, add.function, effect="reads")
    sampler = script(lab, f"<think>So.</think>Done.{END}")
    again = ended(k2lab.resume(path, lab=lab, tools=[worded], sampler=sampler, secrets=["Go on"]))
    assert again.trace.answer == "Done."


def test_a_run_that_had_a_memory_says_that_it_is_missing(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    turns = script(lab, section("recall", '{"query": "keys"}'))
    ended(lab.run("Go.", tools=[], memory=Memory(), sampler=turns, journal=path,
                  budget=Budget(steps=1)))  # fmt: skip
    with pytest.raises(JournalError, match=r"recall is missing; remember is missing.*`memory=`"):
        k2lab.resume(path, lab=lab, tools=[])
    more = {"memory": Memory(), "sampler": script(lab, f"<think>So.</think>Done.{END}")}
    assert ended(k2lab.resume(path, lab=lab, tools=[], **more)).trace.answer == "Done."


def test_a_journal_that_holds_hashes_of_schemas_is_gone_on_with_or_says_why(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.journal"
    begin = Journal.begin.__func__  # type: ignore[attr-defined]

    def as_before(cls: Any, *given: Any, tools: Any, **more: Any) -> Journal:
        hashed = [{**each, "parameters": digest_of(each["parameters"])} for each in tools]
        made: Journal = begin(cls, *given, tools=hashed, **more)
        return made

    monkeypatch.setattr(Journal, "begin", classmethod(as_before))
    _, add = interrupted(lab, path, "reads")
    assert read(path)[0].facts["tools"][0]["parameters"] == digest_of(add.parameters)
    worded = replace(add, parameters={**add.parameters, "title": "Adding"})
    with pytest.raises(JournalError, match="add has other arguments, or other words about them"):
        k2lab.resume(path, lab=lab, tools=[worded])
    sampler = script(lab, f"<think>So.</think>Done.{END}")
    again = ended(k2lab.resume(path, lab=lab, tools=[add], sampler=sampler, secrets=["Go on"]))
    assert again.trace.answer == "Done."


def test_a_run_that_cannot_begin_leaves_no_journal(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    run = lab.run("Go.", tools=[adder([])], sampler=script(lab, *TURNS), policy=[])
    until(lambda: run.waiting)
    with pytest.raises(BusyError):
        lab.run("Go.", journal=path)
    assert not path.exists()


def test_a_mandate_counts_over_an_interruption(lab: Lab, tmp_path: Path) -> None:
    path, began = tmp_path / "run.journal", threading.Event()
    made = list[int]()

    @tool
    def add(n: int) -> int:
        """Add a number."""
        made.append(n)
        if n == 2:
            began.set()
            cancellation().wait(PATIENCE)
        return n

    options = {"mandate": Mandate.sign({"add": {}}, Key.own()), "approve": lambda request: False}
    run = lab.run("Go.", tools=[add], sampler=script(lab, TURNS[0]), journal=path, **options)
    assert began.wait(PATIENCE)
    run.stop()
    run.wait(PATIENCE)
    turns = (f"<think>Go on.</think>{adding(5, 1)}", TURNS[1])
    again = ended(k2lab.resume(path, lab=lab, tools=[add], sampler=script(lab, *turns), **options))
    assert made == [2]  # one call was mandated, and it was made before
    assert again.trace.calls[1].ok is False and again.trace.answer == "Done."


def test_a_budget_may_be_raised_and_the_run_goes_on(lab: Lab, tmp_path: Path) -> None:
    path, total = tmp_path / "run.journal", list[int]()
    run = ended(lab.run("Go.", tools=[adder(total)], sampler=script(lab, TURNS[0]),
                        journal=path, budget=Budget(steps=1)))  # fmt: skip
    assert run.trace.stopped is not None and run.trace.stopped.reason == "budget"
    again = ended(k2lab.resume(path, lab=lab, tools=[adder(total)], sampler=script(lab, TURNS[1])))
    assert (total, again.trace.answer) == ([2], "Done.")
    assert again.trace.stopped is not None
    assert again.trace.stopped.tokens > run.trace.stopped.tokens


def test_a_turn_that_was_gone_on_with_keeps_what_was_read_before_it(
    lab: Lab, tmp_path: Path
) -> None:
    """Cut within its second turn, gone on with and cut again: the result before it stays."""
    path, given = tmp_path / "run.journal", {"tools": [adder([])]}
    first = len(lab.tokenizer.encode_segments([Segment(TURNS[0], markers=True, kind="answer")]))
    budgets = [Budget(tokens=first + more) for more in (3, 6)]
    sampler = script(lab, *TURNS)
    run = ended(lab.run("Go.", sampler=sampler, journal=path, budget=budgets[0], **given))
    ended(k2lab.resume(path, lab=lab, sampler=sampler, budget=budgets[1], **given))
    again = ended(k2lab.resume(path, lab=lab, sampler=sampler, **given))
    assert again.trace.answer == "Done."
    assert again.trace.ids.tolist()[: len(run.trace)] == run.trace.ids.tolist()
    assert "## Return of" in again.trace.text()


def test_a_memory_adds_its_tools_and_outlives_the_run(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    memory = Memory(path)
    kept = section("remember", '{"source": "shed", "text": "The red key."}')
    run = ended(lab.run("Go.", tools=[], memory=memory, sampler=script(lab, kept, TURNS[1])))
    assert run.trace.calls[0].content == "kept as shed"
    memory.library.close()
    asked = section("recall", '{"query": "which key"}')
    again = Memory(path)
    run = ended(lab.run("Go.", tools=[], memory=again, sampler=script(lab, asked, TURNS[1])))
    assert run.trace.calls[0].content == "[shed:0-12] The red key."
    again.library.close()


def test_a_branch_keeps_the_rules_but_not_the_journal(lab: Lab, tmp_path: Path) -> None:
    path, total = tmp_path / "run.journal", list[int]()
    rules = {"policy": [allow("add", when=lambda given: given["n"] < 3), deny("*")]}
    run = ended(lab.run("Go.", tools=[adder(total)], sampler=script(lab, *TURNS), journal=path,
                        **rules))  # fmt: skip
    before = path.read_bytes()
    turns = script(lab, adding(4), f"No.{END}")
    branch = ended(run.branch(run.turns[0], text="Four. ", sampler=turns))
    assert branch.trace.calls[0].ok is False
    assert total == [2] and path.read_bytes() == before
    with pytest.raises(InputError, match="policies"):
        run.code()


def test_events_are_under_the_same_rules_as_a_run(lab: Lab, tmp_path: Path) -> None:
    path, total = tmp_path / "run.journal", list[int]()
    given = {"tools": [adder(total)], "journal": path, "secrets": ["tiddlywinks"]}
    events = lab.events(
        "It is tiddlywinks.", sampler=script(lab, *TURNS), policy=deny("*"), **given
    )
    assert not path.exists()  # nothing happens before somebody looks
    answers = [each.content for each in events if isinstance(each, ToolAnswered)]
    assert answers == ["error: not allowed: the policy deny *"] and not total
    verdict = verify(path, trusted=[Key.own().public])
    assert verdict.whole and verdict.ended == "answer"
    assert b"tiddlywinks" not in path.read_bytes()
    *_, stopped = lab.events("Go.", tools=[adder(total)], sampler=script(lab, *TURNS),
                             budget=Budget(steps=1))  # fmt: skip
    assert isinstance(stopped, Stopped) and (stopped.reason, total) == ("budget", [2])


@pytest.mark.parametrize(("approve", "made"), [(None, []), (lambda _: True, [2])])
def test_where_nobody_can_be_asked_a_call_that_would_wait_is_refused(
    approve: Approve | None, made: list[int], lab: Lab
) -> None:
    total = list[int]()
    given = {"tools": [adder(total)], "sampler": script(lab, *TURNS), "approve": approve}
    events = list(lab.events("Go.", policy=[], **given))
    assert total == made and isinstance(events[-1], Stopped) and events[-1].reason == "answer"
    assert [each.allowed for each in events if isinstance(each, ApprovalGiven)] == [bool(made)]


def test_events_that_are_left_go_on_as_a_run(lab: Lab, tmp_path: Path) -> None:
    path, total = tmp_path / "run.journal", list[int]()
    given = {"tools": [adder(total)], "sampler": script(lab, *TURNS), "journal": path}
    for event in (events := lab.events("Go.", **given)):
        if isinstance(event, ToolAnswered):
            break
    with pytest.raises(BusyError):
        next(lab.events("Again.", journal=tmp_path / "other.journal"))
    assert not (tmp_path / "other.journal").exists()
    events.close()  # type: ignore[attr-defined]
    again = ended(k2lab.resume(path, lab=lab, tools=[adder(total)], sampler=script(lab, TURNS[1])))
    assert (again.trace.answer, total) == ("Done.", [2])


def test_a_run_inside_a_call_ends_when_the_call_is_given_up(
    small_checkpoint: Path, lab: Lab
) -> None:
    inner, ends = Lab.open(small_checkpoint), list[str]()

    @tool(effect="reads")
    def ask() -> str:
        """Ask another model, which never comes to an end."""
        endless = script(inner, "x" * 900)
        try:
            for _ in inner.events("Go.", tools=[], sampler=endless, tap=slow):
                pass
        except Halted:
            ends.append("halted")
        return "late"

    def slow(site: str, value: Tensor) -> Tensor:
        if site == "layers.0.input":
            time.sleep(0.05)
        return value

    asked = script(lab, section("ask", "{}"))
    run = lab.run("Go.", tools=[ask], sampler=asked)
    until(lambda: inner.lock.held)
    run.stop()
    run.wait(PATIENCE)
    until(lambda: ends == ["halted"] and not inner.lock.held)


class Partly:
    """Writes a script, and draws where that has a gap."""

    def __init__(self, script: Sequence[int | None], sampler: Sampler, place: int = 0) -> None:
        self.script, self.sampler, self.place = script, sampler, place

    def __call__(self, logits: Tensor) -> int:
        wanted, self.place = self.script[self.place], self.place + 1
        return self.sampler(logits[:250]) if wanted is None else wanted  # no special token

    @property
    def state(self) -> str:
        return f"{self.place}|{state_of(self.sampler)}"

    def at(self, state: str) -> "Partly":
        place, _, inner = state.partition("|")
        return Partly(self.script, at(self.sampler, inner), int(place))

    def anew(self) -> "Partly":
        return Partly(self.script, anew(self.sampler))


def test_a_sampled_run_goes_on_with_the_draws_it_would_have_made(lab: Lab, tmp_path: Path) -> None:
    def ids(text: str) -> list[int]:
        segments = [Segment(text, markers=True, kind="answer")]
        return list(lab.tokenizer.encode_segments(segments))

    gap: list[int | None] = [None] * 12
    think = [*ids("<think>"), *gap, *ids("</think>")]
    turns = [*think, *ids(adding(2)), *think, *ids(adding(3, 1)), *think, *ids(f"Done.{END}")]
    sampler, path = Partly(turns, sampled(temperature=1.5, seed=7)), tmp_path / "run.journal"

    @tool(effect="reads")
    def add(n: int) -> int:
        """Add a number; the first time that the second call is made, the person stops the run."""
        if n == 3 and not stopped:
            stopped.append(True)
            began.set()
            cancellation().wait(PATIENCE)
        return n

    stopped, began = [True], threading.Event()
    whole = ended(lab.run("Go.", tools=[add], sampler=sampler))
    stopped.clear()
    run = lab.run("Go.", tools=[add], sampler=sampler, journal=path)
    assert began.wait(PATIENCE)
    run.stop()
    run.wait(PATIENCE)
    assert run.state == "stopped"
    again = ended(k2lab.resume(path, lab=lab, tools=[add], sampler=sampler))
    assert again.trace.answer == "Done."
    assert again.trace.ids.tolist() == whole.trace.ids.tolist()
    drawn = whole.trace.ids[whole.turns[2] + 1 :][:12].tolist()
    assert drawn != whole.trace.ids[whole.turns[0] + 1 :][:12].tolist()  # not the seed's first ones


def test_a_turn_that_was_cut_is_drawn_on_without_naming_the_sampler_again(
    lab: Lab, tmp_path: Path
) -> None:
    path, sampler = tmp_path / "run.journal", sampled(temperature=1.5, seed=2)
    whole = ended(lab.run("Go.", tools=[], sampler=sampler, max_tokens=40))
    cut = {"budget": Budget(tokens=9), "journal": path}
    run = ended(lab.run("Go.", tools=[], sampler=sampler, max_tokens=40, **cut))
    assert len(run.trace) < len(whole.trace)
    again = ended(k2lab.resume(path, lab=lab, tools=[]))
    assert again.recipe.sampler == sampler
    assert again.trace.ids.tolist() == whole.trace.ids.tolist()


ZEROED = {"do": "zero_heads", "layer": 1, "heads": [0, 1]}
SWAPPED = {"do": "router", "layer": 2, "rule": "softmax", "segment": "answer"}


def cut(lab: Lab, path: Path, **given: Any) -> LabRun:
    """A run of 40 tokens at most whose budget ends it after 9."""
    return ended(lab.run("Go.", tools=[], max_tokens=40, journal=path, budget=Budget(tokens=9),
                         **given))  # fmt: skip


@pytest.mark.parametrize("within", [True, False])
def test_a_run_goes_on_with_its_edits_and_its_capture_level(
    within: bool, lab: Lab, tmp_path: Path
) -> None:
    path, given = tmp_path / "run.journal", {"tools": [], "max_tokens": 40}
    level = capture.scores(2).within(2**26)
    plain = ended(lab.run("Go.", **given))
    with lab.edit(ZEROED, SWAPPED):
        whole = ended(lab.run("Go.", capture=level, **given))
        run = cut(lab, path, capture=level)
        again = ended(k2lab.resume(path, lab=lab, tools=[])) if within else run
    with lab.edit(ZEROED), pytest.raises(JournalError, match=r"outside of the block"):
        k2lab.resume(path, lab=lab, tools=[])
    if not within:
        again = ended(k2lab.resume(path, lab=lab, tools=[]))
    assert again.recipe.edits == whole.recipe.edits and again.recipe.capture == level
    assert again.trace.ids.tolist() == whole.trace.ids.tolist()
    assert (again.trace.experts == whole.trace.experts).all()
    read = min(len(plain.trace), len(whole.trace), run.turns[0])
    assert (plain.trace.experts[:read] != whole.trace.experts[:read]).any(), "edits show"
    assert again.trace.captured.stop == len(again.trace)
    assert again.trace.facts.capture == str(level)


def test_a_run_that_had_a_tap_goes_on_with_it_alone(lab: Lab, tmp_path: Path) -> None:
    path, other = tmp_path / "run.journal", tmp_path / "other.journal"
    tap = edit("layers.1.mlp.output", lab.config, lambda value: value * 0)
    whole = ended(lab.run("Go.", tools=[], max_tokens=40, tap=tap))
    cut(lab, path, tap=tap)
    with pytest.raises(JournalError, match=r"had a tap.*the same one as `tap=`"):
        k2lab.resume(path, lab=lab, tools=[])
    again = ended(k2lab.resume(path, lab=lab, tools=[], tap=tap))
    assert again.trace.ids.tolist() == whole.trace.ids.tolist()
    assert (again.trace.experts == whole.trace.experts).all()
    cut(lab, other)
    with pytest.raises(JournalError, match="had no tap"):
        k2lab.resume(other, lab=lab, tools=[], tap=tap)


def test_a_journal_that_tells_of_no_edits_and_no_tap_is_gone_on_with_as_before(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, begin = tmp_path / "run.journal", Journal.begin.__func__  # type: ignore[attr-defined]

    def as_before(
        cls: Any, *given: Any, edits: Any, capture: Any, own_tap: Any, **more: Any
    ) -> Journal:
        made: Journal = begin(cls, *given, **more)
        return made

    monkeypatch.setattr(Journal, "begin", classmethod(as_before))
    whole = ended(lab.run("Go.", tools=[], max_tokens=40))
    cut(lab, path)
    assert not {"edits", "capture", "own_tap"} & read(path)[0].facts.keys()
    with lab.edit(ZEROED):
        again = ended(k2lab.resume(path, lab=lab, tools=[], tap=lambda site, value: value))
    assert (again.recipe.edits, again.recipe.capture) == ((), capture.ROUTE)
    assert again.recipe.tap is not untouched
    assert again.trace.ids.tolist() == whole.trace.ids.tolist()
