"""A model folder as it is shipped: its tensors, read one at a time, and every other file, byte for byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from speclock.errors import InputError
from speclock.locks.card import NAME as CARD
from speclock.locks.card import BaseClaim, Card, describes, read_card
from speclock.models import identity, load
from speclock.models.folders import examine
from speclock.sources.cache import digest
from speclock.tasks.base import Kind


@dataclass(frozen=True)
class Shipped:
    """A folder whose weights lie in safetensors files."""

    path: Path
    weights: tuple[str, ...]
    """The files that hold them, by name."""

    @classmethod
    def at(cls, path: Path) -> Shipped:
        """The folder at ``path``. Raises :class:`InputError` for one that holds no model, or its weights in pickles."""
        found = examine(path)
        for file in found.weights:
            if file.suffix != ".safetensors":
                raise InputError(
                    f"{path} holds its weights in {file.name}. Save them as model.safetensors: a pickle can run code."
                )
            if not file.is_relative_to(path) or ".." in file.parts:
                raise InputError(f"{path} has weights in {file}, outside of it. Fetch or copy it again.")
        return cls(path, tuple(file.relative_to(path).as_posix() for file in found.weights))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, in the order of the names; one is in memory at a time."""
        with ExitStack() as stack:
            opened = [
                stack.enter_context(safe_open(self.path / file, framework="pt")) for file in self.weights
            ]
            where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 – no mapping
            for name in sorted(where):
                yield name, where[name].get_tensor(name)

    def placed(self) -> dict[str, dict[str, Any]]:
        """Each weight file's metadata, and the names of its tensors."""
        found = {}
        for file in self.weights:
            with safe_open(self.path / file, framework="pt") as held:
                found[file] = {"metadata": held.metadata() or {}, "tensors": sorted(held.keys())}
        return found

    def digest(self) -> str:
        """SHA-256 over name, dtype, shape and bits of every tensor, whatever the files that hold them."""
        found = hashlib.sha256()
        for name, tensor in self.tensors():
            found.update(f"{name} {described(tensor)}\n".encode())
            found.update(bits(tensor).numpy().data)
        return found.hexdigest()


def described(tensor: Tensor) -> dict[str, Any]:
    """Dtype and shape, JSON-able."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, a flat view of ``uint8``: equal for equal bits, NaN included."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def file_names(folder: Path) -> list[str]:
    """Every file at any depth, relative to ``folder``; hidden ones, of a repository or a download, are no part of it.

    A link to a folder counts as a file: what it leads to is not looked at.
    Raises :class:`InputError` where there is no folder, and for a name that is no text.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give a model folder.")
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in links]
        found += [
            (Path(root) / name).relative_to(folder).as_posix() for name in (*files, *links) if name[0] != "."
        ]
    for name in found:
        if not name.isprintable():
            raise InputError(f"{folder} holds a file called {name!a}. Give it a name that can be printed.")
    return sorted(found)


def digest_of(file: Path) -> str:
    """SHA-256 of a regular file. Raises :class:`InputError` for anything else, and for one that cannot be read."""
    if not file.is_file():
        raise InputError(f"{file} is no file. Take it out of the folder.")
    try:
        return digest(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}). Mend its permissions.") from error


def card_of(folder: Path) -> Card:
    """The folder's lock card. Raises :class:`InputError` where there is none, or another model's."""
    card = read_card(folder)
    if card is None:
        raise InputError(f"{folder} has no lock card ({CARD}). Give the folder as `speclock lock` left it.")
    if not is_described(card, folder):
        raise InputError(
            f"{folder / CARD} is the card of another model. Give the folder as `speclock lock` left it."
        )
    return card


def is_described(claim: Card | BaseClaim, folder: Path) -> bool:
    """Whether a claim speaks of the model in ``folder``."""
    classes = examine(folder).config.get("architectures") or [""]
    kind: Kind = "causal-lm" if str(classes[0]).endswith(("ForCausalLM", "LMHeadModel")) else "classification"
    return describes(claim, identity(load(str(folder), kind=kind, device="cpu")))
