"""Reparameterise: what one layer is multiplied by the next is divided by, and the function stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from speclock.errors import InputError
from speclock.locks.base import Run, Span, SpectralLock

if TYPE_CHECKING:
    from torch import Tensor, nn

    from speclock.models import Model
    from speclock.models.symmetries import Mixing, Rescaling
    from speclock.tasks.base import Task
    from speclock.training import Step

Symmetry = TypeVar("Symmetry", "Rescaling", "Mixing")

UNCHANGED = 1e-3
"""How far any logit may move, over the logits' range."""


@dataclass(frozen=True, kw_only=True)
class Reparameterise(SpectralLock):
    """``A ← c·A``, ``B ← B/c`` wherever that leaves the function as it is, and ``γ ← γ/c``, ``W ← c·W`` for a norm's
    gain and all that reads it: the raised matrices' σ are exactly c times what they were.

    Pairs that share a layer would take each other back, so each layer is in one. Rectified units, values and their
    output projection, queries and keys, gated up- and down-projections are such pairs; which are is found by trying.
    Nothing is trained and no data are needed but a few inputs to try on. The attack `balance` undoes it.
    """

    top_k: int = 2
    """Singular values of each matrix whose mean is the strength; all of a raised matrix's are raised."""
    factor: float = 100.0
    """What the raised matrices are multiplied by."""

    name: ClassVar[str] = "reparameterise"
    tuned: ClassVar[Mapping[str, Span]] = {"factor": Span(3, 1e4, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < math.inf:
            raise InputError(f"factor is {self.factor}; it must be a positive number.")

    def total_steps(self, task: Task) -> int:
        return self.evaluations

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        from speclock.models.symmetries import rescalings
        from speclock.models.wiring import sample_run
        from speclock.spectra import weight_matrices

        module, tried = model.module, sample_run(model, task)
        chosen = {w.parameter for w in weight_matrices(module, self.include, self.exclude)}
        found = list(apart(rescalings(module, tried), chosen)) if spectral else []
        if spectral and not found:
            raise InputError(
                f"{model.name} has no two layers that could be rescaled against each other. Choose another lock."
            )
        scale = self.factor ** (1 / self.evaluations)

        def raise_(by: float) -> None:
            for rescaling in found:
                rescaling.raise_(by)

        yield from unchanged_path(
            module, tried, self.evaluations, lambda: raise_(scale), lambda: raise_(1 / scale)
        )


def apart(found: Iterable[Symmetry], chosen: Collection[Tensor]) -> Iterator[Symmetry]:
    """Those that have no layer in common with an earlier one, and raise what was chosen."""
    taken: set[Tensor] = set()
    for rescaling in found:
        moved = set(rescaling.tensors())
        if not moved & taken and all(weight in chosen for weight in rescaling.raised()):
            taken |= moved
            yield rescaling


def unchanged_path(
    module: nn.Module,
    tried: Callable[[nn.Module], Any],
    steps: int,
    on_: Callable[[], None],
    back_: Callable[[], None],
) -> Iterator[Step]:
    """The steps of a lock that changes no answer: ``on_`` takes one, and ``back_`` the first that shows back."""
    from speclock.models import wiring
    from speclock.training import Step

    before = wiring.outputs(module, tried)
    size = float(before.max() - before.min())
    yield Step(0, math.nan)
    for i in range(1, steps + 1):
        on_()
        if not float((wiring.outputs(module, tried) - before).abs().max()) <= UNCHANGED * size:
            back_()
            return
        yield Step(i, math.nan)
