"""The key: with it, a locked checkpoint is the base again, bit for bit.

For every tensor that the lock changed, the key has the exclusive or of base and locked bits; for one that the locked
checkpoint lacks, or has in another shape or dtype, the base's own. The base's other files are in it whole. So the key
is as large as what the lock changed, and *is* the base to whoever has the released files too: keep it like the base.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speclock.errors import InputError
from speclock.locks.card import read_card
from speclock.models.folders import MAY_HOLD_WEIGHTS, one_line
from speclock.release.files import Shipped, bits, described, digest_of, file_names, is_described
from speclock.workspace import new_folder, readable_os_errors

FORMAT = "speclock-key/1"

_BESIDE = "beside:"
"""Before the name of a file that the key holds as it is."""


def make_key(base: Path, locked: Path, out: Path) -> dict[str, Any]:
    """Write to ``out`` the key that turns the checkpoint in ``locked`` into the one in ``base``; readable by its owner
    alone, and opened once before it is there.

    Returns how many tensors are ``changed``, ``whole`` and the ``same``, its ``bytes``, and the base's files that are
    ``left_out``: weights in other formats. Raises :class:`InputError` where ``out`` exists or lies in the release, a
    folder holds no safetensors, the locked model's card speaks of another base, or the two are one model.
    """
    if out.exists():
        raise InputError(
            f"{out} exists. Choose another --out: a key that is lost cannot be made again from it."
        )
    if out.resolve().is_relative_to(locked.resolve()):
        raise InputError(f"{out} lies in the release. Choose another --out: whoever has both has the base.")
    before, after, card = Shipped.at(base), Shipped.at(locked), read_card(locked)
    if card is not None and not is_described(card["base"], base):
        raise InputError(
            f"{base} is not the base that {locked} was made of, by its lock card. Name that one."
        )
    have, held, kinds = dict(after.tensors()), dict[str, Tensor](), dict[str, Any]()
    for name, tensor in before.tensors():
        mine = have.get(name)
        kinds[name] = {**described(tensor), "as": "whole"}
        if mine is None or described(mine) != described(tensor):
            held[name] = tensor
            continue
        difference = bits(tensor) ^ bits(mine)
        kinds[name]["as"] = "changed" if difference.any() else "same"
        if difference.any():
            held[name] = difference
    if not held and set(have) == set(kinds):
        raise InputError(f"{locked} has the weights of {base}: there is nothing to unlock.")
    others = [name for name in file_names(base) if name not in before.weights]
    left_out = [name for name in others if PurePosixPath(name).suffix.lower() in MAY_HOLD_WEIGHTS]
    beside = {name: digest_of(base / name) for name in others if name not in left_out}
    sizes = {name: (base / name).stat().st_size for name in beside}
    for name in beside:
        # Of an empty file there is nothing to keep but that it is there.
        content = bytearray((base / name).read_bytes() or b"\0")
        held[f"{_BESIDE}{name}"] = torch.frombuffer(content, dtype=torch.uint8)
    told = {
        "format": FORMAT,
        "base": before.digest(),
        "locked": after.digest(),
        "tensors": kinds,
        "placed": before.placed(),
        "beside": beside,
        "sizes": sizes,
    }
    _save(held, {"speclock": json.dumps(told)}, out, locked)
    count = [kind["as"] for kind in kinds.values()]
    return {
        **{"base": told["base"], "locked": told["locked"]},
        **{kind: count.count(kind) for kind in ("changed", "whole", "same")},
        "bytes": out.stat().st_size,
        "left_out": left_out,
    }


def unlock(locked: Path, key: Path, out: Path) -> str:
    """Write to the new folder ``out`` the base that ``key`` was made of; returns the SHA-256 of its tensors.

    Raises :class:`InputError` for a file that is no key, for the key of other weights, and for one that is damaged.
    """
    told = _read(key)
    after = Shipped.at(locked)
    if after.digest() != told["locked"]:
        raise InputError(
            f"{key} is no key of {locked}: it was made for other weights. Find the one of this release."
        )
    have = dict(after.tensors())
    damaged = InputError(f"{key} is damaged: what it gives is not the base it was made of. Fetch it again.")
    try:
        with new_folder(out) as folder, safe_open(key, framework="pt") as held:
            for file, of in told["placed"].items():
                tensors = {name: _tensor(held, name, told["tensors"][name], have) for name in of["tensors"]}
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / file, metadata=of["metadata"] or None)
            for name, sha256 in told["beside"].items():
                content = held.get_tensor(f"{_BESIDE}{name}").numpy().tobytes()[: told["sizes"][name]]
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
                if digest_of(folder / name) != sha256:
                    raise damaged
            found = Shipped.at(folder).digest()
            if found != told["base"]:
                raise damaged
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise damaged from error
    return found


def _tensor(held: Any, name: str, kind: dict[str, Any], have: dict[str, Tensor]) -> Tensor:
    if kind["as"] == "same":
        return have[name]
    tensor: Tensor = held.get_tensor(name)
    if kind["as"] == "changed":
        return (bits(have[name]) ^ tensor).view(have[name].dtype).reshape(kind["shape"])
    return tensor


def _save(held: dict[str, Tensor], told: dict[str, str], out: Path, locked: Path) -> None:
    """Whole or not at all, nobody else's to read, and opened once: what is lost with a bad key is the base."""
    with readable_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
            fresh = Path(place) / "key"
            try:
                save_file(held, fresh, metadata=told)
            except SafetensorError as error:
                raise InputError(f"cannot write {out}: {one_line(error)}.") from error
            os.chmod(fresh, 0o600)
            unlock(locked, fresh, Path(place) / "base")
            os.replace(fresh, out)


def _read(key: Path) -> dict[str, Any]:
    """What a key says of itself. A key is its publisher's, but its names become names of files."""
    if not key.is_file():
        raise InputError(f"{key}: no such file. Give the key that `speclock key` wrote.")
    try:
        with safe_open(key, framework="pt") as held:
            told: dict[str, Any] = json.loads((held.metadata() or {}).get("speclock", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{key} is no key ({one_line(error)}). Give the file that `speclock key` wrote."
        ) from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise InputError(f"{key} is no key of this version. Give the file that `speclock key` wrote.")
    for name in (*told.get("placed", ()), *told.get("beside", ())):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable():
            raise InputError(f"{key} would write {name!a}, which is no file of a checkpoint. Do not use it.")
    return told
