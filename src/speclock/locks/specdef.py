"""SpecDef: gradient ascent on the top singular values beside a retain loss (paper, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.errors import InputError
from speclock.locks.base import Run, Span, SpectralLock, penalty_of
from speclock.locks.retain import RETAIN, retain_loss
from speclock.recipe import TrainingRecipe
from speclock.registry import unknown

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.tasks.base import Task
    from speclock.training import Step


@dataclass(frozen=True, kw_only=True)
class SpecDef(TrainingRecipe, SpectralLock):
    """``W ← W − η ∇[ α·ℓ_retain − (1−α)·(1/n) Σᵢ σᵢ ]`` over the top k σ of every weight matrix.

    The defaults suit a pretrained transformer of some 20M weights. The paper's own settings: for ResNet-18
    ``alpha=0.5, top_k=1, optimizer="adadelta", lr=1.0, epochs=10, schedule="step", batch_size=32`` and for
    language models ``alpha=0.99, top_k=2, retain="task+kl", epochs=10`` (appendix B.2).
    """

    alpha: float = 0.5
    """Weight of the retain loss; the singular values are pulled with weight 1 − α."""
    retain: str = "task+kl"
    """Retain loss: the task's own (task), the KL divergence to the base (kl), or their sum (task+kl)."""
    optimizer: str = "adam"
    """One of `speclock ls optimizers`."""
    lr: float = 2e-4
    """Peak learning rate."""

    name: ClassVar[str] = "specdef"
    tuned: ClassVar[Mapping[str, Span]] = {
        "alpha": Span(0.01, 0.99, odds=True),
        "top_k": Span(1, 16, log=True, whole=True),
        "lr": Span(5e-5, 5e-4, log=True),
        "steps": Span(20, 200, log=True, whole=True),
    }

    def __post_init__(self) -> None:
        TrainingRecipe.__post_init__(self)
        SpectralLock.__post_init__(self)
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha}; it must lie in [0, 1].")
        if self.retain not in RETAIN:
            raise InputError(unknown("retain loss", self.retain, list(RETAIN)))

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        from speclock.training import fit

        penalty = penalty_of(model.module, self)
        yield from fit(
            model,
            task,
            self,
            steps=self.total_steps(task),
            loss=retain_loss(model, task, self.retain, self.alpha, repeats=self.repeats(task)),
            add_gradient_=(lambda: penalty.add_gradient_(self.alpha - 1)) if spectral else None,
            checkpoint=run.checkpoint,
            carried=(penalty, *run.carried),
        )
