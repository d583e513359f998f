"""The key: with it, a locked checkpoint is the base again, bit for bit.

For every tensor that the lock changed, the key has the exclusive or of base and locked bits; for one that the locked
checkpoint lacks, or has in another shape or dtype, the base's own. Files beside the weights that differ are in it
whole. So the key is as large as what the lock changed, says nothing without the locked checkpoint that the difference
of two models would not say, and *is* the base to whoever has both: keep it like the base itself.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speclock.errors import InputError
from speclock.release.files import OWN, Shipped, bits, described
from speclock.workspace import new_folder

FORMAT = "speclock-key/1"

_BESIDE = "beside:"
"""Before the name of a file that the key holds as it is."""


def make_key(base: Path, locked: Path, out: Path) -> dict[str, Any]:
    """Write to ``out`` the key that turns the checkpoint in ``locked`` into the one in ``base``; readable by its owner
    alone.

    Returns what it holds: ``changed`` and ``whole`` tensors, and its ``bytes``. Raises :class:`InputError` where
    ``out`` exists, a folder holds no safetensors, or the two are one model.
    """
    if out.exists():
        raise InputError(
            f"{out} exists. Choose another --out: a key that is lost cannot be made again from it."
        )
    before, after = Shipped.at(base), Shipped.at(locked)
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
    beside, theirs = before.others(), after.others()
    for name, content in beside.items():
        if theirs.get(name) != content:
            # Of an empty file there is nothing to keep but that it is there.
            held[f"{_BESIDE}{name}"] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
    told = {
        "format": FORMAT,
        "base": before.digest(),
        "locked": after.digest(),
        "tensors": kinds,
        "placed": before.placed(),
        "beside": {name: len(content) for name, content in beside.items()},
    }
    _save(held, {"speclock": json.dumps(told)}, out)
    count = [kind["as"] for kind in kinds.values()]
    return {
        "base": told["base"],
        "locked": told["locked"],
        "changed": count.count("changed"),
        "whole": count.count("whole"),
        "same": count.count("same"),
        "bytes": out.stat().st_size,
    }


def unlock(locked: Path, key: Path, out: Path) -> str:
    """Write to the new folder ``out`` the base that ``key`` was made of; returns the SHA-256 of its tensors.

    Raises :class:`InputError` for a file that is no key, and for the key of another lock.
    """
    told = _read(key)
    after = Shipped.at(locked)
    if after.digest() != told["locked"]:
        raise InputError(
            f"{key} is no key of {locked}: it was made for other weights. Find the one of this release."
        )
    have, theirs = dict(after.tensors()), after.others()
    with new_folder(out) as folder, safe_open(key, framework="pt") as held:
        files: dict[str, dict[str, Tensor]] = {}
        for name, kind in told["tensors"].items():
            tensor = have[name] if kind["as"] == "same" else held.get_tensor(name)
            if kind["as"] == "changed":
                tensor = (bits(have[name]) ^ tensor).view(have[name].dtype).reshape(kind["shape"])
            files.setdefault(told["placed"][name], {})[name] = tensor
        for name, tensors in files.items():
            save_file(tensors, folder / name, metadata={"format": "pt"})
        keys = set(held.keys())
        for name, size in told["beside"].items():
            kept = f"{_BESIDE}{name}"
            content = held.get_tensor(kept).numpy().tobytes() if kept in keys else theirs[name]
            (folder / name).write_bytes(content[:size])
        found = Shipped.at(folder).digest()
        if found != told["base"]:
            raise InputError(
                f"{key} is damaged: what it gives is not the base it was made of. Fetch it again."
            )
    return found


def _save(held: dict[str, Tensor], told: dict[str, str], out: Path) -> None:
    """Whole or not at all, and nobody else's to read."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    try:
        save_file(held, name, metadata=told)
        os.chmod(name, 0o600)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(key: Path) -> dict[str, Any]:
    """What a key says of itself. A key is its publisher's, but its names become names of files."""
    try:
        with safe_open(key, framework="pt") as held:
            told: dict[str, Any] = json.loads((held.metadata() or {}).get("speclock", "{}"))
    except FileNotFoundError:
        raise InputError(f"{key}: no such file. Give the key that `speclock key` wrote.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{key} is no key ({error}). Give the file that `speclock key` wrote.") from error
    if told.get("format") != FORMAT:
        raise InputError(f"{key} is no key of this version. Give the file that `speclock key` wrote.")
    for name in {*told["placed"].values(), *told["beside"]}:
        if Path(name).name != name or name in OWN:
            raise InputError(f"{key} would write {name}, which is no file of a checkpoint. Do not use it.")
    return told
