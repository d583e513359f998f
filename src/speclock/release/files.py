"""A model folder as it is shipped: its tensors, read one at a time, and its other files, bytes for bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from speclock.errors import InputError
from speclock.models.folders import MAY_HOLD_WEIGHTS, examine

OWN = ("speclock.json", "manifest.json", "manifest.sig")
"""What speclock itself lays beside a checkpoint: the lock card, the manifest and its signature."""


@dataclass(frozen=True)
class Shipped:
    """A folder whose weights lie in safetensors files."""

    path: Path
    weights: tuple[Path, ...]

    @classmethod
    def at(cls, path: Path) -> Shipped:
        """The folder at ``path``. Raises :class:`InputError` for one that holds no model, or its weights in pickles."""
        folder = examine(path)
        pickles = [file.name for file in folder.weights if file.suffix != ".safetensors"]
        if pickles:
            raise InputError(
                f"{path} holds its weights in {pickles[0]}. Save them as model.safetensors: a pickle can run any code."
            )
        return cls(path, folder.weights)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, in the order of the names; one is in memory at a time."""
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, framework="pt")) for file in self.weights]
            where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 – no mapping
            for name in sorted(where):
                yield name, where[name].get_tensor(name)

    def placed(self) -> dict[str, str]:
        """In which file each tensor lies."""
        found: dict[str, str] = {}
        for file in self.weights:
            with safe_open(file, framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file.name)
        return found

    def others(self) -> dict[str, bytes]:
        """What lies beside the weights and belongs to the checkpoint: name → content."""
        return {
            file.name: file.read_bytes()
            for file in sorted(self.path.iterdir())
            if file.is_file()
            and not file.name.startswith(".")
            and file.name not in OWN
            and file.suffix.lower() not in MAY_HOLD_WEIGHTS
        }

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
