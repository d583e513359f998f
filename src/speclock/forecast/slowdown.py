"""Laws from curvature to the slowdown and the rates that an attacker will meet.

Each is a scaling law with measured constants. Theory says that the largest stable rate is a constant over
λ_max, and that on a quadratic the steps grow with λ_max as long as the flattest direction that matters stays as it
was. How far that carries on a network is an empirical matter: the constants and their spread come from locks that
were made, measured and attacked (:mod:`speclock.experiments.prediction`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from speclock.errors import InputError

OPTIMIZERS = ("sgd", "adam")


class Range(NamedTuple):
    """A number with its 90% prediction interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """``log y = intercept + slope · log x ± spread``, fitted by least squares."""

    intercept: float
    slope: float
    spread: float
    """Standard deviation of the residuals, in natural logarithms."""
    points: int

    def __call__(self, x: float) -> Range:
        """``y`` at ``x`` with a 90% prediction interval (Student's t over the fit's degrees of freedom)."""
        middle = self.intercept + self.slope * math.log(x)
        half = float(stats.t.ppf(0.95, max(1, self.points - 2))) * self.spread
        return Range(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def fit_law(x: Sequence[float], y: Sequence[float], *, slope: float | None = None) -> Law:
    """Fit ``y`` against ``x``, both positive, in logarithms; with ``slope`` only the intercept is free.

    >>> law = fit_law([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    >>> round(law.slope, 6), round(math.exp(law.intercept), 6)
    (1.0, 2.0)
    """
    if len(x) < 3:
        raise InputError(f"{len(x)} locks are too few to calibrate on; measure at least 3.")
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    if slope is None:
        slope, intercept = (float(value) for value in np.polyfit(log_x, log_y, 1))
    else:
        intercept = float(np.mean(log_y - slope * log_x))
    residuals = log_y - intercept - slope * log_x
    return Law(intercept, slope, float(residuals.std(ddof=1)), len(x))


@dataclass(frozen=True)
class Calibration:
    """The laws of one optimizer."""

    rate: Law
    """Largest stable rate against the one that theory gives."""
    slowdown: Law
    """Measured slowdown against the ratio of largest eigenvalues, locked over base."""
    made_from: str
    """What it was measured on."""

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Calibration:
        """The inverse of ``dataclasses.asdict``."""
        return cls(Law(**record["rate"]), Law(**record["slowdown"]), record["made_from"])


def to_json(found: dict[str, Calibration]) -> str:
    """Calibrations by optimizer, for :meth:`Calibration.from_dict`."""
    return json.dumps({name: asdict(calibration) for name, calibration in found.items()}, indent=1)
