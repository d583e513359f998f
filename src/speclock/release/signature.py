"""Ed25519 signatures of a manifest [RFC 8032], with keys in PEM files as OpenSSL writes and reads them.

``openssl pkeyutl -verify -rawin -pubin -inkey public.pem -in manifest.json -sigfile manifest.sig`` checks one without
speclock.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from speclock.errors import InputError
from speclock.release.manifest import NAME, Manifest, as_bytes
from speclock.workspace import write_bytes

SIGNATURE = "manifest.sig"

_MAKE = "openssl genpkey -algorithm ed25519 -out private.pem, or speclock sign --new-key, makes one"


def new_private_key(private: Path) -> Path:
    """Write a fresh private key to ``private``, its owner's alone to read, and the public one beside it; returns
    where that is. Raises :class:`InputError` where one of the files exists."""
    ed25519, serialization = _cryptography()
    public = private.with_suffix(".pub.pem")
    for file in (private, public):
        if file.exists():
            raise InputError(f"{file} exists. Leave --new-key out to sign with it, or choose another name.")
    key = ed25519.Ed25519PrivateKey.generate()
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
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
        key = serialization.load_pem_private_key(private.read_bytes(), password and password.encode())
    except FileNotFoundError:
        raise InputError(f"{private}: no such file ({_MAKE}).") from None
    except TypeError as error:  # with a password where there is none, or without
        raise InputError(f"{private}: {error}. Give SPECLOCK_KEY_PASSWORD accordingly.") from error
    except (ValueError, OSError) as error:
        raise InputError(
            f"{private} is no private key in PEM, or the password is wrong ({_MAKE})."
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{private} is another kind of key than Ed25519 ({_MAKE}).")
    said = as_bytes(manifest)
    # The signature first: a manifest without one would look like a release that nobody signed.
    write_bytes(folder / SIGNATURE, key.sign(said))
    write_bytes(folder / NAME, said)


def is_signed(manifest: Path, public: Path) -> bool:
    """Whether the signature beside ``manifest`` is that of the public key.

    Raises :class:`InputError` for a file that is no Ed25519 public key; without a signature there is none.
    """
    ed25519, serialization = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        key = serialization.load_pem_public_key(public.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{public}: no such file. Give the publisher's public key.") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{public} is no public key in PEM. Give the publisher's.") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{public} is another kind of key than Ed25519. Give the publisher's.")
    signature = manifest.with_name(SIGNATURE)
    if not signature.is_file():
        return False
    try:
        key.verify(signature.read_bytes(), manifest.read_bytes())
    except InvalidSignature:
        return False
    return True


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError("signatures come with cryptography: pip install 'speclock[release]'.") from error
    return ed25519, serialization
