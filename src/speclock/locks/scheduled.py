"""Scheduled SpecDef: the top σ follow a schedule, as fast as the model's answers can follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.errors import InputError
from speclock.locks.base import Run, Span, SpectralLock, penalty_of
from speclock.locks.retain import RETAIN, retain_loss
from speclock.recipe import TrainingRecipe
from speclock.registry import unknown

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.spectra import SpectralPenalty
    from speclock.tasks.base import Task
    from speclock.training import Step


@dataclass(frozen=True, kw_only=True)
class Scheduled(TrainingRecipe, SpectralLock):
    """``W ← W + U_k diag(σ(t) − σ) V_kᵀ`` after every step of training on a retain loss, with ``σ(t) = σ(0)·c^(t/T)``.

    Algorithm 1 pulls every σ with 1/n of its weight, which on a deep model moves none; here σ goes where it is told to
    and the weights follow. The schedule's clock t stands still while the retain loss is above ``tolerance`` times what
    it was at the start (or above ``least``, where it began at nothing), so that training catches up.
    """

    factor: float = 4.0
    """c, what the top σ are multiplied by at the schedule's end."""
    tolerance: float = 2.0
    """Retain loss up to which the schedule goes on, over the mean of its first ten steps."""
    least: float = 0.05
    """Retain loss, in nats, at which it goes on in any case."""
    retain: str = "task+kl"
    """Retain loss: the task's own (task), the KL divergence to the base (kl), or their sum (task+kl)."""
    optimizer: str = "adam"
    """One of `speclock ls optimizers`."""
    lr: float = 2e-4
    """Peak learning rate."""

    name: ClassVar[str] = "scheduled"
    tuned: ClassVar[Mapping[str, Span]] = {
        "factor": Span(1.5, 20, log=True),
        "top_k": Span(1, 16, log=True, whole=True),
        "lr": Span(5e-5, 5e-4, log=True),
        "steps": Span(50, 400, log=True, whole=True),
    }

    def __post_init__(self) -> None:
        TrainingRecipe.__post_init__(self)
        SpectralLock.__post_init__(self)
        for field in ("factor", "tolerance"):
            if not 0 < getattr(self, field) < math.inf:
                raise InputError(f"{field} is {getattr(self, field)}; it must be a positive number.")
        if not self.least >= 0:
            raise InputError(f"least is {self.least}; it must not be negative.")
        if self.retain not in RETAIN:
            raise InputError(unknown("retain loss", self.retain, list(RETAIN)))

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        from speclock.training import fit

        total = self.total_steps(task)
        clock = _Clock(penalty_of(model.module, self), self, total)
        steps = fit(
            model,
            task,
            self,
            steps=total,
            loss=retain_loss(model, task, self.retain, repeats=self.repeats(task)),
            checkpoint=run.checkpoint,
            carried=(clock, *run.carried),
        )
        for step in steps:
            if spectral and step.index and not step.diverged:
                clock.tick_(step.loss)
            yield step


class _Clock:
    """How far the schedule has gone, and the σ that it began with."""

    def __init__(self, penalty: SpectralPenalty, lock: Scheduled, total: int) -> None:
        self.penalty, self.lock, self.total = penalty, lock, total
        self.began = {name: sigma.tolist() for name, sigma in penalty.sigma().items()}
        self.at = 0
        self.first: list[float] = []

    def tick_(self, loss: float) -> None:
        """Take the step's loss into account, and bring σ to where the clock stands."""
        if len(self.first) < 10:
            self.first.append(loss)
        usual = sum(self.first) / len(self.first)
        if loss <= max(self.lock.least, self.lock.tolerance * usual):
            self.at += 1
        factor = self.lock.factor ** (self.at / self.total)
        self.penalty.assign_(
            {name: [factor * value for value in sigma] for name, sigma in self.began.items()}
        )

    def state_dict(self) -> dict[str, Any]:
        return {"penalty": self.penalty.state_dict(), "began": self.began, "at": self.at, "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.penalty.load_state_dict(state["penalty"])
        self.began, self.at, self.first = state["began"], state["at"], state["first"]
