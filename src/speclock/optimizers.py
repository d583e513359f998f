"""Optimizers by name."""

from __future__ import annotations

from typing import Any

import torch

from speclock.errors import InputError
from speclock.registry import unknown

# Sparse Adam takes sparse gradients only, which no layer that speclock trains gives.
_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    if cls not in (torch.optim.Optimizer, torch.optim.SparseAdam)
}


def optimizer_names() -> list[str]:
    """Every optimizer that a recipe can name."""
    return sorted([*_OPTIMIZERS, "sgd-momentum"])


def optimizer_class(name: str) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class and the extra arguments behind a name; :class:`InputError` with the nearest for a typo."""
    if name == "sgd-momentum":
        return torch.optim.SGD, {"momentum": 0.9}
    if name not in _OPTIMIZERS:
        raise InputError(unknown("optimizer", name, optimizer_names()))
    return _OPTIMIZERS[name], {}
