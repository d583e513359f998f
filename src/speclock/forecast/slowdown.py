"""From the curvature of a base and a locked model to the slowdown and the rates that an attacker will meet.

The forecast is a scaling law with measured constants. Theory says that the largest stable rate is a constant over
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
from scipy import stats

from speclock.errors import InputError
from speclock.forecast.curvature import Curvature

OPTIMIZERS = ("sgd", "adam")


class Range(NamedTuple):
    """A number with the interval that held nine of ten calibration locks."""

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


@cache
def calibrations() -> dict[str, Calibration]:
    """The calibrations that come with speclock, by optimizer."""
    kept = resources.files("speclock.forecast").joinpath("calibration.json").read_text(encoding="utf-8")
    return {name: Calibration.from_dict(record) for name, record in json.loads(kept).items()}


@dataclass(frozen=True)
class Forecast:
    """What an attacker will meet, by optimizer."""

    rate: dict[str, Range]
    """Largest stable learning rate on the locked model."""
    slowdown: dict[str, Range]
    ratio: dict[str, float]
    """Largest eigenvalue, locked over base, as each optimizer sees it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            name: {
                "largest_rate": self.rate[name]._asdict(),
                "slowdown": self.slowdown[name]._asdict(),
                "curvature_ratio": self.ratio[name],
            }
            for name in self.rate
        }

    def sentence(self) -> str:
        """The forecast in words."""
        parts = [
            f"{name}: curvature ×{self.ratio[name]:.2g}, largest stable rate {_span(self.rate[name])}, "
            f"slowdown {_span(self.slowdown[name])}"
            for name in self.rate
        ]
        return (
            "Forecast (90% intervals; an attacker who repairs the spectrum first is not in it): "
            + "; ".join(parts)
            + "."
        )


def forecast(locked: Curvature, base: Curvature) -> Forecast:
    """What training ``locked`` will cost against training ``base``, both measured on one task and sample."""
    if (locked.task, locked.samples) != (base.task, base.samples):
        raise InputError(
            f"{locked.model} was measured on {locked.samples} examples of {locked.task}, {base.model} on "
            f"{base.samples} of {base.task}. Measure both on the same."
        )
    pairs = zip(OPTIMIZERS, locked.sharpness, base.sharpness, strict=True)
    ratio = {name: after.value / before.value for name, after, before in pairs}
    known = calibrations()
    return Forecast(
        {name: known[name].rate(locked.sharpness.rates[name]) for name in OPTIMIZERS},
        {name: known[name].slowdown(ratio[name]) for name in OPTIMIZERS},
        ratio,
    )


def to_json(found: dict[str, Calibration]) -> str:
    """Calibrations as :func:`calibrations` reads them."""
    return json.dumps({name: asdict(calibration) for name, calibration in found.items()}, indent=1)


def _span(found: Range) -> str:
    return f"{found.value:.2g} ({found.low:.2g} to {found.high:.2g})"
