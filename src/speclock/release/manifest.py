"""The manifest: what a release is, in numbers that can be measured again on any copy of it.

Beside the digests of its files it has, matrix by matrix, the largest singular value and a *sketch* of the released
weights: 61 numbers whose differences estimate distances between weights [count sketch; Charikar, Chen & Farach-Colton
2002]. By them a copy that was rounded, fine-tuned or repaired can be placed beside the release. Of the base it has the
digest alone: its singular values would be a key to a lock that only raised them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from speclock.audits.record import read
from speclock.errors import InputError
from speclock.locks.card import BaseClaim
from speclock.release.files import Shipped, card_of, digest_of, file_names
from speclock.sources.cache import digest
from speclock.spectra import singular_values

NAME, SIGNATURE = "manifest.json", "manifest.sig"
FORMAT: Literal["speclock-manifest/1"] = "speclock-manifest/1"

_BUCKETS = 61
"""Numbers of a sketch: a distance is found to within an eighth, and that of many matrices together far better. A prime,
so that a column that outweighs the others, as transformers have some, is in all of them."""
_FEW = 4096
"""Weights below which a matrix has no sketch: so few move it that 61 numbers say little."""
_LONGEST = 64 << 20

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Positive = Annotated[float, Field(gt=1e-30, lt=1e30)]
_Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
_STRICT = with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))


@_STRICT
class Measured(TypedDict):
    """One weight matrix of the release, unfolded to (out, everything else)."""

    shape: list[int]
    sigma: _Positive
    """Its largest singular value."""
    sketch: list[_Number]


@_STRICT
class Manifest(TypedDict):
    """What the publisher says of a release, JSON-able."""

    format: Literal["speclock-manifest/1"]
    name: str
    lock: str
    """The lock's name, as the card has it."""
    base: BaseClaim
    """What was locked, as the card has it: digests, by which it is known again."""
    files: dict[str, _Sha256]
    """Every file of the folder, but for this one, its signature and hidden ones."""
    matrices: dict[str, Measured]
    audit: NotRequired[dict[str, Any]]
    """What the audit found that came with it: its verdict in words, its summary's main numbers, its file's digest."""


def describe(folder: Path, audit: Path | None = None) -> Manifest:
    """The manifest of the locked model in ``folder``, with the verdict of an audit of it.

    Raises :class:`InputError` for a folder without a lock card, or with another model's; for an audit of another
    model; for weights that are not in safetensors files; and for a folder that holds a key of any kind.
    """
    shipped, card, files = Shipped.at(folder), card_of(folder), digests(folder)
    for name in files:
        if _is_secret(folder / name):
            raise InputError(
                f"{folder / name} is a key, which whoever gets the folder would have. Move it away."
            )
    told: Manifest = {
        "format": FORMAT,
        "name": folder.resolve().name,
        "lock": card["lock"],
        "base": card["base"],
        "files": files,
        "matrices": {name: measured(name, W) for name, W in matrices(shipped) if W.any()},
    }
    if audit is not None:
        told["audit"] = _verdict_of(audit, card)
    return told


def parsed(file: Path) -> tuple[Manifest, bytes]:
    """The manifest in ``file``, and the bytes that it was read from.

    Raises :class:`InputError` for a file that is none, with what is wrong with it.
    """
    if not file.is_file():  # to read a pipe would wait for ever
        raise InputError(f"{file}: no such file. Name the publisher's with --manifest.")
    try:
        with file.open("rb") as opened:
            content = opened.read(_LONGEST + 1)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}). Mend its permissions.") from error
    if len(content) > _LONGEST:
        raise InputError(f"{file} is larger than any manifest.")
    try:
        manifest: Manifest = TypeAdapter(Manifest).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(f"{file} is no manifest: {where!a}: {first['msg']}.") from error
    return manifest, content


def matrices(shipped: Shipped) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of two dimensions or more by name, unfolded to (out, everything else), in fp32."""
    for name, tensor in shipped.tensors():
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel():
            yield name, tensor.float().flatten(1)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in the folder but for the manifest and its signature, which lie beside them."""
    return {name: digest_of(folder / name) for name in file_names(folder) if name not in (NAME, SIGNATURE)}


def measured(name: str, W: Float[Tensor, "m n"]) -> Measured:
    """What a manifest has of the matrix of that name."""
    return {
        "shape": list(W.shape),
        "sigma": float(f"{float(singular_values(W, 1)[0]):.7g}"),
        "sketch": [float(f"{value:.7g}") for value in sketch(name, W)],
    }


def sketch(name: str, W: Float[Tensor, "m n"]) -> Float[np.ndarray, " b"]:
    """Sums of ±``W`` over 61 interleaved parts, the signs drawn by the matrix's name; none for a small matrix.

    Linear in ``W``, and for any V of the same name and shape E[sketch(W)·sketch(V)] = <W, V>, with a standard
    deviation of about √(2/61) ‖W‖‖V‖ at most. The signs are Philox's raw bits, the same on every machine and version.
    """
    if W.numel() < _FEW:
        return np.zeros(0)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(-(-W.numel() // 64))
    signs = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[: W.numel()]
    signed = torch.from_numpy(signs).to(W).mul_(2).sub_(1).mul_(W.reshape(-1)).double()
    short = -W.numel() % _BUCKETS
    folded: np.ndarray = torch.nn.functional.pad(signed, (0, short)).view(-1, _BUCKETS).sum(0).numpy()
    return folded


def as_bytes(manifest: Manifest) -> bytes:
    """As it is written, and signed."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _is_secret(file: Path) -> bool:
    """Whether a file is a private key in PEM, or one of :mod:`speclock.release.key`."""
    with file.open("rb") as opened:
        if b"PRIVATE KEY-----" in opened.read(1 << 16):
            return True
    try:
        with safe_open(file, framework="pt") as held:
            return "speclock" in (held.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _verdict_of(audit: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    record = read(audit)
    if record.locked["fingerprint"] != card["fingerprint"]:
        raise InputError(f"{audit} is the audit of another model than the card's. Audit this one.")
    file = audit / "audit.json" if audit.is_dir() else audit
    numbers = ("uplift", "floor", "best_base", "best_locked", "strongest_attack")
    return {
        "verdict": record.verdict,
        "flags": [flag.name for flag in record.flags],
        **{name: record.summary[name] for name in numbers},
        "suite": record.suite["name"],
        "attack_task": record.attack_task["name"],
        "sha256": digest(file),
    }
