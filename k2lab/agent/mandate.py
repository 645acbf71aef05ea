"""Mandates: what a person allows an agent beforehand, signed, and checked outside the model.

A mandate is JSON text with an Ed25519 signature over exactly that text. It names its type and
version, who signs, the tools with a JSON Schema of the arguments, how often, until when, and a
nonce. It holds for one run: the nonce is claimed by the first run that uses it, in a file that all
runs of this person share. Not here: who asks for it (`policy.py`), the count in the journal
(`resume.py`).
Source of the fields: the Agent Payments Protocol (AP2) 0.2, without its second signature.
"""

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2lab.agent.keys import Key, verified
from k2lab.agent.terms import Request
from k2lab.agent.tools import misfit
from k2lab.errors import InputError

TYPE = "k2lab.mandate/1"
FIELDS = frozenset({"type", "id", "user", "tools", "max_calls", "not_before", "expires", "nonce"})


@dataclass(frozen=True, slots=True)
class Mandate:
    """A text and its signature, as they were made or found."""

    text: str  # exactly what was signed
    signature: str  # hexadecimal

    @classmethod
    def sign(
        cls,
        tools: Mapping[str, Mapping[str, Any]],
        key: Key,
        *,
        max_calls: int = 1,
        seconds: float = 3600.0,
        now: float | None = None,
    ) -> "Mandate":
        """A mandate for calls whose arguments fit these schemas, valid from now for `seconds`."""
        begin = time.time() if now is None else now
        body = {
            "type": TYPE,
            "id": secrets.token_hex(8),
            "user": key.public,
            "tools": {name: dict(schema) for name, schema in tools.items()},
            "max_calls": max_calls,
            "not_before": begin,
            "expires": begin + seconds,
            "nonce": secrets.token_hex(16),
        }
        text = json.dumps(body, ensure_ascii=False)
        made = cls(text, key.sign(text.encode()))
        _read(made)
        return made

    @classmethod
    def load(cls, path: str | Path) -> "Mandate":
        """The mandate in a file."""
        try:
            found = json.loads(Path(path).read_bytes())
            return cls(str(found["mandate"]), str(found["signature"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _no_mandate(f"{path} holds no mandate: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write it to a file."""
        record = {"mandate": self.text, "signature": self.signature}
        Path(path).write_text(json.dumps(record, ensure_ascii=False) + "\n")
        return Path(path)


class Nonces:
    """Which run claimed which nonce, in a file that all runs share; without one, in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._claims = path, dict[str, str]()

    def claim(self, nonce: str, owner: str) -> bool:
        """Whether the nonce is this owner's, now or since before."""
        if self._path is None:
            return self._claims.setdefault(nonce, owner) == owner
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            whole, end, _ = self._path.read_text().rpartition("\n")
            os.ftruncate(file, len(whole + end))  # a claim that a crash tore was never given
            claims = dict(line.split() for line in whole.splitlines())
            if nonce not in claims:
                os.write(file, f"{nonce} {owner}\n".encode())
                os.fsync(file)
            return claims.get(nonce, owner) == owner
        finally:
            os.close(file)


class Mandates:
    """The mandates of a run, and how often each was used."""

    def __init__(
        self,
        mandates: Sequence[Mandate],
        *,
        trusted: Iterable[str] = (),
        run: str = "",
        nonces: Nonces | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`trusted` are public keys of those whose mandates count."""
        self._mandates, self._trusted = tuple(mandates), frozenset(trusted)
        self._run, self._nonces, self._now = run, nonces or Nonces(), now
        self._used: Counter[str] = Counter()

    def covers(self, request: Request) -> tuple[str | None, str]:
        """The id of a mandate that covers the call, or None and why none does."""
        reasons = []
        for mandate in self._mandates:
            identity, reason = self._check(mandate, request)
            if not reason:
                return identity, ""
            reasons.append(f"; mandate {identity}: {reason}")
        return None, "".join(reasons)

    def use(self, identity: str) -> None:
        """Count a call that is made under a mandate."""
        self._used[identity] += 1

    def _check(self, mandate: Mandate, request: Request) -> tuple[str, str]:
        """The mandate's id, and why it does not cover the call; empty: it does."""
        try:
            body = _read(mandate)
        except InputError as error:
            return "?", error.found
        identity, now = body["id"], self._now()
        if body["user"] not in self._trusted:
            return identity, "it is signed by somebody who may not"
        if not verified(body["user"], mandate.signature, mandate.text.encode()):
            return identity, "it is not as it was signed"
        if not body["not_before"] <= now < body["expires"]:
            return identity, "it is not valid now"
        if request.tool.name not in body["tools"]:
            return identity, f"it does not name {request.tool.name}"
        problem = misfit(body["tools"][request.tool.name], request.arguments)
        if problem:
            return identity, f"the arguments go beyond it{problem}"
        if self._used[identity] >= body["max_calls"]:
            return identity, f"its {body['max_calls']} calls are made"
        owner = hashlib.sha256(f"{self._run}:{mandate.text}".encode()).hexdigest()
        if not self._nonces.claim(body["nonce"], owner):
            return identity, "it was used in another run"
        return identity, ""


def _read(mandate: Mandate) -> dict[str, Any]:
    """The fields of a mandate, checked; nothing in it is believed before its signature is."""
    try:
        body = json.loads(mandate.text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _no_mandate("the mandate is not JSON") from error
    if not isinstance(body, dict) or body.keys() != FIELDS or body["type"] != TYPE:
        raise _no_mandate("the mandate has other fields, or another type or version")
    times = (body["not_before"], body["expires"])
    texts = (body["id"], body["user"], body["nonce"])
    calls, tools = body["max_calls"], body["tools"]
    if (
        not all(isinstance(each, int | float) and not isinstance(each, bool) for each in times)
        or not all(isinstance(each, str) and each.isalnum() and each.isascii() for each in texts)
        or not isinstance(calls, int)
        or isinstance(calls, bool)
        or calls < 1
        or not isinstance(tools, dict)
        or not all(isinstance(each, dict) for each in tools.values())
    ):
        raise _no_mandate("the mandate has a field of another kind")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_mandate(found: str) -> InputError:
    return InputError(
        found,
        expected=f"a mandate of the type {TYPE} with the fields {', '.join(sorted(FIELDS))}.",
        mend="Make one with `Mandate.sign`.",
    )
