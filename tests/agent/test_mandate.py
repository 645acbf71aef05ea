"""Mandates: signed, narrow, counted, for one run."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from k2lab.agent.keys import Key
from k2lab.agent.mandate import Mandate, Mandates, Nonces
from k2lab.agent.terms import Request
from k2lab.agent.tools import Tool
from k2lab.errors import InputError

NOW = 1_800_000_000.0
USER, STRANGER = Key.fresh(), Key.fresh()
TOOLS = {
    "pay": {
        "properties": {"to": {"const": "Ada"}, "amount": {"type": "integer", "maximum": 40}},
        "required": ["to", "amount"],
        "additionalProperties": False,
    }
}
FITTING = {"to": "Ada", "amount": 40}


def mandate(key: Key = USER, **options: Any) -> Mandate:
    return Mandate.sign(TOOLS, key, **{"now": NOW, "seconds": 600.0, "max_calls": 2, **options})


def request(name: str = "pay", arguments: Any = None) -> Request:
    tool = Tool(name, "", {"type": "object"}, print)
    return Request("0.0", tool, FITTING if arguments is None else arguments, "", "")


def checked(*mandates: Mandate, run: str = "run", nonces: Any = None, now: float = NOW) -> Mandates:
    trusted = [USER.public]
    return Mandates(mandates, trusted=trusted, run=run, nonces=nonces, now=lambda: now)


def test_a_fitting_call_is_covered_as_often_as_was_said() -> None:
    made = mandate()
    found = checked(made)
    for _ in range(2):
        identity, told = found.covers(request())
        assert identity == json.loads(made.text)["id"] and not told
        found.use(identity)
    identity, told = found.covers(request())
    assert identity is None and "its 2 calls are made" in told


def test_a_mandate_goes_through_a_file_unchanged(tmp_path: Path) -> None:
    made = mandate()
    assert Mandate.load(made.save(tmp_path / "m.json")) == made
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(InputError):
        Mandate.load(tmp_path / "m.json")


def resigned(made: Mandate, change: Callable[[dict[str, Any]], None], key: Key) -> Mandate:
    body = json.loads(made.text)
    change(body)
    text = json.dumps(body)
    return Mandate(text, key.sign(text.encode()))


def attempts(draw: Random) -> Iterator[tuple[str, Mandates, Request]]:
    """One attempt of each of the six kinds."""
    late = NOW + 600 + draw.random() * 1e6
    early = NOW - draw.random() * 1e6 - 1e-3
    yield "expired", checked(mandate(), now=draw.choice([late, early])), request()

    made = mandate(STRANGER)
    claims = resigned(made, lambda body: body.update(user=USER.public), STRANGER)
    yield "wrong key", checked(draw.choice([made, claims])), request()

    body = json.loads(mandate().text)
    place = draw.choice(["max_calls", "expires", "tools", "bytes"])
    if place == "tools":
        body["tools"]["pay"]["properties"]["amount"]["maximum"] = draw.randint(41, 10**6)
    elif place != "bytes":
        body[place] += draw.randint(1, 10**6)
    text = json.dumps(body) + (" " * draw.randint(1, 9) if place == "bytes" else "")
    widened = Mandate(text, mandate().signature)
    beyond = [{"to": "Ada", "amount": draw.randint(41, 10**9)}, {"to": "Eve", "amount": 1},
              {**FITTING, "note": "x"}, {"to": "Ada"}, {"to": ["Ada"], "amount": 1}]  # fmt: skip
    if draw.random() < 0.5:
        yield "widened", checked(widened), request()
    else:
        yield "widened", checked(mandate()), request(arguments=draw.choice(beyond))

    nonces, made = Nonces(), mandate()
    assert checked(made, run="first", nonces=nonces).covers(request())[0]
    nonce = json.loads(made.text)["nonce"]
    twin = resigned(mandate(), lambda body: body.update(nonce=nonce), USER)
    again = draw.choice([(made, "second"), (twin, "first"), (twin, "second")])
    yield "replayed", checked(again[0], run=again[1], nonces=nonces), request()

    count = draw.randint(1, 5)
    spent = checked(mandate(max_calls=count))
    for _ in range(count):
        identity, _ = spent.covers(request())
        assert identity
        spent.use(identity)
    yield "over count", spent, request()

    name = draw.choice(["Pay", "pay2", "refund", "pay_", "order"])
    yield "other tool", checked(mandate()), request(name)


def test_none_of_six_times_a_hundred_misuses_is_accepted() -> None:
    tried = accepted = 0
    for seed in range(100):
        for kind, mandates, asked in attempts(Random(seed)):
            identity, told = mandates.covers(asked)
            tried += 1
            accepted += identity is not None
            assert told, kind
    assert (accepted, tried) == (0, 600)


def test_the_same_run_may_go_on_with_its_mandate(tmp_path: Path) -> None:
    made, path = mandate(), tmp_path / "nonces"
    assert checked(made, run="a", nonces=Nonces(path)).covers(request())[0]
    assert checked(made, run="a", nonces=Nonces(path)).covers(request())[0]  # resumed
    assert checked(made, run="b", nonces=Nonces(path)).covers(request())[0] is None


@pytest.mark.parametrize(
    "change",
    [
        {"type": "k2lab.mandate/2"},
        {"extra": 1},
        {"max_calls": 0},
        {"max_calls": True},
        {"tools": ["pay"]},
        {"expires": "never"},
        {"nonce": "a b"},
    ],
)
def test_a_mandate_of_another_form_covers_nothing_even_if_signed(change: dict[str, Any]) -> None:
    odd = resigned(mandate(), lambda body: body.update(change), USER)
    assert checked(odd).covers(request())[0] is None
    for text in ("", "[]", "{", '{"type":"k2lab.mandate/1"}', '{"type":1,"type":1}'):
        assert checked(Mandate(text, USER.sign(text.encode()))).covers(request())[0] is None


def test_a_schema_that_would_fetch_something_covers_nothing() -> None:
    made = Mandate.sign({"pay": {"$ref": "https://example.org/x.json"}}, USER, now=NOW)
    identity, told = checked(made).covers(request())
    assert identity is None and "the schema cannot be used" in told


def test_a_claim_that_a_crash_tore_is_none(tmp_path: Path) -> None:
    made, path = mandate(), tmp_path / "nonces"
    nonce = json.loads(made.text)["nonce"]
    path.write_text(f"{'0' * 32} another\n{nonce[:20]}")
    assert checked(made, run="a", nonces=Nonces(path)).covers(request())[0]
    assert checked(made, run="b", nonces=Nonces(path)).covers(request())[0] is None


def test_a_file_without_a_mandate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no mandate"):
        Mandate.load(tmp_path / "none")
