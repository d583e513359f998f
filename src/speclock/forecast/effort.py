"""The fewest steps to a score, found by trying: what a foretold slowdown is held against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from speclock.attacks.base import Status
from speclock.attacks.finetune import FineTune
from speclock.models import Model
from speclock.tasks.base import Task


class Effort(NamedTuple):
    """What the fastest of a sweep took."""

    steps: int | None
    """None where no rate got there within the budget."""
    rate: float | None


def fewest_steps(
    model: Model,
    task: Task,
    optimizer: str,
    rates: Iterable[float],
    score: float,
    budget: int,
    *,
    every: int,
    seed: int = 0,
) -> Effort:
    """Race fine-tuning at each of ``rates`` to ``score``, which is looked for ``every`` so many steps.

    A rate has as many steps as the fastest before it took, less one look: begin with the likeliest.
    """
    fastest = Effort(None, None)
    for rate in rates:
        left = budget if fastest.steps is None else fastest.steps - every
        left -= left % every
        if left < every:
            break
        outcome = _fine_tune(optimizer, rate, seed)(
            model, task, left, due=range(every, left + 1, every), watch=lambda step, value: value >= score
        ).outcome
        steps = next((step for step, value in outcome.curve if value >= score), None)
        if steps is not None:
            fastest = Effort(steps, rate)
    return fastest


def best_score(
    model: Model,
    task: Task,
    optimizer: str,
    rates: Iterable[float],
    steps: int,
    *,
    every: int,
    seed: int = 0,
) -> float:
    """The best score of fine-tuning at any of ``rates`` for so many steps, seen ``every`` few of them.

    Chance where every rate diverges.
    """
    outcomes = [
        _fine_tune(optimizer, rate, seed)(model, task, steps, due=range(every, steps + 1, every)).outcome
        for rate in rates
    ]
    return max(
        (o.best for o in outcomes if o.status is Status.OK and o.best is not None), default=task.chance
    )


def _fine_tune(optimizer: str, rate: float, seed: int) -> FineTune:
    # As the Hessian has it: no clipping, no dropout.
    return FineTune(optimizer=optimizer, lr=rate, clip=None, dropout=False, seed=seed)
