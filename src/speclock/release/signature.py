"""Ed25519 signatures of a manifest [RFC 8032], with keys in PEM files as OpenSSL writes and reads them.

``openssl pkeyutl -verify -rawin -pubin -inkey public.pem -in manifest.json -sigfile manifest.sig`` checks one without
speclock.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from speclock.errors import InputError
from speclock.release.manifest import NAME, SIGNATURE, Manifest, as_bytes
from speclock.workspace import readable_os_errors, write_bytes

_MAKE = "openssl genpkey -algorithm ed25519 -out private.pem, or speclock sign --new-key, makes one"
_LENGTH = 64
"""Bytes of a signature."""


def new_private_key(private: Path, password: str | None = None) -> Path:
    """Write a fresh private key to ``private``, its owner's alone to read and under the password where one is given,
    and the public one beside it; returns where that is. Raises :class:`InputError` where one of the files exists."""
    ed25519, serialization = _cryptography()
    public = private.with_suffix(".pub.pem")
    for file in (private, public):
        if file.exists():
            raise InputError(f"{file} exists. Leave --new-key out to sign with it, or choose another name.")
    key = ed25519.Ed25519PrivateKey.generate()
    pem, protection = serialization.Encoding.PEM, serialization.NoEncryption()
    if password:
        protection = serialization.BestAvailableEncryption(password.encode())
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, protection)
    with readable_os_errors(private):
        private.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(secret)
    write_bytes(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(manifest: Manifest, folder: Path, private: Path, password: str | None = None) -> None:
    """Lay ``manifest`` and its signature in ``folder``.

    Raises :class:`InputError` for a file that is no Ed25519 private key, and without the password of one that has one.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read(private), password.encode() if password else None)
    except TypeError as error:  # with a password where there is none, or without
        raise InputError(f"{private}: {error} Give SPECLOCK_KEY_PASSWORD accordingly.") from error
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of a file that is none
        raise InputError(
            f"{private} is no private key in PEM, or the password is wrong ({_MAKE})."
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{private} is another kind of key than Ed25519 ({_MAKE}).")
    said = as_bytes(manifest)
    # The signature first: a manifest without one would look like a release that nobody signed.
    write_bytes(folder / SIGNATURE, key.sign(said))
    write_bytes(folder / NAME, said)


def is_signed(content: bytes, manifest: Path, public: Path) -> bool:
    """Whether the signature beside ``manifest``, whose bytes are ``content``, is that of the public key.

    Raises :class:`InputError` for a file that is no Ed25519 public key; without a signature there is none.
    """
    ed25519, serialization = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        key = serialization.load_pem_public_key(_read(public))
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of a file that is none
        raise InputError(f"{public} is no public key in PEM. Give the publisher's.") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{public} is another kind of key than Ed25519. Give the publisher's.")
    signature = manifest.with_name(SIGNATURE)
    if not signature.is_file() or signature.stat().st_size != _LENGTH:
        return False
    try:
        key.verify(signature.read_bytes(), content)
    except InvalidSignature:
        return False
    return True


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise InputError(f"{file}: no such file. Give a key in PEM ({_MAKE}).")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}). Mend its permissions.") from error


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError("signatures come with cryptography: pip install 'speclock[release]'.") from error
    return ed25519, serialization
