"""The journal: written ahead, and no change of it goes unseen."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from k2lab.agent.journal import Journal, checkpoint_of, read, verify
from k2lab.agent.keys import Key
from k2lab.engine.generate import Prompt
from k2lab.errors import BusyError, JournalError
from k2lab.text.tokenizer import Tokenizer

KEY = Key.fresh()


@pytest.fixture
def path(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """A journal of twelve lines, closed."""
    journal = Journal.begin(tmp_path / "run.journal", tiny_tokenizer, key=KEY, model="tiny")
    for number in range(5):
        journal.note("asked", key=f"{number}.0", name="add", arguments={"a": number})
        journal.note("answered", key=f"{number}.0", content=f"ten\n{number}", ok=True)
    journal.note("ended", reason="answer", detail="")
    journal.close()
    return tmp_path / "run.journal"


def check(path: Path, **options: Any) -> tuple[str, ...]:
    return verify(path, trusted=[KEY.public], **options).problems


def test_a_journal_as_it_was_written_is_whole(path: Path) -> None:
    verdict = verify(path, trusted=[KEY.public])
    assert verdict.whole and verdict.known_signer and verdict.checkpoint
    assert (verdict.lines, verdict.torn, verdict.ended) == (12, 0, "answer")
    assert verdict.signed_by == KEY.public
    records = read(path)
    assert [each.number for each in records] == list(range(12))
    assert records[2].facts["content"] == "ten\n0"
    assert all(json.loads(line)["n"] == n for n, line in enumerate(lines_of(path)))  # JSON Lines


def test_every_flipped_bit_is_found(path: Path) -> None:
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert check(path), f"a flip in byte {place} was not seen"


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("place", range(12))
def test_a_line_left_out_or_doubled_is_found(place: int, path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    assert check(path)
    path.write_bytes(b"".join(lines[: place + 1] + lines[place:]))
    assert check(path)


@pytest.mark.parametrize("place", range(11))
def test_two_lines_swapped_are_found(place: int, path: Path) -> None:
    lines = lines_of(path)
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    path.write_bytes(b"".join(lines))
    assert check(path)


@pytest.mark.parametrize("kept", range(12))
def test_lines_cut_off_at_the_end_are_found_with_a_checkpoint_and_only_with_it(
    kept: int, path: Path, tmp_path: Path
) -> None:
    path.write_bytes(b"".join(lines_of(path)[:kept]))
    elsewhere = tmp_path / "kept"
    checkpoint_of(path).rename(elsewhere)
    assert check(path, checkpoint=elsewhere)
    verdict = verify(path)
    assert not verdict.checkpoint
    assert verdict.whole  # a chain alone cannot show it, and the verdict says so


def test_a_line_of_another_key_is_found(path: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    other = Journal.begin(tmp_path / "other", tiny_tokenizer, key=Key.fresh())
    other._count, other._last = 12, __import__("hashlib").sha256(lines_of(path)[-1]).hexdigest()
    other._write("answered", {"key": "9.0", "content": "forged", "ok": True})
    path.write_bytes(path.read_bytes() + lines_of(tmp_path / "other")[-1])
    assert check(path) == ("line 12 is not as it was signed",)


def test_a_journal_rewritten_as_a_whole_is_found(path: Path, tiny_tokenizer: Tokenizer) -> None:
    path.unlink()
    forged = Journal.begin(path, tiny_tokenizer, key=Key.fresh(), model="tiny")
    forged.note("ended", reason="answer", detail="")
    assert any("whom nobody here knows" in each for each in check(path))
    assert not verify(path).known_signer


def test_a_checkpoint_of_another_run_or_hand_is_found(path: Path, tiny_tokenizer: Any) -> None:
    mine = checkpoint_of(path).read_bytes()
    checkpoint_of(path).write_bytes(mine.replace(b'"lines":12', b'"lines":11'))
    assert check(path) == ("its checkpoint is not as it was signed",)
    checkpoint_of(path).write_bytes(b"nothing")
    assert check(path) == ("its checkpoint is not a statement",)
    other = Journal.begin(path.with_name("other"), tiny_tokenizer, key=KEY)
    checkpoint_of(other.path).replace(checkpoint_of(path))
    assert check(path) == ("its checkpoint is of another run",)


def test_a_torn_last_line_is_cut_and_the_cut_is_recorded(
    path: Path, tiny_tokenizer: Tokenizer
) -> None:
    whole, torn = path.read_bytes(), b'{"n":12,"at":1.5,"bef'
    path.write_bytes(whole + torn)
    verdict = verify(path, trusted=[KEY.public])
    assert verdict.whole and verdict.torn == len(torn)  # a crash, not a forgery
    journal, records = Journal.reopen(path, tiny_tokenizer, key=KEY)
    journal.close()
    assert len(records) == 12
    assert read(path)[12].kind == "cut"
    assert read(path)[12].facts["bytes"] == len(torn)
    assert verify(path, trusted=[KEY.public]).whole


def test_a_journal_that_was_tampered_with_is_not_gone_on_with(
    path: Path, tiny_tokenizer: Tokenizer
) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:5] + lines[6:]))
    before = path.read_bytes()
    with pytest.raises(JournalError, match="line 5 does not follow"):
        Journal.reopen(path, tiny_tokenizer, key=KEY)
    assert path.read_bytes() == before
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="not"):
        Journal.reopen(path, tiny_tokenizer, key=Key.fresh())


def test_one_writer_at_a_time_and_never_over_another_journal(
    path: Path, tiny_tokenizer: Tokenizer
) -> None:
    journal, _ = Journal.reopen(path, tiny_tokenizer, key=KEY)
    with pytest.raises(BusyError):
        Journal.reopen(path, tiny_tokenizer, key=KEY)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="there already"):
        Journal.begin(path, tiny_tokenizer, key=KEY)


def test_what_is_about_to_happen_is_on_disk_before_it_does(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    journal = Journal.begin(tmp_path / "j", tiny_tokenizer, key=KEY)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((tmp_path / "j").stat().st_size))
    journal.note("decided", key="0.0", verdict="allow", why="", by="")
    assert not synced
    journal.note("asked", key="0.0", name="pay", arguments={})
    assert synced == [(tmp_path / "j").stat().st_size]


def test_secrets_are_hashed_and_not_written(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    path = tmp_path / "j"
    journal = Journal.begin(path, tiny_tokenizer, key=KEY, secrets=["hunter2hunter2"])
    ids = tuple(tiny_tokenizer.encode("say hunter2hunter2"))
    prompt = Prompt(ids, tuple(tiny_tokenizer.piece(each) for each in ids), ("user",) * len(ids))
    journal.note("opened", given=prompt)
    journal.note("turn", step=0, given=prompt, chosen=ids)
    journal.note("asked", key="0.0", name="log", arguments={"in": "hunter2hunter2"})
    journal.note("answered", key="0.0", content="hunter2hunter2 it is", ok=True)
    assert b"hunter2" not in path.read_bytes()
    assert str(list(ids[4:8]))[1:-1].replace(" ", "").encode() not in path.read_bytes()
    opened = next(each for each in read(path) if each.kind == "opened")
    assert journal.tokens(opened.facts["given"]).ids == ids


def test_a_secret_in_a_number_is_hidden_and_had_again(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    path, arguments = tmp_path / "j", {"pin": 48213377, "to": ["Ada"]}
    journal = Journal.begin(path, tiny_tokenizer, key=KEY, secrets=["48213377"])
    journal.note("asked", key="0.0", name="log", arguments=arguments)
    journal.close()
    assert b"48213377" not in path.read_bytes()
    again, records = Journal.reopen(path, tiny_tokenizer, key=KEY, secrets=["48213377"])
    again.close()
    assert records[1].facts["arguments"] == arguments


def test_a_result_with_a_secret_is_not_gone_on_with_without_it(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    path, secret = tmp_path / "j", "hunter2hunter2"
    journal = Journal.begin(path, tiny_tokenizer, key=KEY, secrets=[secret])
    journal.note("answered", key="0.0", content=f"it is {secret}", ok=True)
    journal.close()
    with pytest.raises(JournalError, match="secrets that are not at hand"):
        Journal.reopen(path, tiny_tokenizer, key=KEY)
    again, records = Journal.reopen(path, tiny_tokenizer, key=KEY, secrets=[secret])
    again.close()
    assert records[1].facts["content"] == f"it is {secret}"


def test_a_journal_that_grows_while_it_is_checked_is_whole(
    path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = Journal.reopen(path, tiny_tokenizer, key=KEY)
    read_bytes = Path.read_bytes

    def growing(each: Path) -> bytes:
        data = read_bytes(each)
        journal.note("ended", reason="answer", detail="")
        return data

    monkeypatch.setattr(Path, "read_bytes", growing)
    assert check(path) == ()
    journal.close()


def test_what_is_no_journal_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    deep = tmp_path / "deep"
    deep.write_bytes(b"[" * 200_000 + b"\n")
    assert check(deep) == ("line 0 is not a record", *check(deep)[1:])
    with pytest.raises(JournalError, match=r"cannot be read.*Correct the path"):
        verify(tmp_path)
    with pytest.raises(JournalError, match=r"cannot be made.*Correct the path"):
        Journal.begin(tmp_path / "no" / "j", tiny_tokenizer, key=KEY)
