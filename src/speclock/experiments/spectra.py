"""σ₁ of the weights and σ_max(H), as rows of a table: does a lock raise the curvature that it claims to?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from speclock.curvature import spectral_ends
from speclock.experiments.base import Row, once, row
from speclock.forecast.objective import Objective
from speclock.models import Model
from speclock.spectra import singular_values, weight_matrices
from speclock.tasks.base import Task


def spectrum_row(models: Sequence[Model], **what: Any) -> Row:
    """The mean over all weight matrices of σ₁, of each of the models."""
    tops = [
        [float(singular_values(w.matrix.detach(), 1)[0]) for w in weight_matrices(model.module)]
        for model in models
    ]
    return row(
        [sum(each) / len(each) for each in tops],
        block="spectrum",
        largest=max(max(each) for each in tops),
        **what,
    )


def curvature_row(models: Sequence[Model], task: Task, kept: Path, **what: Any) -> Row:
    """|σ_max(H)| of each model on a sample of ``task`` of its own, under a head of its own: models in the same place of
    two rows have the same sample and head. Kept in ``kept``."""

    def measured() -> list[list[float]]:
        ends = [
            spectral_ends(Objective.of(model, task, seed=seed).hessian(), "LM", seed=seed).by_modulus
            for seed, model in enumerate(models)
        ]
        return [[abs(end.value), end.residual] for end in ends]

    found = once(kept, measured)
    return row(
        [value for value, _ in found],
        residuals=[residual for _, residual in found],
        batch_norm=any(isinstance(part, _BatchNorm) for part in models[0].module.modules()),
        block="curvature",
        task=task.name,
        **what,
    )
