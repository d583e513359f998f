"""The largest learning rate that training survives, found by trying: what the curvature's forecast is held against."""

from __future__ import annotations

import math
from typing import NamedTuple

from speclock.errors import InputError
from speclock.forecast.objective import Objective
from speclock.models import Model
from speclock.recipe import Recipe
from speclock.tasks.base import Task
from speclock.training import fit


class Found(NamedTuple):
    """A bracket around the largest stable rate."""

    stable: float
    """The largest rate tried that was."""
    unstable: float
    """The smallest rate tried above it that was not; inf where all were stable."""
    trials: int

    @property
    def rate(self) -> float:
        """The bracket's geometric middle; where no rate was unstable, the largest tried."""
        return self.stable if math.isinf(self.unstable) else math.sqrt(self.stable * self.unstable)


def largest_rate_found(
    model: Model,
    task: Task,
    optimizer: str,
    start: float,
    *,
    steps: int = 30,
    samples: int = 64,
    seed: int = 0,
    precision: float = 1.2,
) -> Found:
    """Bisect for the largest rate at which training never lifts the loss above what it began with.

    A rate is *stable* when ``steps`` steps on the whole of a fixed sample (the one that :func:`measure` takes, no
    dropout, constant rate, no clipping) keep the loss at or below the first. To ask only that it ends below would
    count networks that were blown apart and now give every label the same odds: that too may cost less than a
    fresh head does. Beyond the edge some runs climb out of a sharp valley into a flat one and go on; what an
    attacker can *use* is the best of a sweep. From ``start`` the rate moves by fours until there is a bracket,
    which is then halved in the logarithm until its ends are within ``precision``.

    Raises :class:`InputError` where no rate down to a millionth of ``start`` is stable.
    """

    def stable(rate: float) -> bool:
        objective = Objective.of(model, task, samples=samples, batch_size=samples, seed=seed)
        recipe = Recipe(
            optimizer=optimizer, lr=rate, batch_size=len(objective.task.train), dropout=False,
            batch_statistics=False, seed=seed,
        )  # fmt: skip
        first = math.nan
        for step in fit(objective.model, objective.task, recipe, steps=steps + 1, title="rate"):
            if step.diverged:
                return False
            if step.index == 1:
                first = step.loss  # a step's loss is that of before it
            if step.loss > first * (1 + 1e-4):
                return False
        return True

    rate, trials = start, 1
    if stable(rate):
        low, high = rate, math.inf
        while math.isinf(high) and low < 1e6 * start:
            trials += 1
            if stable(4 * low):
                low *= 4
            else:
                high = 4 * low
    else:
        low, high = 0.0, rate
        while low == 0 and high > 1e-6 * start:
            trials += 1
            if stable(high / 4):
                low = high / 4
            else:
                high /= 4
        if low == 0:
            raise InputError(
                f"No learning rate down to {high:.1g} trains {model.name} stably with {optimizer}."
            )
    while math.isfinite(high) and high / low > precision:
        trials += 1
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    return Found(low, high, trials)
