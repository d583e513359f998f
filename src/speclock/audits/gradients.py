"""Whether a model's gradients are those of its loss: one that hides them withstands every attack but is no lock."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from speclock.models import Model
from speclock.spectra import WeightMatrix, weight_matrices
from speclock.tasks.base import Task

_EXAMPLES = 4
_MATRICES = 32
"""Weight matrices that are probed, evenly spread over the model: four forward passes each."""
_STEPS = (1e-6, 1e-3)
"""Relative sizes of the difference step. At the first, float64 rounding leaves 1e-10 of the loss and a rectifier's kink
hardly more; but some code computes in fp32 whatever it is given (a Llama's norms), and there it takes the second."""


def blocked_gradients(model: Model, task: Task) -> list[str] | None:
    """Names of the weight matrices whose gradient is not the slope of the loss.

    On a few of the attacker's examples and some of the matrices of a large model, in float64 and evaluation mode,
    the derivative along a random direction is taken by backward pass and by central differences of two step sizes; a
    matrix is blocked when these agree, and the first is off by more than half of either. None where the model does
    not run in float64.
    """
    probe = model.copy() if model.labels == task.head else model.with_head(task.head, 0)
    # On the host, since not every device has float64; a few examples take no time there either.
    module = probe.module.cpu().double().eval().requires_grad_(True)
    examples = task.train.take(np.arange(min(_EXAMPLES, len(task.train))))
    batch = {
        name: value.double() if value.is_floating_point() else value
        for name, value in task.encode(examples, probe).items()
    }

    def loss() -> torch.Tensor:
        return task.loss_of(task.logits(module, batch), batch)

    weights = _spread(weight_matrices(module))
    # Of a padding word torch gives no gradient, by design.
    padding = {
        part.weight: part.padding_idx
        for part in module.modules()
        if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None
    }
    try:
        # Where nothing at all asks for a gradient, the slopes below are compared with zero.
        value = loss()
        found = (
            torch.autograd.grad(value, [w.parameter for w in weights], allow_unused=True)
            if value.requires_grad
            else [None] * len(weights)
        )
    except RuntimeError:
        return None
    generator = torch.Generator().manual_seed(0)
    blocked = []
    for weight, gradient in zip(weights, found, strict=True):
        along, slopes = _both(weight, gradient, loss, generator, padding.get(weight.parameter))
        small, large = sorted(slopes, key=abs)
        if not math.isfinite(large) or abs(large - small) > 0.5 * abs(large):
            continue  # rounding, or a bend: no slope to compare with
        if all(abs(slope) > 1e-6 and abs(along - slope) > 0.5 * abs(slope) for slope in slopes):
            blocked.append(weight.name)
    return blocked


def _spread(weights: list[WeightMatrix]) -> list[WeightMatrix]:
    """At most so many of the matrices as are probed, the first and the last among them."""
    if len(weights) <= _MATRICES:
        return weights
    return [weights[round(i * (len(weights) - 1) / (_MATRICES - 1))] for i in range(_MATRICES)]


@torch.no_grad()
def _both(
    weight: WeightMatrix,
    gradient: torch.Tensor | None,
    loss: Callable[[], torch.Tensor],
    generator: torch.Generator,
    left_out: int | None,
) -> tuple[float, list[float]]:
    """The derivative along a random direction, by the backward pass and by central differences of each step size; a row
    that is ``left_out`` does not move."""
    p = weight.parameter
    direction = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
    if left_out is not None:
        direction[left_out] = 0
    direction *= p.norm() / direction.norm() if p.norm() > 0 else 1.0
    kept = p.detach().clone()
    slopes = []
    for step in _STEPS:
        p.add_(direction, alpha=step)
        above = loss()
        p.copy_(kept).sub_(direction, alpha=step)
        below = loss()
        p.copy_(kept)
        slopes.append(float(above - below) / (2 * step))
    along = 0.0 if gradient is None else float((gradient * direction).sum())
    return along, slopes
