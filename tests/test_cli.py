"""The command line, in this process: what it prints and its exit codes."""

import io
import json
import sys
from pathlib import Path

import pytest

from k2lab import cli, console
from k2lab.agent.journal import Journal
from k2lab.agent.keys import Key
from k2lab.engine.events import Event, Stopped, TokenChosen, ToolAnswered, ToolAsked
from k2lab.model import export
from k2lab.spec.config import K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.trace.synthetic import synthetic


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_info_of_kimi_k2_thinking(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "k2-thinking", "--json"]) == 0
    (figures,) = lines(capsys)
    assert figures["parameters_total"] == 1_026_408_232_448
    assert figures["cache_bytes_per_token"] == 70_272
    assert cli.main(["info", "k2-thinking"]) == 0
    assert "1,026,408,232,448" in capsys.readouterr().out


def test_run_prints_events_as_json_lines(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "Hello", "--model", str(small_checkpoint), "--max-tokens", "3"]
    assert cli.main([*run, "--greedy", "--json"]) == 0
    events = lines(capsys)
    assert events[0]["event"] == "PromptRead"
    assert [event["event"] for event in events].count("TokenChosen") <= 3
    assert events[-1]["event"] == "Stopped"
    assert cli.main([*run, "--seed", "4", "--json"]) == 0
    first = [event.get("id") for event in lines(capsys)]
    assert cli.main([*run, "--seed", "4", "--json"]) == 0
    assert [event.get("id") for event in lines(capsys)] == first


def test_verify_names_each_check(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(small_checkpoint), "--json"]) == 0
    assert lines(capsys)[0]["check"] == "config"


def test_an_error_is_three_lines_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.split(":")[0] for line in printed.err.splitlines()] == [
        "found",
        "expected",
        "mend",
    ]


@pytest.mark.parametrize("option", ["--work", "--out"])
def test_a_path_that_cannot_be_is_told_before_the_work_begins(
    option: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    assert cli.main(["train", "--steps", "1", option, str(file / "folder")]) == 2
    assert capsys.readouterr().err.startswith(f"found:    {file / 'folder'}: Not a directory.")
    assert not list(tmp_path.glob("**/training.pt"))


def test_microworld_prints_shares_with_intervals(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k2lab.evals.microworld.MAX_TOKENS", 8)
    arguments = ["eval", "microworld", "--n", "2", "--model", str(small_checkpoint)]
    assert cli.main([*arguments, "--json"]) == 0
    (figures,) = lines(capsys)
    assert figures["overall"].keys() == {"accuracy", "n", "low", "high"}
    assert sum(family["n"] for family in figures["families"].values()) == 2
    assert cli.main(arguments) == 0
    assert "overall" in capsys.readouterr().out


def test_export_prints_the_folder(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert cli.main(["export", "--model", str(small_checkpoint), str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["export", "--layers", "2", "OUT"], "--layers without --synthetic."),
        (["export", "--experts", "8", "OUT"], "--experts without --synthetic."),
        (["export", "--vocabulary", "600", "OUT"], "--vocabulary without --synthetic."),
        (
            ["export", "--synthetic", "k2-nano", "--format", "transformers", "OUT"],
            "--format transformers beside --synthetic.",
        ),
        (
            ["eval", "microworld", "--families", "sum", "--queue-length", "5"],
            "--queue-length without the family queue.",
        ),
        (["run", ""], "The question ''."),
        (["run", " \n"], "The question ' \\n'."),
        (["run", "hi", "--seed", "9" * 23], "seed is 9999"),
        (["run", "hi", "--prefetch"], "prefetch beside the placement resident"),
        (
            ["run", "hi", "--placement", "resident", "--device-budget", "40GiB"],
            "device_budget beside the placement resident",
        ),
        (["trace", "verify", "--key", "zz", "OUT"], "The key 'zz'."),
        (["trace", "verify", "--key", "ab" * 31, "OUT"], "The key 'abab"),
        (["trace", "verify", "--key", "", "OUT"], "The key ''."),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    given: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main([str(out) if each == "OUT" else each for each in given]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_synthetic_checkpoint_copies_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--synthetic", "k2-nano", "--model", "foo", "out"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_synthetic_checkpoint_is_cut_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ["export", "--synthetic", "k2-nano", "--format", "native", "--layers", "2", str(out)]
    assert cli.main(given) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert K2Config.from_json(out).num_hidden_layers == 2


def test_traces_are_written_as_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trunk, out = synthetic(20), tmp_path / "x.html"
    files = [trunk.save(tmp_path / "a.k2trace"), trunk.fork(12).save(tmp_path / "b.k2trace")]
    assert cli.main(["trace", "html", str(files[0]), str(out), "--beside", str(files[1])]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert '"begins": {"tokens": 12,' in out.read_text(encoding="utf-8")


def test_no_page_is_written_over_another_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [synthetic(9).save(tmp_path / name) for name in ("a.k2trace", "b.k2trace")]
    before = files[1].read_bytes()
    assert cli.main(["trace", "html", *map(str, files)]) == 2  # as *.k2trace gives them
    assert "come after --beside" in capsys.readouterr().err
    assert files[1].read_bytes() == before
    for _ in range(2):
        assert cli.main(["trace", "html", str(files[0]), str(tmp_path / "x.html")]) == 0


def test_training_writes_a_model_that_verifies(
    small_config: K2Config,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("k2lab.train.nano.K2_NANO", small_config)
    monkeypatch.setattr(
        "k2lab.train.nano.tokenizer", lambda _: Tokenizer.from_folder(small_checkpoint)
    )
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = ["train", "--steps", "1", "--work", str(work), "--out", str(out), "--json"]
    arguments += ["--chains", "0", "--experts", "2"]
    monkeypatch.setattr("k2lab.evals.microworld.MAX_TOKENS", 8)
    assert cli.main([*arguments, "--eval", "2"]) == 0
    progress, measured, used = lines(capsys)
    assert (progress["step"], used["tasks"]) == (1, 2)
    assert measured["overall"]["n"] == 2
    card = (out / "CARD.md").read_text()
    assert card.startswith("# K2-nano")
    assert "| all tasks, had experts stayed in bfloat16 | 0.0% | 2 |" in card
    assert cli.main(["verify", str(out)]) == 0

    capsys.readouterr()
    again = tmp_path / "again"
    more = ["--start", str(out), "--steps", "2", "--rl", "1", "--work", str(tmp_path / "more")]
    assert cli.main([*arguments, *more, "--out", str(again), "--eval", "2"]) == 0
    progress, gain, measured, _ = lines(capsys)
    assert (progress["step"], gain["step"]) == (2, 1)
    card = (again / "CARD.md").read_text()
    assert "went on from the finished weights" in card
    assert "Reinforcement, 1 steps: 0.0% of 2 tasks right before it, 0.0% after; left out" in card


@pytest.mark.parametrize("arguments", [[], ["fly"], ["info", "--fly"], ["eval"]])
def test_nonsense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(arguments)
    assert refused.value.code == 2


def test_a_terminal_without_a_sign_is_shown_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["plan", "k2-nano", "--gpu", "H100", "--ram", "1GB"]) == 0
    terminal.seek(0)
    assert r"1 \xd7 H100" in terminal.read()


def test_a_failed_copy_names_both_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "here", None, "there")

    monkeypatch.setattr(export, "export_native", fail)
    assert cli.main(["export", "--format", "native", "out"]) == 2
    assert "here → there: No space left on device." in capsys.readouterr().err


def test_lab_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "k2lab.classroom.open_course", lambda folder, options: seen.append(options) or 0
    )
    assert cli.main(["lab", "--no-browser", "--port=8899"]) == 0
    assert seen == [["--no-browser", "--port=8899"]]


def test_a_followed_run_reads_like_a_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    def token(text: str, kind: str) -> Event:
        return TokenChosen(0, 0, text, kind, 0.0, 0.0, (), 0.0)

    events = [
        token("<think>", "marker"),
        token("I ", "thinking"),
        token("ask.\x1b[2J", "thinking"),
        ToolAsked("0.0", "id", "calc", '{"expression": "1 + 1"}', 3),
        ToolAnswered("0.0", "calc", "2", True, 0.0),
        token("Two.", "answer"),
        Stopped("answer", "", 4, 0.0),
    ]
    assert list(console.follow(events)) == events
    assert capsys.readouterr().out == (
        "thinking  I ask.\N{REPLACEMENT CHARACTER}[2J\n"
        'call      calc {"expression": "1 + 1"}\n'
        "result    2\n"
        "answer    Two.\n"
    )


def test_a_journal_is_verified_and_what_is_wrong_with_it_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    key, path = Key.own(tmp_path / "key.pem"), tmp_path / "run.journal"
    journal = Journal.begin(path, tiny_tokenizer, key=key)
    journal.note("ended", reason="answer", detail="")
    journal.close()
    assert cli.main(["trace", "verify", str(path), "--key", key.public, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    assert cli.main(["trace", "verify", str(path), "--key", key.public.upper()]) == 0
    capsys.readouterr()
    path.write_bytes(path.read_bytes().replace(b"answer", b"danger"))
    assert cli.main(["trace", "verify", str(path), "--key", key.public]) == 1
    assert "line 1 is not as it was signed" in capsys.readouterr().out
