"""A model as speclock handles it: a module, what encodes its inputs, and where it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from speclock.tasks.base import Modality, Source


@dataclass(eq=False)
class Model:
    """A module together with what a task needs to feed it and what a file needs to hold it."""

    module: nn.Module
    name: str
    """As the user gave it: a built-in name, a folder, a hub id."""
    modality: Modality
    source: Source
    tokenizer: Any = None
    """A Hugging Face tokenizer for text models."""
    channels: int = 3
    """Image channels the module takes; grey images are repeated to fill them."""
    image_size: int | None = None
    """Side in pixels that the module insists on, or None where any will do."""
    labels: tuple[str, ...] | None = None
    """What the head's outputs mean; None where the model has no trained head."""
    build: Callable[[], nn.Module] | None = field(default=None, repr=False)
    """Builds the same architecture freshly initialised; None: reset every submodule's parameters."""

    def copy(self) -> Model:
        """The same model with its own copy of the weights."""
        return replace(self, module=copy.deepcopy(self.module))
