"""Laws from curvature to the slowdown and the rates that an attacker will meet.

Each is a scaling law with measured constants. Theory says that the largest stable rate is a constant over
λ_max, and that on a quadratic the steps grow with λ_max as long as the flattest direction that matters stays as it
was. How far that carries on a network is an empirical matter: the constants and their spread come from locks that
were made, measured and attacked (:mod:`speclock.experiments.prediction`), and are kept beside this file as
``calibration.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from speclock.errors import InputError
from speclock.forecast.measurement import Curvature

OPTIMIZERS = ("sgd", "adam")


class Range(NamedTuple):
    """A number with its 90% prediction interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """``log y = intercept + slope · log x ± spread``, by least squares (:func:`fit_law`)."""

    intercept: float
    slope: float
    spread: float
    """Standard deviation of the residuals, in natural logarithms."""
    points: int
    center: float
    """Mean of log x over the points."""
    width: float
    """Sum of squared deviations of log x from it."""
    least: float
    """The smallest x that it was fitted on."""
    most: float
    """The largest."""

    def covers(self, x: float) -> bool:
        """Whether x lies among the points, where the law does not extrapolate."""
        return self.least <= x <= self.most

    def __call__(self, x: float) -> Range:
        """``y`` at ``x`` with the 90% prediction interval of the regression (Student's t)."""
        away = math.log(x) - self.center
        uncertain = 1 + 1 / self.points + away**2 / self.width
        middle = self.intercept + self.slope * math.log(x)
        half = float(stats.t.ppf(0.95, self.points - 2)) * self.spread * math.sqrt(uncertain)
        return Range(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def fit_law(x: Sequence[float], y: Sequence[float], *, censored: Sequence[bool] | None = None) -> Law:
    """Fit ``y`` against ``x``, both positive, in logarithms.

    Where ``censored``, ``y`` is what the truth at least is. Such points are neither left out, which would bend the
    law towards what was easy to measure, nor taken for the truth: the fit is the most likely one with normal
    residuals [Tobin 1958], by expectation maximisation.

    Raises :class:`InputError` for fewer than three points, where all are censored, and where all x are the same.

    >>> law = fit_law([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    >>> round(law.slope, 6), round(math.exp(law.intercept), 6)
    (1.0, 2.0)
    """
    if len(x) < 3:
        raise InputError(f"{len(x)} models are too few to calibrate on; measure at least 3.")
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    at_least = np.zeros(len(x), bool) if censored is None else np.asarray(censored, bool)
    if at_least.all():
        raise InputError("No model reached its target in time; no law can be fitted. Raise the budget.")
    center = float(log_x.mean())
    width = float(np.square(log_x - center).sum())
    if width == 0:
        raise InputError("All models have the same curvature; no slope can be fitted.")
    slope, intercept, variance = math.nan, math.nan, math.nan
    expected, unsure = log_y, 0.0
    for _ in range(10_000):
        before = slope, intercept
        slope, intercept = map(float, np.polyfit(log_x, expected, 1))
        residuals = expected - intercept - slope * log_x
        variance = (float(np.square(residuals).sum()) + unsure) / len(x)
        converged = np.allclose((slope, intercept), before, rtol=0, atol=1e-10)
        if converged or variance == 0 or not at_least.any():
            break
        expected, unsure = _expected(log_y, expected - residuals, math.sqrt(variance), at_least)
    spread = math.sqrt(variance * len(x) / (len(x) - 2))
    return Law(intercept, slope, spread, len(x), center, width, min(x), max(x))


def _expected(
    known: NDArray[np.floating], said: NDArray[np.floating], spread: float, at_least: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], float]:
    """What censored values are on average, given the line and that they exceed what is known; and their variances' sum.

    Mean and variance of a truncated normal variable, by its hazard φ/(1 − Φ).
    """
    beyond = (known - said)[at_least] / spread
    hazard = np.exp(stats.norm.logpdf(beyond) - stats.norm.logsf(beyond))
    expected = known.copy()
    expected[at_least] = said[at_least] + spread * hazard
    return expected, float(spread**2 * (1 + beyond * hazard - hazard**2).sum())


@dataclass(frozen=True)
class Calibration:
    """The laws of one optimizer."""

    rate: Law
    """Largest stable rate against the one that theory gives."""
    slowdown: Law
    """Measured slowdown against the ratio of settled sharpnesses, locked over base."""
    made_from: str
    """What it was measured on."""

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Calibration:
        """The inverse of ``dataclasses.asdict``."""
        return cls(Law(**record["rate"]), Law(**record["slowdown"]), record["made_from"])


@cache
def calibrations() -> dict[str, Calibration]:
    """The calibrations that come with speclock, by optimizer."""
    kept = resources.files("speclock.forecast").joinpath("calibration.json").read_text(encoding="utf-8")
    return {name: Calibration.from_dict(record) for name, record in json.loads(kept).items()}


@dataclass(frozen=True)
class Forecast:
    """What an attacker who trains the locked model as it is will meet, by optimizer."""

    curvature_ratio: float
    """Settled sharpness, locked over base."""
    rate: dict[str, Range]
    """Largest stable learning rate on the locked model."""
    slowdown: dict[str, Range]
    """Steps to 90% of the base's best gain, locked over base."""
    extrapolated: bool
    """Whether the ratio lies outside what the laws were calibrated on."""
    made_from: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "curvature_ratio": self.curvature_ratio,
            "extrapolated": self.extrapolated,
            "calibrated_on": self.made_from,
            **{
                name: {"largest_rate": self.rate[name]._asdict(), "slowdown": self.slowdown[name]._asdict()}
                for name in OPTIMIZERS
            },
        }


def forecast(locked: Curvature, base: Curvature) -> Forecast:
    """What training ``locked`` will cost against training ``base``, both measured on one task and sample.

    Raises :class:`InputError` where they were measured on different ones, or where one has no curvature.
    """
    if (locked.task, locked.samples) != (base.task, base.samples):
        raise InputError(
            f"{locked.model} was measured on {locked.samples} examples of {locked.task}, {base.model} on "
            f"{base.samples} of {base.task}. Measure both on the same."
        )
    after, before = locked.sharpness, base.sharpness
    for curvature in (locked, base):
        if curvature.sharpness.settled.value <= 0:
            raise InputError(
                f"The loss of {curvature.model} on {curvature.samples} examples of {curvature.task} curves upwards "
                f"nowhere, so that nothing can be foretold. Measure on more samples."
            )
    ratio = after.settled.value / before.settled.value
    known = calibrations()
    return Forecast(
        ratio,
        {name: known[name].rate(after.rates[name]) for name in OPTIMIZERS},
        {name: known[name].slowdown(ratio) for name in OPTIMIZERS},
        not all(known[name].slowdown.covers(ratio) for name in OPTIMIZERS),
        known["sgd"].made_from,
    )


def to_json(found: dict[str, Calibration]) -> str:
    """Calibrations as :func:`calibrations` reads them."""
    return json.dumps({name: asdict(calibration) for name, calibration in found.items()}, indent=1)
