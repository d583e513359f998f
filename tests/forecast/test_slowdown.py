"""Laws that are fitted, and what a forecast says."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from speclock.errors import InputError
from speclock.experiments.prediction import calibrations_in
from speclock.forecast import Curvature, forecast, measure
from speclock.forecast.slowdown import OPTIMIZERS, Calibration, calibrations, fit_law, to_json
from speclock.models import Model
from speclock.tasks.base import Task

SIZES = st.floats(0.01, 100)


@given(slope=st.floats(-2, 2), factor=SIZES)
def test_an_exact_law_is_recovered(slope: float, factor: float) -> None:
    x = [0.1, 1.0, 7.0, 50.0]
    law = fit_law(x, [factor * value**slope for value in x])
    assert law.slope == pytest.approx(slope, abs=1e-6)
    assert law(3.0).value == pytest.approx(factor * 3.0**slope, rel=1e-6)
    assert law.spread == pytest.approx(0, abs=1e-6)


def test_the_interval_of_a_fitted_slope_agrees_with_a_reference() -> None:
    """Against scipy's standard errors of slope and intercept, and wider the farther from the points."""
    x, y = [0.5, 1.0, 3.0, 20.0, 90.0], [1.0, 1.3, 1.1, 4.0, 6.5]
    law = fit_law(x, y)
    line = stats.linregress(np.log(x), np.log(y))
    assert (law.slope, law.intercept) == pytest.approx((line.slope, line.intercept))
    assert law.spread == pytest.approx(line.stderr * np.sqrt(np.square(np.log(x) - np.mean(np.log(x))).sum()))
    at_one = math.log(law(1.0).high / law(1.0).value) / stats.t.ppf(0.95, 3)
    assert at_one == pytest.approx(math.hypot(law.spread, line.intercept_stderr))  # log 1 = 0
    widths = [law(away).high / law(away).low for away in (5, 90, 1e4)]
    assert widths == sorted(widths)
    assert law.covers(20.0)
    assert not law.covers(0.4)
    assert not law.covers(100.0)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_nine_of_ten_new_points_lie_in_the_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = 0
    for _ in range(400):
        x = np.exp(rng.uniform(0, 4, 9))
        y = 2 * x**0.5 * np.exp(rng.normal(0, 0.3, 9))
        found = fit_law(x[:8].tolist(), y[:8].tolist())(float(x[8]))
        inside += found.low <= y[8] <= found.high
    assert 0.83 <= inside / 400 <= 0.96


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_a_censored_fit_is_the_most_likely_one(seed: int) -> None:
    """Against the likelihood itself, maximised by scipy."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 4, 12))
    truth = 0.5 + 1.2 * x + rng.normal(0, 0.4, 12)
    y, censored = np.minimum(truth, 3.5), truth > 3.5

    def surprise(at: np.ndarray) -> float:
        away = (y - at[0] - at[1] * x) / math.exp(at[2])
        return float(np.where(censored, -stats.norm.logsf(away), at[2] - stats.norm.logpdf(away)).sum())

    best = optimize.minimize(
        surprise, [0.5, 1.2, -1.0], method="Nelder-Mead", tol=1e-10, options={"maxiter": 5000}
    )
    law = fit_law(np.exp(x).tolist(), np.exp(y).tolist(), censored=censored.tolist())
    assert (law.intercept, law.slope) == pytest.approx(tuple(best.x[:2]), abs=1e-4)
    assert law.spread == pytest.approx(math.exp(best.x[2]) * math.sqrt(12 / 10), rel=1e-4)


def test_what_ran_out_of_time_does_not_bend_the_law() -> None:
    """Cut off at 10, an exact law of slope 1 still is one; taken at its word, it flattens."""
    x, y = [1.0, 3.0, 9.0, 40.0, 80.0], [1.1, 2.8, 9.2, 10.0, 10.0]
    cut = [value == 10.0 for value in y]
    assert fit_law(x, y, censored=cut).slope == pytest.approx(1, abs=0.05)
    assert fit_law(x, y).slope < 0.6
    assert fit_law(x, y, censored=cut).most == 80
    with pytest.raises(InputError, match=r"No model reached its target in time"):
        fit_law(x, y, censored=[True] * 5)


def test_two_points_are_no_calibration() -> None:
    with pytest.raises(InputError, match=r"2 models are too few"):
        fit_law([1.0, 2.0], [1.0, 2.0])


def test_a_slope_needs_models_that_differ() -> None:
    with pytest.raises(InputError, match=r"same curvature"):
        fit_law([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])


def test_a_calibration_survives_its_file() -> None:
    law = fit_law([1.0, 2.0, 5.0], [1.0, 2.0, 3.0])
    kept = Calibration(law, fit_law([1.0, 2.0, 5.0], [2.0, 2.5, 3.0]), "5 models of cnn-mlp")
    assert Calibration.from_dict(json.loads(to_json({"sgd": kept}))["sgd"]) == kept


def test_what_is_shipped_is_what_was_measured() -> None:
    record = Path(__file__).parents[2] / "results/paper/prediction.json"
    assert calibrations() == calibrations_in(json.loads(record.read_text())["rows"])


@pytest.fixture(scope="module")
def curvature(base: Model, silhouettes: Task) -> Curvature:
    return measure(base, silhouettes, samples=16)


def _sharpened(curvature: Curvature, factor: float) -> Curvature:
    settled = curvature.sharpness.settled
    sharper = curvature.sharpness._replace(settled=settled._replace(value=factor * settled.value))
    return dataclasses.replace(curvature, sharpness=sharper)


def test_a_model_against_itself_is_no_slower(curvature: Curvature) -> None:
    found = forecast(curvature, curvature)
    assert found.curvature_ratio == 1
    assert not found.extrapolated
    for name in OPTIMIZERS:
        assert found.slowdown[name].low < 1 < found.slowdown[name].high


def test_sharper_is_slower_and_the_rate_falls_with_it(curvature: Curvature) -> None:
    mild, strong, beyond = (forecast(_sharpened(curvature, factor), curvature) for factor in (2, 20, 1e6))
    assert strong.rate["sgd"].value < mild.rate["sgd"].value / 4
    for name in OPTIMIZERS:
        assert mild.slowdown[name].value < strong.slowdown[name].value
    assert beyond.extrapolated
    assert not mild.extrapolated
    assert json.loads(json.dumps(strong.to_dict()))["curvature_ratio"] == pytest.approx(20)


def test_without_curvature_there_is_nothing_to_foretell(curvature: Curvature) -> None:
    with pytest.raises(InputError, match=r"16 examples of .* curves upwards nowhere"):
        forecast(_sharpened(curvature, 0.0), curvature)


def test_curvatures_of_different_samples_are_not_compared(curvature: Curvature) -> None:
    with pytest.raises(InputError, match=r"measured on 16 examples .* 32 of .* Measure both on the same"):
        forecast(curvature, dataclasses.replace(curvature, samples=32))
