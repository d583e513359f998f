"""Which layers of a module feed which, found by running it: names say little, and tracing fails on many models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module], Any]
"""Runs a module on some fixed inputs."""

LAYERS = (nn.Linear, nn.Conv2d)


def call_order(module: nn.Module, run: Run) -> list[str]:
    """Names of the linear layers and convolutions in the order in which a forward pass first calls them."""
    names, hooks = [], []
    for name, submodule in module.named_modules():
        if isinstance(submodule, LAYERS):
            hooks.append(submodule.register_forward_pre_hook(lambda *_, name=name: names.append(name)))
    try:
        with torch.no_grad():
            run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(names))


def feeding(module: nn.Module, run: Run) -> list[tuple[str, str]]:
    """Pairs of linear layers of which the second is given the very tensor that the first returns."""
    given: dict[int, str] = {}
    held: list[Tensor] = []
    pairs, hooks = [], []

    def returned(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            given[id(output)] = name
            held.append(output)  # an identity is reused once its object is gone

        return hook

    def received(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and id(inputs[0]) in given:
                pairs.append((given[id(inputs[0])], name))

        return hook

    for name, submodule in module.named_modules():
        if isinstance(submodule, nn.Linear):
            hooks.append(submodule.register_forward_pre_hook(received(name)))
            hooks.append(submodule.register_forward_hook(returned(name)))
    try:
        with torch.no_grad():
            run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


@torch.no_grad()
def outputs(module: nn.Module, run: Run) -> Tensor:
    """What a module answers on the fixed inputs, in evaluation mode and fp32."""
    was_training = module.training
    module.eval()
    out = run(module)
    module.train(was_training)
    return (out if isinstance(out, Tensor) else out.logits).float()


def replace_submodules_(module: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put other submodules in the places that ``new`` names."""
    for name, submodule in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, submodule)
