"""Compensated: the top σ of a layer raised, and lowered again where the layer is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.errors import InputError
from speclock.locks.base import Run, Span, SpectralLock
from speclock.locks.reparameterise import apart, unchanged_path

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from speclock.models import Model
    from speclock.models.symmetries import Mixing
    from speclock.tasks.base import Task
    from speclock.training import Step


@dataclass(frozen=True, kw_only=True)
class Compensated(SpectralLock):
    """``A ← MA``, ``B ← BM⁻¹`` with ``M = I + (c − 1)·U_k U_kᵀ``: the top k σ of A are c times what they were.

    The limits paper has M⁻¹ as a layer of its own [arXiv 2602.18868]; here it goes into the layer that reads A, so
    that the folder still loads in its own architecture. That can be done between values and their output projection
    and between queries and keys, head by head (σ are then the head's block's; with rotary positions between values
    alone), and between any two linear layers with nothing between. Where is found by trying; nothing is trained.
    `fuse` undoes it where the layers follow each other.
    """

    factor: float = 100.0
    """What the top σ are multiplied by."""

    name: ClassVar[str] = "compensated"
    tuned: ClassVar[Mapping[str, Span]] = {
        "factor": Span(3, 1e4, log=True),
        "top_k": Span(1, 8, log=True, whole=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < math.inf:
            raise InputError(f"factor is {self.factor}; it must be a positive number.")

    def total_steps(self, task: Task) -> int:
        return self.evaluations

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        from speclock.models.symmetries import head_sizes, mixings
        from speclock.models.wiring import sample_run
        from speclock.spectra import weight_matrices

        module, tried = model.module, sample_run(model, task)
        chosen = {w.parameter for w in weight_matrices(module, self.include, self.exclude)}
        sizes = head_sizes(getattr(module, "config", None))
        found = list(apart(mixings(module, tried, sizes), chosen)) if spectral else []
        if spectral and not found:
            raise InputError(
                f"{model.name} has no two layers of which one could take back what the other does. Choose another lock."
            )
        planes = [self._top_planes(mixing) for mixing in found]
        scale = self.factor ** (1 / self.evaluations)

        def raise_(by: float) -> None:
            for mixing, plane in zip(found, planes, strict=True):
                mixing.mix_(*(self._raising(plane, c) for c in (by, 1 / by)))

        yield from unchanged_path(
            module, tried, self.evaluations, lambda: raise_(scale), lambda: raise_(1 / scale)
        )

    def _top_planes(self, mixing: Mixing) -> Float[Tensor, "h b b"]:
        """``U_k U_kᵀ`` of each block of A."""
        import torch

        A = mixing.A.weight.detach().double().unflatten(0, (mixing.blocks, mixing.block))
        U = torch.linalg.svd(A, full_matrices=False)[0][..., : self.top_k]
        return U @ U.mT

    @staticmethod
    def _raising(plane: Float[Tensor, "h b b"], c: float) -> Float[Tensor, "h b b"]:
        import torch

        return torch.eye(plane.shape[-1], dtype=plane.dtype, device=plane.device) + (c - 1) * plane
