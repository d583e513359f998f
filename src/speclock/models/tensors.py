"""A module's tensors: copied to another device or dtype, and the device that a model is loaded to."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from speclock.environment import accelerator_here
from speclock.errors import InputError


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, those that a checkpoint does not hold included; tied ones once."""
    return itertools.chain(module.named_parameters(), module.named_buffers())


def copied(module: nn.Module, new: Callable[[str, Tensor], Tensor] = lambda _, old: old) -> nn.Module:
    """A deep copy in which ``new(name, tensor)``, or a clone of what it returns as it was, stands for every
    tensor; ties, modes and flags are kept.

    Each tensor is copied once, to where it shall be: the copy on another device takes no memory on the first.
    """
    memo: dict[int, object] = {}
    with torch.no_grad():
        for name, old in tensors(module):
            value = new(name, old)
            value = value.detach().clone() if value is old else value
            memo[id(old)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    return copy.deepcopy(module, memo)


def placed(module: nn.Module, like: Tensor) -> nn.Module:
    """A deep copy on ``like``'s device, its floating-point tensors in ``like``'s dtype."""
    return copied(
        module,
        lambda _, tensor: (
            tensor.to(like.device, like.dtype) if tensor.is_floating_point() else tensor.to(like.device)
        ),
    )


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first tensor is; the CPU for a module without any."""
    return next((tensor.device for _, tensor in tensors(module)), torch.device("cpu"))


def chosen_device(name: str | None) -> torch.device:
    """The device of that name, or without a name the accelerator where there is one and else the CPU.

    Raises :class:`InputError` for a device that is not there, with those that are.
    """
    accelerator = accelerator_here()
    if name is None:
        return accelerator or torch.device("cpu")
    there = ["cpu"]
    if accelerator is not None:
        there += [
            accelerator.type,
            *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())),
        ]
    if name not in there:
        raise InputError(f"there is no device {name!r} here. Choose one of: {', '.join(there)}.")
    return torch.device(name)
