"""Which layers of a module feed which, found by running it: names say little, and tracing fails on many models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from speclock.curvature.bounds import ELEMENTWISE

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.tasks.base import Task

Run = Callable[[nn.Module], Any]
"""Runs a module on some fixed inputs."""

LAYERS = (nn.Linear, nn.Conv2d)


def sample_run(model: Model, task: Task, examples: int = 8) -> Run:
    """Runs a module on the first of a task's training examples, as ``model`` is fed."""
    batch = task.encode(task.train.take(np.arange(min(examples, len(task.train)))), model)
    device = next(model.module.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    return lambda module: task.answer(module, batch)


def call_order(module: nn.Module, run: Run) -> list[str]:
    """Names of the linear layers and convolutions in the order in which a forward pass first calls them."""
    names: list[str] = []
    hooks = [
        submodule.register_forward_pre_hook(lambda *_, name=name: names.append(name))
        for name, submodule in module.named_modules()
        if isinstance(submodule, LAYERS)
    ]
    _run_once(module, run, hooks)
    return list(dict.fromkeys(names))


def feeding(
    module: nn.Module,
    run: Run,
    givers: tuple[type[nn.Module], ...] = (nn.Linear,),
    takers: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> list[tuple[str, str]]:
    """Pairs of a giver and a taker, linear layers both if nothing else is said, of which the second is given the
    very tensor that the first returns."""
    given: dict[int, str] = {}
    held: list[Tensor] = []
    pairs: list[tuple[str, str]] = []

    def received(name: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs and id(inputs[0]) in given:
            pairs.append((given[id(inputs[0])], name))

    def returned(name: str, output: Tensor) -> None:
        given[id(output)] = name
        held.append(output)  # an identity is reused once its object is gone

    hooks = []
    for name, submodule in module.named_modules():
        if isinstance(submodule, takers):
            hooks.append(
                submodule.register_forward_pre_hook(lambda _, inputs, name=name: received(name, inputs))
            )
        if isinstance(submodule, givers):
            hooks.append(
                submodule.register_forward_hook(lambda _, __, output, name=name: returned(name, output))
            )
    _run_once(module, run, hooks)
    return pairs


def fully_connected_end(module: nn.Module, run: Run) -> tuple[nn.Sequential, Tensor]:
    """The linear layers at a module's end with the activations between them, and what enters the first of them.

    Found backwards from the module's answer: each must be given the very tensor that the one before it returned, as
    one row an example. Dropout, which is off in evaluation mode, is left out. Without a layer where the answer is
    no linear layer's output.
    """
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}
    held: list[Tensor] = []

    def note(submodule: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs and inputs[0] is not output:
            made_by[id(output)] = submodule, inputs[0]
            held.append(output)  # an identity is reused once its object is gone

    kinds = (nn.Linear, nn.Dropout, *ELEMENTWISE)
    hooks = [m.register_forward_hook(note) for m in module.modules() if isinstance(m, kinds)]
    answer = _run_once(module, run, hooks)
    x = answer if isinstance(answer, Tensor) else answer.logits
    found, entering = list[nn.Module](), x
    between = list[nn.Module]()  # an activation, until the layer before it is found
    while x.ndim == 2 and (step := made_by.get(id(x))) is not None:
        submodule, x = step
        if isinstance(submodule, nn.Linear):
            found, entering, between = [submodule, *between, *found], x, []
        elif not isinstance(submodule, nn.Dropout):
            if between or not found:
                break
            between = [submodule]
    return nn.Sequential(*found), entering


def _run_once(module: nn.Module, run: Run, hooks: Sequence[RemovableHandle]) -> Any:
    try:
        return _evaluated(module, run)
    finally:
        for hook in hooks:
            hook.remove()


def outputs(module: nn.Module, run: Run) -> Tensor:
    """What a module answers on the fixed inputs, in evaluation mode and fp32."""
    out = _evaluated(module, run)
    return (out if isinstance(out, Tensor) else out.logits).float()


@torch.no_grad()
def _evaluated(module: nn.Module, run: Run) -> Any:
    """Evaluation mode: a look at the model must not move its running averages."""
    was_training = module.training
    module.eval()
    out = run(module)
    module.train(was_training)
    return out


def replace_submodules_(module: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put other submodules in the places that ``new`` names."""
    for name, submodule in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, submodule)
