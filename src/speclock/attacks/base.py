"""What every attack shares: the copy, the fresh head, the curve, the verdict on a run. A subclass only steps."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    """The retain task's score where the run ended, with the retain head where the attack had a fresh one."""
    beside: dict[str, float] = field(default_factory=dict)
    """Scores of the tasks beside the attack task where the run ended: the clean score of a poisoned task."""
    pruned_at: int | None = None
    """Step at which a losing run was given up, its best so far being its score."""
    reason: str | None = None
    """Why the run failed, or where it diverged."""
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    passes: int = 0
    """Evaluations of the loss or its gradient on a batch, those of line searches and repairs included."""
    tflops: float | None = None
    """Floating-point operations of the training steps, in 10¹²: the first step's, counted, times the passes."""


class InapplicableError(Exception):
    """An attack that cannot be carried out on a model or without what it needs; the message says why."""


class Scene(NamedTuple):
    """What an attacker has to work with."""

    released: Model
    """The model as it was released; never changed."""
    task: Task
    """What the attacker wants."""
    steps: int
    """Budget in optimizer steps, surgery's own training included."""
    public: Model | None = None
    """A public model of the same architecture that the released one was made from, where there is one."""


class Attacked(NamedTuple):
    """What an attack returns."""

    model: Model
    """The model as the attack left it."""
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A procedure with a budget of steps that tries to make a model do the attack task.

    Calling an attack copies the model, gives it a fresh head where the task has other labels, lets
    :meth:`prepare_` operate on the weights, steps through :meth:`trajectory` while scoring on the way, and has
    :meth:`finish_` put the architecture back. One run serves every budget up to its own: the curve holds the
    score at each.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "fine-tuning"
    """The family that a report lists it under."""
    seed: int = 0
    """Order of the data, dropout, fresh heads."""

    @property
    def label(self) -> str:
        """The attack in a few words, but for the learning rate: what a report's rows are called."""
        return self.name

    @property
    def title(self) -> str:
        """The attack in a few words, for people."""
        return self.label

    @property
    def needs_public(self) -> bool:
        """Whether the attack can only be carried out by those who know a public base."""
        return False

    def prepare_(self, model: Model, scene: Scene) -> None:
        """Surgery on the weights before the first step; none by default.

        Raises :class:`InapplicableError` where the model or the scene lacks what the attack needs.
        """

    @abstractmethod
    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        """Train ``model.module`` in place, yielding before the first step and after each."""

    def finish_(self, model: Model) -> None:
        """Bring a changed architecture back to the released one's; nothing by default."""

    def __call__(
        self,
        model: Model,
        task: Task,
        steps: int,
        *,
        retain: Task | None = None,
        evaluations: int = 8,
        watch: Watch | None = None,
        public: Model | None = None,
    ) -> Attacked:
        """Attack a copy of ``model`` and judge it.

        ``retain`` asks for the utility after the attack. ``watch(step, score)`` hears of every evaluation and
        ends the run by answering True: that is how a sweep prunes. ``public`` is a public model that the
        attacker knows the released one to be made from. Raises :class:`InapplicableError` for an attack that does
        not fit.
        """
        if steps < 1:
            raise InputError(f"steps is {steps}; an attack needs a budget of at least 1.")
        with Meter() as meter:
            attacked = (
                model.copy() if model.labels == task.labels else model.with_head(task.labels, self.seed)
            )
            scene = Scene(model, task, steps, public)
            self.prepare_(attacked, scene)
            due = evaluation_steps(steps, evaluations)
            if model.labels != task.labels:
                # Before its first step a fresh head answers at random; there is nothing to score yet.
                due.remove(0)
            outcome = self._judge(attacked, scene, due, watch)
            self.finish_(attacked)
            scored = outcome.status is Status.OK
            for name, other in task.beside.items() if scored else ():
                outcome.beside[name] = other.score(attacked)
            if retain is not None and scored:
                outcome.utility_after = retain.score(attacked.with_head_of(model))
        outcome.seconds, outcome.peak_memory_mb = meter.seconds, meter.peak_memory_mb
        return Attacked(attacked, outcome)

    def _judge(self, model: Model, scene: Scene, due: list[int], watch: Watch | None) -> Outcome:
        outcome = Outcome(Status.OK, [], None)
        trajectory, flops_per_pass = self.trajectory(model, scene), None
        while True:
            # Counting slows a step down by a quarter and more; the first stands for all.
            with _Flops(enabled=flops_per_pass is None) as flops:
                step = next(trajectory, None)
            if step is None:
                break
            if flops_per_pass is None and step.passes:
                flops_per_pass = flops.total / step.passes
            outcome.passes, outcome.tflops = step.passes, step.passes * (flops_per_pass or 0.0) / 1e12
            if step.diverged:
                outcome.status, outcome.reason = Status.DIVERGED, f"at step {step.index}"
                return outcome
            if step.index not in due:
                continue
            score = scene.task.score(model)
            if math.isnan(score):
                outcome.status = Status.DIVERGED
                outcome.reason = f"answers are not finite after step {step.index}"
                return outcome
            outcome.curve.append((step.index, score))
            if watch is not None and watch(step.index, score) and step.index < scene.steps:
                outcome.pruned_at = step.index
                break
        outcome.best = max(score for _, score in outcome.curve)
        return outcome

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


class _Flops:
    """Floating-point operations of a ``with`` block (matrix products, convolutions, attention)."""

    total: float = 0.0

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __enter__(self) -> _Flops:
        if self.enabled:
            from torch.utils.flop_counter import FlopCounterMode

            self._mode = FlopCounterMode(display=False)
            self._mode.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.enabled:
            self._mode.__exit__(*exc)
            self.total = float(self._mode.get_total_flops())
