"""What a page can ask a live run for, and what it gets."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import k2lab
from k2lab import live
from k2lab.agent.policy import deny
from k2lab.engine.edits import unique
from k2lab.engine.surgery import Surgery
from k2lab.engine.taps import chain, untouched, watch
from k2lab.errors import BusyError, InputError, K2LabError
from k2lab.live import LiveDetails, Page, family, store_of
from k2lab.model.cache import LatentCache
from k2lab.widgets.details import CapturedDetails, Detail
from k2lab.widgets.store import Store


@pytest.fixture(scope="module")
def lab():
    return k2lab.load()


@pytest.fixture(scope="module")
def run(lab):
    return lab.run("What is 3 * 14?", max_tokens=40).wait()


@pytest.fixture
def page(run):
    page = Page()
    page.store = Store(run)
    return page


def test_a_trace_says_where_its_numbers_come_from(lab, run):
    facts = run.trace.facts
    item = {"float32": 4, "bfloat16": 2}[facts.dtype]
    assert facts.engine == "k2lab on cpu" and facts.capture == "route"
    assert facts.latent_bytes == (64 + 32) * item * 6
    assert facts.multi_head_bytes == 6 * (64 + lab.config.v_head_dim) * item * 6
    assert run.store.facts == facts and 0 < run.store.status["capture_share"] < 1
    assert run.store.status["capture_bytes"] == 5 * (8 * 3 + 2)


def test_details_are_computed_again_and_say_so(run):
    details = LiveDetails(lambda: run)
    token = run.trace.routed - 1
    routing = details.route(run.trace, token)
    assert routing.provenance == "derived" and routing.arrays["scores"].shape == (5, 64)
    best = np.argsort(-routing.arrays["choice"], axis=1)[:, :8]
    same = [
        set(a) == set(b)
        for a, b in zip(best.tolist(), run.trace.experts[token].tolist(), strict=True)
    ]
    assert sum(same) >= 4  # a near tie may fall the other way
    reading = details.attention(run.trace, token, 3)
    assert reading.arrays["weights"].shape == (6, token + 1)


def test_captured_values_are_preferred_and_are_measured(lab):
    run = lab.run("What is 3 * 14?", max_tokens=4, capture="full").wait()
    details = LiveDetails(lambda: run)
    token = run.trace.routed - 1
    measured = details.attention(run.trace, token, 2)
    assert measured.provenance == "measured"
    again = lab.run("What is 3 * 14?", max_tokens=4).wait()
    derived = LiveDetails(lambda: again).attention(again.trace, token, 2)
    assert derived.provenance == "derived"
    assert np.allclose(measured.arrays["weights"], derived.arrays["weights"], atol=0.03)
    assert details.route(run.trace, token).provenance == "measured"


class Uncaptured(CapturedDetails):
    """As if nothing had been captured."""

    def route(self, trace, token):
        return Detail("missing")

    def attention(self, trace, token, layer):
        return Detail("missing")


def derived(run):
    details = LiveDetails(lambda: run)
    details._captured = Uncaptured()
    return details


def alike(one, other):
    """Two details in all that both have."""
    both = one.arrays.keys() & other.arrays.keys()
    return bool(both) and all(
        np.allclose(one.arrays[each], other.arrays[each], atol=2e-3) for each in both
    )


SILENT = {"do": "zero_heads", "layer": 1, "heads": [0, 1, 2]}


@pytest.fixture(scope="module")
def watched(lab):
    return lab.run("What is 3 * 14?", max_tokens=40, capture="full").wait()


def test_details_of_a_branch_are_of_the_network_that_ran(watched):
    at = watched.turns[0] + 2
    child = watched.branch(at, text=" So", edits=[SILENT], max_tokens=12).wait()
    bare = child.branch(at + 8, text=" or", edits=[], max_tokens=4).wait()
    for run, tokens in ((child, (at - 1, at, at + 6)), (bare, (at - 1, at + 6, at + 9))):
        for token in tokens:
            found, known = derived(run), CapturedDetails()
            assert alike(found.route(run.trace, token), known.route(run.trace, token))
            for layer in (1, 3):
                measured = known.attention(run.trace, token, layer)
                assert alike(found.attention(run.trace, token, layer), measured)


def test_with_nothing_given_details_know_which_token_was_read_twice(watched):
    at = watched.turns[0]
    child = watched.branch(at, edits=[SILENT], max_tokens=6).wait()
    for token in (at - 1, at, at + 3):  # the first as recorded by the parent
        found = derived(child).route(child.trace, token)
        assert alike(found, CapturedDetails().route(child.trace, token))
    # Later tokens read the last one before the branch as the branch had read it.
    model, ids, seen = watched.lab.model, child.trace.ids[: at + 1].tolist(), []
    site = "layers.3.self_attn.weights"
    look = watch(site, model.config, lambda _, value: seen.append(value[0, :, -1].float()))
    edited = Surgery(unique([SILENT]), model.config).tap(at - 1, None, 2)
    cache = LatentCache(model.config)
    with torch.inference_mode():
        for part, tap in ((ids[:-2], untouched), (ids[-2:], chain(edited, look))):
            model.hidden(torch.tensor([part]), model.step(len(part), cache=cache, tap=tap))
    weights = derived(child).attention(child.trace, at, 3).arrays["weights"]
    np.testing.assert_allclose(weights, seen[0].numpy(), atol=2e-3)


def test_a_run_s_own_tap_is_not_called_for_a_look(lab):
    seen = []

    def tap(site, value):
        seen.append(site)
        return value

    run = lab.run("What is 3 * 14?", max_tokens=2, tap=tap).wait()
    count, details = len(seen), LiveDetails(lambda: run)
    for found in (details.route(run.trace, 5), details.attention(run.trace, 5, 1)):
        assert found.provenance == "missing" and "a tap of its own" in found.note
    assert len(seen) == count


def test_looks_and_experiments_do_without_a_tap_that_only_watches(lab):
    seen = []
    tap = watch("layers.1.input", lab.config, lambda site, _: seen.append(site))
    run = lab.run("What is 3 * 14?", max_tokens=2, tap=tap).wait()
    count, details = len(seen), LiveDetails(lambda: run)
    for found in (details.route(run.trace, 5), details.attention(run.trace, 5, 1)):
        assert found.provenance == "derived"
    assert run.experiment([SILENT], controls=1).tokens > 0
    assert len(seen) == count > 0


def test_while_another_run_goes_on_details_wait(run, lab):
    with lab.alone(), pytest.raises(K2LabError, match="still going on"):
        LiveDetails(lambda: run).route(run.trace, 3)


def test_a_run_that_begins_within_an_answer_waits_for_it(lab):
    with ThreadPoolExecutor() as pool:
        with lab.lock.answering():
            asked = pool.submit(lab.run, "What is 3 * 14?", max_tokens=2)
            time.sleep(0.2)
            assert not asked.done()
        assert asked.result(20).wait().state == "done"


def test_a_branch_joins_the_tree_of_the_page(run, page):
    at = int(np.flatnonzero(~np.isnan(run.trace.entropy))[3])
    other = run.trace.top[at][1][0]
    outcome = page.branch({"at": at, "token": other})
    child = run.children[-1].wait()
    assert outcome["run"] == child.name and int(child.trace.ids[at]) == other
    assert [entry["name"] for entry in page.store.runs] == [each.name for each in family(run)]
    root, entry = page.store.runs[0], page.store.runs[-1]
    assert root["id"] == page.store.store_id and entry["parent"] == root["id"]
    assert entry["at"] == at and entry["given"]


def test_a_branch_may_be_a_text_of_one_s_own(run, page):
    at = int(np.flatnonzero(~np.isnan(run.trace.entropy))[3])
    page.branch({"at": at, "text": " 7"})
    child = run.children[-1].wait()
    assert child.trace.text().startswith(run.trace.text()[:10])
    assert page.store.runs[-1]["given"] == " 7"


def test_a_treatment_reports_figures_and_a_run_under_the_edits(run, page):
    edits = [{"do": "zero", "layer": 3, "experts": [5]}]
    outcome = page.treat({"edits": edits})
    child = run.children[-1].wait()
    measures = [effect["measure"] for effect in outcome["report"]["effects"]]
    assert measures == ["logits", "kl", "tokens"] and child.name in outcome["text"]
    assert page.store.runs[-1]["edits"] == edits and child.done


def test_a_treatment_of_a_branch_keeps_what_was_given(run):
    edits = [{"do": "zero", "layer": 4, "experts": [1]}]
    at = run.turns[0] + 2
    wait = run.branch(at, text=" Wait,", max_tokens=12).wait()
    again = wait.branch(at + 8, max_tokens=4).wait()  # nothing given: it begins there all the same
    for each in (wait, again):
        page = Page()
        page.store = Store(each)
        outcome = page.treat({"edits": edits})
        child = each.children[-1].wait()
        assert (child.recipe.at, child.recipe.given) == (each.recipe.at, each.recipe.given)
        assert (
            " Wait," in child.trace.text() and f"from token {child.recipe.at} on" in outcome["text"]
        )
        assert child.trace.text().startswith("".join(each.trace.texts[: each.recipe.at]))


def test_a_treatment_says_how_to_read_its_figures(run, page):
    loads = np.bincount(run.trace.experts[:, 3].ravel(), minlength=64)
    edits = [{"do": "zero", "layer": 4, "experts": [int(loads.argmax())]}]
    outcome = page.treat({"edits": edits})
    run.children[-1].wait()
    assert f"Load: {loads.max()}" in outcome["text"] and "mean control" in outcome["text"]


def test_an_action_waits_for_an_answer_that_uses_the_engine(lab, run, page):
    with ThreadPoolExecutor() as pool:
        with lab.alone():
            asked = pool.submit(page.branch, {"at": run.turns[0] + 1, "text": "It"})
            time.sleep(0.2)
            assert not asked.done()
        assert "run" in asked.result(20)
    run.children[-1].wait()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("branch", {"at": "x", "token": 1}),
        ("branch", {"at": 3, "token": True}),
        ("branch", {"at": 3}),
        ("branch", {"at": 0, "token": 1}),
        ("branch", {"at": 10**9, "token": 1}),
        ("treat", {}),
        ("treat", {"edits": [{"do": "rm"}]}),
        ("treat", {"edits": [{"do": "zero", "layer": 99, "experts": [1]}]}),
    ],
)
def test_what_makes_no_sense_is_refused(run, page, action, message):
    with pytest.raises(K2LabError):
        getattr(page, action)(message)


def test_files_are_written_beside_each_other(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actions = store_of(run).actions
    for _ in range(2):
        actions["save"]({})
        actions["export"]({})
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "run-1.html",
        "run-1.k2trace",
        "run-2.html",
        "run-2.k2trace",
    ]
    page_text = (tmp_path / "run-1.html").read_text(encoding="utf-8")
    assert "k2-run" in page_text and "lab = k2lab.load()" in page_text
    last = run.trace.routed - 1  # scores and attention of the last token go with the page
    assert all(f'"{key}"' in page_text for key in (f"route:{last}:-1", f"attention:{last}:5"))


def test_a_run_has_each_view_by_name(run):
    views = [run.thoughts(), run.experts(), run.routes(), run.attention(), run.timeline()]
    views += [run.branches(), run.dashboard(), run.trace.show()]
    names = [type(view).__name__ for view in views]
    assert names[:3] == ["ThoughtStream", "ExpertMap", "RouteLens"]
    assert names[3:] == ["AttentionCache", "Timeline", "CompareBranch", "Dashboard", "Dashboard"]
    assert len({view.store_id for view in views[:-1]}) == 1, "they share one selection"
    assert views[-1].store.facts == run.trace.facts


def test_a_run_that_cannot_be_written_as_code_says_why_and_is_shown(lab):
    run = lab.run("What is 3 * 14?", max_tokens=2, tap=lambda site, value: value).wait()
    assert run.store.code.startswith("# This run has a tap of one's own")
    assert run.dashboard().summary().startswith("Dashboard(")


def test_code_is_that_of_the_run_as_it_ended(lab):
    run = lab.run("What is 3 * 14?")
    store, codes = run.store, []

    def note(change):
        if change["new"]["state"] == "stopped":
            codes.append(store.code)  # whoever sees it stopped finds the code already there

    store.observe(note, "status")
    run.stop()
    run.wait()
    until = time.monotonic() + 20
    while not codes and time.monotonic() < until:
        time.sleep(0.02)
    assert codes == [run.code()] and "max_tokens=2048" not in store.code


def test_a_question_takes_the_place_of_the_run_and_waits_for_the_engine(lab):
    run = lab.run("What is 3 * 14?").wait()
    page = Page()
    page.store = Store(run)
    other = lab.run("Add up the queue.", max_tokens=2000)
    other.pace(20)
    threading.Timer(0.5, other.stop).start()
    outcome = page.ask({"text": " What is 2 * 21? "})
    assert other.done and page.run().name == outcome["run"] and page.run() is not run
    page.run().wait()
    assert page.run().trace.answer == "2 times 21 is 42." and page.store.epoch == 2


def test_a_question_in_the_page_keeps_the_rules_of_the_run(lab):
    run = lab.run("What is 3 * 14?", max_tokens=64, policy=deny("calc")).wait()
    page = Page()
    page.store = Store(run)
    page.ask({"text": "What is 2 * 21?"})
    asked = page.run().wait()
    assert asked is lab.latest and asked is not run
    assert "not allowed: the policy deny calc" in asked.trace.calls[0].content
    assert asked.recipe.max_tokens == 64 and not asked.recipe.edits


def test_a_question_that_waits_too_long_is_told(lab, page, monkeypatch):
    monkeypatch.setattr(live, "LONGEST_WAIT", 0.2)
    other = lab.run("Add up the queue.")
    other.pause()
    try:
        with pytest.raises(BusyError, match="still going"):
            page.ask({"text": "What is 2 * 21?"})
    finally:
        other.stop()
        other.wait()


@pytest.mark.parametrize("text", ["", "  ", 5, None, "x" * 20_001])
def test_a_question_that_is_none_is_named(page, text):
    with pytest.raises(InputError, match="empty or too long"):
        page.ask({"text": text})


def test_a_page_s_message_ends_as_an_outcome(run):
    store = store_of(run)
    sent = []
    store.send = lambda content, buffers=None: sent.append(content)  # type: ignore[method-assign]
    store._obey({"type": "treat", "edits": [{"do": "rm"}]})
    until = time.monotonic() + 20
    while not any(each["type"] == "outcome" for each in sent) and time.monotonic() < until:
        time.sleep(0.02)
    outcome = next(each for each in sent if each["type"] == "outcome")
    assert outcome["action"] == "treat" and "do = 'rm'" in outcome["error"]
    assert (
        store.status["can"] == ["ask", "branch", "treat", "save", "export", "approve"]
        and "lab" in store.code
    )


def test_a_notebook_with_all_six_widgets_stays_small(run):
    other = run.branch(run.turns[0] + 1, text="It").wait()
    views = [run.thoughts(), run.experts(), run.routes(), run.attention(), run.timeline()]
    outputs = [view._repr_mimebundle_() for view in (*views, run.branches(other))]
    assert all("image/png" in each for each in outputs)
    assert len(json.dumps(outputs)) < 500_000
