"""How curved a model's loss is on a task: the numbers behind a lock, before any attack is run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from speclock.curvature import (
    Bound,
    Conditioning,
    Eigenvalue,
    conditioning,
    cross_entropy,
    largest_stable_adam_rate,
    largest_stable_rate,
    mlp_bounds,
    mlp_layers,
    spectral_ends,
)
from speclock.forecast.objective import Objective
from speclock.models import Model, fingerprint
from speclock.models.wiring import fully_connected_end
from speclock.spectra import singular_values, weight_matrices
from speclock.tasks.base import Batch, Task

SETTLING = 3
"""Steps of gradient descent over which sharpness settles."""


class Sharpness(NamedTuple):
    """The largest eigenvalue of the Hessian: what all rates and slowdowns are foretold from."""

    start: Eigenvalue
    """Of the model as it stands."""
    settled: Eigenvalue
    """The median of those after each of the first :data:`SETTLING` full-batch steps at rate 2/λ_max. A fresh head can
    leave directions so sharp that they are gone after a step, and say nothing of what training will meet."""
    adam: Eigenvalue
    """As Adam's preconditioner leaves the Hessian."""

    @property
    def rates(self) -> dict[str, float]:
        """The largest stable learning rates that theory gives: for SGD from the settled sharpness."""
        return {
            "sgd": largest_stable_rate(self.settled.value),
            "adam": largest_stable_adam_rate(self.adam.value),
        }


def sharpness(
    model: Model, task: Task, *, samples: int = 64, batch_size: int = 16, tol: float = 1e-3, seed: int = 0
) -> Sharpness:
    """The largest eigenvalues alone, in some ten products each; ``tol`` is that of the model as it stands."""
    objective = Objective.of(model, task, samples=samples, batch_size=batch_size, seed=seed)
    start = spectral_ends(objective.hessian(), "LA", tol=tol, seed=seed).largest
    adam = _seen_by_adam(objective, tol, seed)
    return Sharpness(start, _settled(objective, start, seed), adam)


def _settled(objective: Objective, start: Eigenvalue, seed: int) -> Eigenvalue:
    """Moves the objective's model. A percent of an eigenvalue that changes by tens from step to step is enough."""
    if start.value <= 0:  # nothing to settle
        return start
    seen = []
    for step in range(SETTLING):
        objective.descend(largest_stable_rate(start.value))
        title = f"settling, step {step + 1} of {SETTLING}"
        seen.append(spectral_ends(objective.hessian(), "LA", tol=1e-2, seed=seed, title=title).largest)
    return sorted(seen)[SETTLING // 2]


def _seen_by_adam(objective: Objective, tol: float, seed: int) -> Eigenvalue:
    preconditioned = objective.hessian().preconditioned(objective.adam_preconditioner())
    return spectral_ends(preconditioned, "LA", tol=tol, seed=seed, title="as Adam sees it").largest


@dataclass(frozen=True)
class Curvature:
    """The Hessian spectrum of a model's loss on a sample of a task, and what follows from it."""

    model: str
    fingerprint: str
    task: str
    samples: int
    weights: int
    """Trained weights, the dimension of the Hessian."""
    spectrum: Conditioning
    sharpness: Sharpness
    """The largest eigenvalue, also after a few steps and as Adam sees it."""
    bounds: list[Bound]
    """Of the fully connected layers at the model's end; empty where there are fewer than two."""
    matrices: list[dict[str, Any]]
    """Each weight matrix with σ₁ and its block's σ_max, where asked for."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        spectrum = self.spectrum
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "task": self.task,
            "samples": self.samples,
            "weights": self.weights,
            "sigma_max": abs(spectrum.sigma_max.value),
            "lambda_max": spectrum.lambda_max._asdict(),
            "lambda_min": spectrum.lambda_min._asdict(),
            "smallest_above_floor": None if spectrum.smallest is None else spectrum.smallest._asdict(),
            "floor": spectrum.floor,
            "kappa": spectrum.kappa,
            "exact": spectrum.exact,
            "trace": spectrum.trace._asdict(),
            "density": {name: values.tolist() for name, values in spectrum.density._asdict().items()},
            "settled_lambda_max": self.sharpness.settled._asdict(),
            "adam_lambda_max": self.sharpness.adam._asdict(),
            "largest_rate": self.sharpness.rates,
            "bounds": [bound._asdict() for bound in self.bounds],
            "matrices": self.matrices,
        }


def measure(
    model: Model,
    task: Task,
    *,
    samples: int = 64,
    batch_size: int = 16,
    per_matrix: bool = False,
    tol: float = 1e-3,
    floor: float = 1e-3,
    seed: int = 0,
) -> Curvature:
    """The curvature of ``model`` on ``samples`` training examples of ``task``, all of its trained weights.

    ``tol`` is relative to σ_max. ``per_matrix`` also gives the σ_max of each weight matrix's diagonal block, at
    the price of some ten products with the Hessian each.
    """
    objective = Objective.of(model, task, samples=samples, batch_size=batch_size, seed=seed)
    H = objective.hessian()
    spectrum = conditioning(H, tol=tol, floor=floor, seed=seed)
    matrices = []
    known = objective.parameters()
    asked = weight_matrices(objective.model.module) if per_matrix else []
    for weight in tqdm(asked, desc="blocks", unit="matrix", disable=None, leave=False):
        if weight.name not in known:  # frozen
            continue
        top = spectral_ends(H.block(weight.name), tol=tol, seed=seed, title=weight.name).by_modulus
        matrices.append(
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "sigma_1": float(singular_values(weight.matrix.detach(), 1)[0]),
                "block_sigma_max": abs(top.value),
                "residual": top.residual,
            }
        )
    adam = _seen_by_adam(objective, tol, seed)
    bounds = _bounds(objective)
    # Last, since it moves the weights.
    settled = _settled(objective, spectrum.lambda_max, seed)
    return Curvature(
        model.name,
        fingerprint(model),
        task.name,
        len(objective.task.train),
        H.shape[0],
        spectrum,
        Sharpness(spectrum.lambda_max, settled, adam),
        bounds,
        matrices,
    )


def _bounds(objective: Objective) -> list[Bound]:
    """Theorem 2.1 on the fully connected layers at the model's end, which are a diagonal block of everything."""
    module, task = objective.model.module, objective.task
    tails, inputs = [], []
    for batch in objective.batches:
        tail, entering = fully_connected_end(module, partial(_answer, task, batch))
        tails.append(tail)
        inputs.append(entering)
    if len([layer for layer in tails[0] if isinstance(layer, nn.Linear)]) < 2:
        return []
    names = {id(p): name for name, p in module.named_parameters()}
    tail = tails[0]
    called = {
        f"{i}.weight": names[id(layer.weight)] for i, layer in enumerate(tail) if isinstance(layer, nn.Linear)
    }
    # In float64: a bound must not exceed what it bounds by rounding.
    layers, outputs = mlp_layers(copy.deepcopy(tail).double(), torch.cat(inputs).double())
    labels = torch.cat([batch["labels"] for batch in objective.batches])
    layers = [layer._replace(name=called[layer.name]) for layer in layers]
    return mlp_bounds(layers, cross_entropy(outputs, labels))


def _answer(task: Task, batch: Batch, module: nn.Module) -> Any:
    return task.answer(module, batch)
