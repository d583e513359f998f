"""What every attack shares: the copy, the fresh head, the curve, the verdict on a run. A subclass only steps."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from speclock.environment import Meter
from speclock.errors import InputError

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.tasks.base import Task
    from speclock.training import Step

Watch = Callable[[int, float], bool]
"""Hears (step, score) of every evaluation; True ends the run."""


class Status(StrEnum):
    """How a run ended. Only ``ok`` runs have a score."""

    OK = "ok"
    DIVERGED = "diverged"
    """Loss, gradient or weights stopped being finite."""
    FAILED = "failed"
    """The attack could not be carried out on this model; the reason is kept."""


@dataclass
class Outcome:
    """What one attack run leaves."""

    status: Status
    curve: list[tuple[int, float]]
    """(step, score) at each evaluation; from step 0 on where the model came with a head for the task."""
    best: float | None
    """Best score on the curve; None unless the run is ok."""
    utility_after: float | None = None
    """The retain task's score after the attack, with the retain head where the attack had a fresh one."""
    pruned_at: int | None = None
    """Step at which a losing run was given up, its best so far being its score."""
    reason: str | None = None
    """Why the run failed, or where it diverged."""
    seconds: float = 0.0
    peak_memory_mb: float = 0.0


class Attacked(NamedTuple):
    """What an attack returns."""

    model: Model
    """The model as the attack left it."""
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A procedure with a budget of steps that tries to make a model do the attack task.

    Calling an attack copies the model, gives it a fresh head where the task has other labels, lets
    :meth:`prepare_` operate on the weights, and steps through :meth:`trajectory` while scoring on the way.
    One run serves every budget up to its own: the curve holds the score at each.
    """

    name: ClassVar[str]
    seed: int = 0
    """Order of the data, dropout, fresh heads."""

    def prepare_(self, model: Model) -> None:
        """Surgery on the weights before the first step; none by default."""

    @abstractmethod
    def trajectory(self, model: Model, task: Task, steps: int) -> Iterator[Step]:
        """Train ``model.module`` in place, yielding before the first step and after each."""

    def __call__(
        self,
        model: Model,
        task: Task,
        steps: int,
        *,
        retain: Task | None = None,
        evaluations: int = 8,
        watch: Watch | None = None,
    ) -> Attacked:
        """Attack a copy of ``model`` and judge it.

        ``retain`` asks for the utility after the attack. ``watch(step, score)`` hears of every evaluation and
        ends the run by answering True: that is how a sweep prunes.
        """
        if steps < 1:
            raise InputError(f"steps is {steps}; an attack needs a budget of at least 1.")
        with Meter() as meter:
            attacked = (
                model.copy() if model.labels == task.labels else model.with_head(task.labels, self.seed)
            )
            self.prepare_(attacked)
            due = evaluation_steps(steps, evaluations)
            if model.labels != task.labels:
                # Before its first step a fresh head answers at random; there is nothing to score yet.
                due.remove(0)
            outcome = self._judge(attacked, task, steps, due, watch)
            if retain is not None and outcome.status is Status.OK and outcome.pruned_at is None:
                outcome.utility_after = retain.score(attacked.body_into(model).module, model)
        outcome.seconds, outcome.peak_memory_mb = meter.seconds, meter.peak_memory_mb
        return Attacked(attacked, outcome)

    def _judge(self, model: Model, task: Task, steps: int, due: list[int], watch: Watch | None) -> Outcome:
        curve: list[tuple[int, float]] = []
        for step in self.trajectory(model, task, steps):
            if step.diverged:
                return Outcome(Status.DIVERGED, curve, None, reason=f"at step {step.index}")
            if step.index not in due:
                continue
            score = task.score(model.module, model)
            if math.isnan(score):
                return Outcome(
                    Status.DIVERGED, curve, None, reason=f"answers are not finite after step {step.index}"
                )
            curve.append((step.index, score))
            if watch is not None and watch(*curve[-1]) and step.index < steps:
                return Outcome(Status.OK, curve, _best(curve), pruned_at=step.index)
        return Outcome(Status.OK, curve, _best(curve))

    def config(self) -> dict[str, Any]:
        """The fields as a record holds them, without the seed, which a record holds beside them."""
        fields = dataclasses.asdict(self)
        del fields["seed"]
        return fields


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """0 and at most ``evaluations`` further steps, evenly spaced up to ``steps``.

    >>> evaluation_steps(64, 4)
    [0, 16, 32, 48, 64]
    """
    return sorted({round(steps * i / evaluations) for i in range(evaluations + 1)})


def _best(curve: list[tuple[int, float]]) -> float:
    return max(score for _, score in curve)
