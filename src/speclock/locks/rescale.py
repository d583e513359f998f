"""Rescale: the top singular values multiplied in place, without data (paper, Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.errors import InputError
from speclock.locks.base import Run, Span, SpectralLock

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.tasks.base import Task
    from speclock.training import Step


@dataclass(frozen=True, kw_only=True)
class Rescale(SpectralLock):
    """``W ← W + (c − 1) Σᵢ σᵢ uᵢ vᵢᵀ`` over the top k: the SVD with its top values scaled by ``factor``.

    Nothing is trained. The factor is reached along a geometric path, ``c = factor^(i/evaluations)``, so that
    the guard can fall back to the largest one that utility survives.
    """

    factor: float = 10.0
    """What the top singular values are multiplied by."""

    name: ClassVar[str] = "rescale"
    tuned: ClassVar[Mapping[str, Span]] = {
        "factor": Span(1.1, 30, log=True),
        "top_k": Span(1, 16, log=True, whole=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < math.inf:
            raise InputError(f"factor is {self.factor}; it must be a positive number.")

    def total_steps(self, task: Task) -> int:
        return self.evaluations

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        from speclock.spectra import top_part, weight_matrices
        from speclock.training import Step

        parts = []
        for weight in weight_matrices(model.module, self.include, self.exclude):
            W = weight.matrix.detach().clone()
            parts.append((weight, W, top_part(W.float(), self.top_k)))
        yield Step(0, math.nan)
        for i in range(1, self.evaluations + 1):
            scale = self.factor ** (i / self.evaluations) if spectral else 1.0
            for weight, W, top in parts:
                weight.assign_((W.float() + (scale - 1) * top).to(W.dtype))
            yield Step(i, math.nan)
