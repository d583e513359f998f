"""The manifest: what a release is, in numbers that can be measured again on any copy of it.

Beside the digests of its files it has, matrix by matrix, the top singular values and a *sketch*, of the locked weights
and of the base's. A sketch is 61 numbers whose differences estimate distances between weights [count sketch; Charikar,
Chen & Farach-Colton 2002]: by them a copy that was rounded, fine-tuned or repaired can be placed between the locked
model and the base, which nobody needs for it.
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
from torch import Tensor
from typing_extensions import TypedDict

from speclock.audits.record import read
from speclock.errors import InputError
from speclock.locks.card import NAME as CARD
from speclock.locks.card import Card, describes, read_card
from speclock.models import identity, load
from speclock.models.folders import examine
from speclock.release.files import Shipped
from speclock.sources.cache import digest
from speclock.spectra import singular_values
from speclock.tasks.base import Kind

NAME = "manifest.json"
FORMAT: Literal["speclock-manifest/1"] = "speclock-manifest/1"

_TOP_K = 2
_BUCKETS = 61
"""Numbers of a sketch: a distance is found to within an eighth, and that of many matrices together far better. A prime,
so that a column that outweighs the others, as transformers have some, is in all of them."""
_FEW = 4096
"""Weights below which a matrix has no sketch, whose numbers would give too much of it away."""
_LONGEST = 64 << 20

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Amount = Annotated[float, Field(ge=0)]
_STRICT = with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))


@_STRICT
class Measured(TypedDict):
    """One weight matrix, unfolded to (out, everything else)."""

    shape: list[int]
    sigma: list[_Amount]
    """The top singular values of the locked weights."""
    sketch: list[float]
    sigma_base: NotRequired[list[_Amount]]
    sketch_base: NotRequired[list[float]]


@_STRICT
class Manifest(TypedDict):
    """What the publisher says of a release, JSON-able."""

    format: Literal["speclock-manifest/1"]
    name: str
    lock: str
    """The lock's name, as the card has it."""
    files: dict[str, _Sha256]
    """Every file of the folder, but for this one and its signature."""
    matrices: dict[str, Measured]
    audit: NotRequired[dict[str, Any]]
    """What the audit found that came with it: its verdict in words, its summary's main numbers, its file's digest."""


def describe(folder: Path, base: Path | None = None, audit: Path | None = None) -> Manifest:
    """The manifest of the locked model in ``folder``, beside its base, with the verdict of an audit of it.

    Raises :class:`InputError` for a folder without a lock card, or with another model's; for a base or an audit of
    another model; and for folders whose weights are not in safetensors files.
    """
    shipped, card = Shipped.at(folder), _card_of(folder)
    before = {} if base is None else {name: _measured(name, W) for name, W in matrices(Shipped.at(base))}
    found: dict[str, Measured] = {}
    for name, W in matrices(shipped):
        found[name] = _measured(name, W)
        of = before.get(name)
        if of is not None and of["shape"] == found[name]["shape"]:
            found[name] |= {"sigma_base": of["sigma"], "sketch_base": of["sketch"]}
    if base is not None and not any("sigma_base" in each for each in found.values()):
        raise InputError(f"{base} shares no weight matrix with {folder}. Name the base that was locked.")
    told: Manifest = {
        "format": FORMAT,
        "name": folder.resolve().name,
        "lock": card["lock"],
        "files": digests(folder),
        "matrices": found,
    }
    if audit is not None:
        told["audit"] = _verdict_of(audit, card)
    return told


def read_manifest(file: Path) -> Manifest:
    """The manifest in ``file``. Raises :class:`InputError` for a file that is none, with what is wrong with it."""
    try:
        if file.stat().st_size > _LONGEST:
            raise InputError(f"{file} is larger than any manifest.")
        manifest: Manifest = TypeAdapter(Manifest).validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{file}: no such file. Name the publisher's with --manifest.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(f"{file} is no manifest: {where}: {first['msg']}.") from error
    return manifest


def matrices(shipped: Shipped) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of two dimensions or more by name, unfolded to (out, everything else), in fp32."""
    for name, tensor in shipped.tensors():
        if tensor.is_floating_point() and tensor.ndim >= 2 and min(tensor.shape) > 0:
            yield name, tensor.float().flatten(1)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in the folder, at any depth, but for the manifest and its signature."""
    return {
        str(file.relative_to(folder).as_posix()): digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).as_posix() not in (NAME, "manifest.sig")
    }


def sketch(name: str, W: Float[Tensor, "m n"]) -> Float[np.ndarray, " b"]:
    """Sums of ±``W`` over 61 interleaved parts, the signs drawn by the matrix's name; none for a small matrix.

    Linear in ``W``, and for any V of the same name and shape E[sketch(W)·sketch(V)] = <W, V>, with a standard deviation
    of about √(2/61) ‖W‖‖V‖ at most. The signs are Philox's raw bits, the same on every machine and version.
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


def _measured(name: str, W: Float[Tensor, "m n"]) -> Measured:
    return {
        "shape": list(W.shape),
        "sigma": [float(f"{value:.7g}") for value in singular_values(W, _TOP_K).tolist()],
        "sketch": [float(f"{value:.7g}") for value in sketch(name, W)],
    }


def _card_of(folder: Path) -> Card:
    card = read_card(folder)
    if card is None:
        raise InputError(
            f"{folder} has no lock card ({CARD}). Lock it with speclock, or sign the locked folder."
        )
    if not describes(card, identity(load(str(folder), kind=_kind(folder), device="cpu"))):
        raise InputError(
            f"{folder / CARD} is the card of another model. Sign the folder as `speclock lock` left it."
        )
    return card


def _kind(folder: Path) -> Kind:
    """What the checkpoint was saved as."""
    classes = examine(folder).config.get("architectures") or [""]
    return "causal-lm" if str(classes[0]).endswith(("ForCausalLM", "LMHeadModel")) else "classification"


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


def as_bytes(manifest: Manifest) -> bytes:
    """As it is written, and signed."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
