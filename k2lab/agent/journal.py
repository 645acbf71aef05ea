"""The journal of a run, written ahead: what is about to happen stands on disk before it does.

One JSON object a line. Each line holds the SHA-256 of the exact bytes of the line before it and is
signed (Ed25519) over its own exact bytes, so nothing can be changed, left out, put in, put
elsewhere or added at the end without the key. That lines were cut off at the end shows against a
checkpoint, a signed statement of the length and the last hash, which is kept beside the journal and
may be kept anywhere else. A line that a crash tore is no line: it is cut, and the cut is recorded.

What cannot be seen: the loss of both files together, or a checkpoint as old as the cut.
"""

import fcntl
import hashlib
import json
import os
import secrets as random_bytes
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from k2lab.agent.keys import Key, verified
from k2lab.agent.turns import as_given
from k2lab.agent.veil import Veil
from k2lab.engine.generate import Prompt
from k2lab.errors import BusyError, JournalError
from k2lab.text.tokenizer import Tokenizer

VERSION = "k2lab.journal/1"
DURABLE = frozenset({"begun", "resumed", "asked", "answered", "ended", "cut"})
"""Kinds of records that are on disk before anything else happens (fsync)."""

_SEAL = b',"signature":"'
_END = b'"}\n'
_FIRST = hashlib.sha256(VERSION.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a journal."""

    number: int  # from 0
    kind: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of a journal found."""

    run: str
    lines: int  # up to the first problem
    problems: tuple[str, ...]  # empty: nothing was tampered with
    signed_by: str  # public key
    known_signer: bool  # the key is one that the checker trusts
    checkpoint: bool  # there was one, so that a cut at the end would have shown
    torn: int  # bytes of a last line that a crash tore
    ended: str  # why the run ended; empty: it was interrupted, and can be resumed

    @property
    def whole(self) -> bool:
        """Whether the journal is as it was written, as far as can be seen."""
        return not self.problems


class Journal:
    """A journal that is being written, by one writer at a time."""

    def __init__(self, path: Path, file: int, key: Key, veil: Veil, tokenizer: Tokenizer) -> None:
        """Use `begin` or `reopen`."""
        self.path, self.run = path, ""
        self._file, self._key, self._veil, self._tokenizer = file, key, veil, tokenizer
        self._count, self._last = 0, _FIRST
        self._turns: dict[tuple[int, int], int] = {}  # tokens by step and context
        self._opened = False

    @classmethod
    def begin(
        cls,
        path: Path,
        tokenizer: Tokenizer,
        *,
        key: Key | None = None,
        secrets: Iterable[str] = (),
        **about: Any,
    ) -> "Journal":
        """A new journal in a file that is not there yet; `about` is told in its first line."""
        key = key or Key.own()
        run = random_bytes.token_hex(16)
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise JournalError(
                f"{path} is there already.",
                expected="the name of a new file: a journal is never written over.",
                mend="Give another name, or go on with it: `k2lab.resume`.",
            ) from error
        except OSError as error:
            folder = "a new file in a folder that is there and may be written to"
            raise _unusable(path, "made", error, folder) from error
        _lock(file, path)
        made = cls(path, file, key, Veil(secrets, run), tokenizer)
        made.run = run
        made.note("begun", version=VERSION, run=run, key=key.public, **about)
        return made

    @classmethod
    def reopen(
        cls,
        path: Path,
        tokenizer: Tokenizer,
        *,
        key: Key | None = None,
        secrets: Iterable[str] = (),
    ) -> "tuple[Journal, list[Record]]":
        """The journal to go on with, and what it holds; a torn last line is cut and recorded.

        Raises JournalError where anything else is wrong with it, or secrets are missing.
        """
        key = key or Key.own()
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        _lock(file, path)
        kept, data = _kept(checkpoint_of(path)), path.read_bytes()
        records, problems, torn = _read(data)
        problems += _against_checkpoint(kept, records, data, [key.public])
        if problems or not records or records[0].facts.get("key") != key.public:
            os.close(file)
            why = problems[0] if problems else "it was not written with this key"
            raise JournalError(
                f"{path} cannot be gone on with: {why}.",
                expected="a journal as it was written, and the key that signs it.",
                mend="Look at it with `k2lab trace verify`, or begin a new run.",
            )
        made = cls(path, file, key, Veil(secrets, records[0].facts["run"]), tokenizer)
        made.run = records[0].facts["run"]
        whole = data[: len(data) - len(torn)]
        made._last = _hash(whole.split(b"\n")[-2] + b"\n")
        made._count = len(records)
        turns = [each.facts for each in records if each.kind == "turn"]
        made._turns = {
            (each["step"], each.get("context", 0)): length(each["chosen"]) for each in turns
        }
        made._opened = any(each.kind == "opened" for each in records)
        records = [made._shown(each) for each in records]
        if torn:
            os.ftruncate(file, len(whole))
            made.note("cut", bytes=len(torn), sha256=hashlib.sha256(torn).hexdigest())
        return made, records

    def tokens(self, hidden: Any) -> Prompt:
        """The tokens of a record."""
        return self._veil.show_tokens(hidden, self._tokenizer)

    def note(self, kind: str, **facts: Any) -> None:
        """Write one record; on disk when this returns, if the kind is `DURABLE`."""
        if kind == "opened":
            if self._opened:
                return
            self._opened = True
            facts["given"] = self._tokens(facts["given"])
        elif kind == "turn":
            place, chosen = (facts["step"], facts.get("context", 0)), facts["chosen"]
            if len(chosen) <= self._turns.get(place, -1):  # a resumed run reads its last turn again
                return
            if not self._turns or place in self._turns:  # it stands in what was opened, or before
                facts["given"] = None
            self._turns[place] = len(chosen)
            facts["given"] = self._tokens(facts["given"])
            facts["chosen"] = self._tokens(as_given(chosen, self._tokenizer))
        elif kind == "asked":
            text = json.dumps(facts["arguments"], ensure_ascii=False)
            if self._veil.hide(text) != text:  # as one text: a secret may be a number
                facts["arguments"] = text
        self._write(kind, facts)
        if kind in DURABLE:
            os.fsync(self._file)
            self._checkpoint()

    def close(self) -> None:
        """Let another writer have it; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Delete the journal of a run that never began."""
        self.close()
        self.path.unlink(missing_ok=True)
        checkpoint_of(self.path).unlink(missing_ok=True)

    def _write(self, kind: str, facts: dict[str, Any]) -> None:
        line = {"n": self._count, "at": round(time.time(), 3), "before": self._last, "kind": kind}
        text = json.dumps({**line, **self._veil.hide(facts)}, separators=(",", ":"))
        body = text.encode()[:-1]  # without the last bracket: the signature follows
        sealed = body + _SEAL + self._key.sign(body).encode() + _END
        self._append(sealed)
        self._count += 1
        self._last = _hash(sealed)

    def _append(self, line: bytes) -> None:
        """One system call, so that a crash of this process leaves the line whole or not at all."""
        written = os.write(self._file, line)
        while written < len(line):  # a full disk or a signal; then it may be torn
            written += os.write(self._file, line[written:])

    def _checkpoint(self) -> None:
        statement = {"version": VERSION, "run": self.run, "lines": self._count, "last": self._last}
        body = json.dumps(statement, separators=(",", ":")).encode()[:-1]
        sealed = body + _SEAL + self._key.sign(body).encode() + _END
        draft = self.path.with_name(f"{self.path.name}.checkpoint.new")
        draft.write_bytes(sealed)
        draft.replace(checkpoint_of(self.path))

    def _shown(self, record: Record) -> Record:
        """The record with its secrets."""
        facts = self._veil.show(record.facts)
        if self._veil.missing(facts):
            self.close()
            raise JournalError(
                "The journal has secrets that are not at hand.",
                expected="the run's secrets.",
                mend="Give what is missing as `secrets=`, or begin a new run with `lab.run`.",
            )
        if record.kind == "asked" and isinstance(facts["arguments"], str):
            facts["arguments"] = json.loads(facts["arguments"])
        return replace(record, facts=facts)

    def _tokens(self, prompt: Prompt | None) -> Any:
        return None if prompt is None else self._veil.hide_tokens(prompt, self._tokenizer)


def checkpoint_of(path: Path) -> Path:
    """Where the checkpoint of a journal is kept."""
    return path.with_name(f"{path.name}.checkpoint")


def read(path: Path) -> list[Record]:
    """The records up to the first that is not as it was written; `verify` says what is wrong."""
    return _read(_bytes(path))[0]


def verify(path: Path, *, trusted: Iterable[str] = (), checkpoint: Path | None = None) -> Verdict:
    """Checks every line, the chain, the signatures and the checkpoint.

    `trusted` are public keys; without one, whoever began the journal is believed to be who they
    are, and the verdict says so. `checkpoint` is one that was kept elsewhere.
    """
    # The checkpoint first: a run that goes on may add lines and renew it in between.
    kept = _kept(checkpoint or checkpoint_of(path))
    data, known = _bytes(path), list(trusted)
    records, problems, torn = _read(data)
    signer = str(records[0].facts.get("key", "")) if records else ""
    if known and signer not in known:
        problems.append(f"it is signed by {signer[:16] or 'nobody'}…, whom nobody here knows")
    problems += _against_checkpoint(kept, records, data, known or [signer])
    last = next((each for each in reversed(records) if each.kind in ("ended", "resumed")), None)
    return Verdict(
        run=str(records[0].facts.get("run", "")) if records else "",
        lines=len(records),
        problems=tuple(problems),
        signed_by=signer,
        known_signer=signer in known,
        checkpoint=kept is not None,
        torn=len(torn),
        ended=last.facts["reason"] if last is not None and last.kind == "ended" else "",
    )


def length(tokens: Any) -> int:
    """The number of written tokens; of hidden ones, that of their parts."""
    return len(tokens.get("ids", tokens.get("parts", ())))


def _read(data: bytes) -> tuple[list[Record], list[str], bytes]:
    """Records up to the first problem, that problem, and what a crash left of a last line."""
    *lines, torn = data.split(b"\n")
    records: list[Record] = []
    before, key = _FIRST, ""
    for number, line in enumerate(lines):
        body, seal, signature = line.rpartition(_SEAL)
        try:
            facts = json.loads(line)
            number_, kind = facts.pop("n"), facts.pop("kind")
            told, key = facts.pop("before"), key or str(facts["key"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return records, [f"line {number} is not a record"], torn
        if (
            not seal
            or not signature.endswith(b'"}')
            or not verified(key, signature[:-2].decode("latin-1"), body)
        ):
            return records, [f"line {number} is not as it was signed"], torn
        if number_ != number or told != before:
            return records, [f"line {number} does not follow the line before it"], torn
        facts.pop("signature")
        records.append(Record(number, kind, facts))
        before = _hash(line + b"\n")
    return records, [], torn


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, "read", error, "a file that a run wrote as its journal") from error


def _unusable(path: Path, what: str, error: OSError, expected: str) -> JournalError:
    return JournalError(
        f"{path} cannot be {what}: {error.strerror}.",
        expected=f"{expected}.",
        mend="Correct the path, or what may be done there.",
    )


def _kept(checkpoint: Path) -> bytes | None:
    return _bytes(checkpoint) if checkpoint.exists() else None


def _against_checkpoint(
    line: bytes | None, records: list[Record], data: bytes, keys: list[str]
) -> list[str]:
    """What a checkpoint says against a journal; nothing where there is none."""
    if line is None:
        return []
    body, _, signature = line.rpartition(_SEAL)
    try:
        statement = json.loads(line)
        run, lines, last = statement["run"], statement["lines"], statement["last"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ["its checkpoint is not a statement"]
    signed = signature[: -len(_END)].decode("latin-1")
    if not any(verified(key, signed, body) for key in keys):
        return ["its checkpoint is not as it was signed"]
    if not records or run != records[0].facts.get("run"):
        return ["its checkpoint is of another run"]
    all_lines = data.split(b"\n")[:-1]
    if lines > len(all_lines):
        return [f"{lines - len(all_lines)} lines are missing at the end"]
    if _hash(all_lines[lines - 1] + b"\n") != last:
        return ["its checkpoint tells of other lines"]
    return []


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise BusyError(
            f"{path} is being written by another run.",
            expected="one writer at a time.",
            mend="Wait until that run has ended, or stop it.",
        ) from error
