"""Ed25519 keys: of this person, for journals and mandates; and names for other people's keys.

A signature is raw Ed25519 over the exact bytes that are stored; nothing is written anew before it
is checked. The private key lies in the home folder, readable by its owner alone.
Source: RFC 8032, by the library `cryptography`.
"""

import fcntl
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from k2lab.errors import InputError

KEY_BYTES, SIGNATURE_BYTES = 32, 64


class Key:
    """A private key; `public` is what others know it by, in hexadecimal."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"Key({self.public[:16]}…)"

    @classmethod
    def fresh(cls) -> "Key":
        """A new key, kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def own(cls, path: Path | None = None) -> "Key":
        """The key in a file, by default ~/.k2lab/key.pem; made at the first use."""
        path = path or Path.home() / ".k2lab" / "key.pem"
        if not path.exists():
            _keep(cls.fresh(), path)
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise _no_key(path, str(error)) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise _no_key(path, f"it is a {type(private).__name__}")
        return cls(private)

    def sign(self, data: bytes) -> str:
        """The signature of exactly these bytes, in hexadecimal."""
        return self._private.sign(data).hex()


def verified(public: str, signature: str, data: bytes) -> bool:
    """Whether the key signed exactly these bytes; false too where either is no key or signature."""
    try:
        key, sealed = bytes.fromhex(public), bytes.fromhex(signature)
        if len(key) != KEY_BYTES or len(sealed) != SIGNATURE_BYTES:
            return False
        Ed25519PublicKey.from_public_bytes(key).verify(sealed, data)
    except (ValueError, InvalidSignature):
        return False
    return True


def _keep(key: Key, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = key._private.private_bytes(  # noqa: SLF001 - the other half of `own`
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    draft, folder = path.with_name(f"{path.name}.new"), os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():  # somebody was quicker: theirs is the key
            return
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
        draft.replace(path)
    finally:
        os.close(folder)


def _no_key(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} holds no private key that can be used: {why}.",
        expected="an Ed25519 key in PEM form, without a password.",
        mend="Name another file, or move this one away so that a new key is made.",
    )
