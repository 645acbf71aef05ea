"""Keys: kept for their owner alone, and a signature is of exact bytes."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from k2lab.agent.keys import Key, verified
from k2lab.errors import InputError


def test_the_own_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key.pem"
    key = Key.own(path)
    assert Key.own(path).public == key.public
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["key.pem"]


def test_a_signature_is_of_exact_bytes_and_of_one_key() -> None:
    key, other = Key.fresh(), Key.fresh()
    seal = key.sign(b"ten coins")
    assert verified(key.public, seal, b"ten coins")
    assert not verified(key.public, seal, b"ten  coins")
    assert not verified(other.public, seal, b"ten coins")


@pytest.mark.parametrize("wrong", ["", "zz", "00" * 31, "00" * 32, "00" * 64, "é"])
def test_what_is_no_key_or_no_signature_verifies_nothing(wrong: str) -> None:
    key = Key.fresh()
    assert not verified(wrong, key.sign(b"x"), b"x")
    assert not verified(key.public, wrong, b"x")


def test_a_file_without_a_fitting_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("nothing")
    with pytest.raises(InputError, match="no private key"):
        Key.own(path)
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(InputError, match=r"ECPrivateKey|EllipticCurve"):
        Key.own(path)


def test_the_private_half_is_not_shown() -> None:
    key = Key.fresh()
    assert repr(key) == f"Key({key.public[:16]}…)"


def test_those_who_need_the_first_key_at_once_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fresh, quicker = tmp_path / "key.pem", Key.fresh, list[Key]()

    def slowly() -> Key:
        if not quicker:
            monkeypatch.setattr(Key, "fresh", fresh)
            quicker.append(Key.own(path))
        return fresh()

    monkeypatch.setattr(Key, "fresh", slowly)
    mine = Key.own(path)
    assert mine.public == quicker[0].public == Key.own(path).public
