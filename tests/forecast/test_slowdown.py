"""Laws that are fitted, and what a forecast says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclock.errors import InputError
from speclock.forecast.slowdown import Calibration, Law, fit_law, to_json

SIZES = st.floats(0.01, 100)


@given(slope=st.floats(-2, 2), factor=SIZES)
def test_an_exact_law_is_recovered(slope: float, factor: float) -> None:
    x = [0.1, 1.0, 7.0, 50.0]
    law = fit_law(x, [factor * value**slope for value in x])
    assert law.slope == pytest.approx(slope, abs=1e-6)
    assert law(3.0).value == pytest.approx(factor * 3.0**slope, rel=1e-6)
    assert law.spread == pytest.approx(0, abs=1e-6)


def test_the_interval_is_students() -> None:
    """Residuals of ±1 around a constant: spread 1.1547 for four points, t of two degrees of freedom 2.92."""
    law = fit_law([1.0, 1.0, 1.0, 1.0], [math.e, 1 / math.e, math.e, 1 / math.e], slope=1.0)
    found = law(1.0)
    assert found.value == pytest.approx(1.0)
    assert math.log(found.high) == pytest.approx(2.91999 * 1.154701, rel=1e-4)
    assert found.low == pytest.approx(1 / found.high)


def test_two_points_are_no_calibration() -> None:
    with pytest.raises(InputError, match=r"2 locks are too few"):
        fit_law([1.0, 2.0], [1.0, 2.0])


def test_a_calibration_survives_its_file() -> None:
    import json

    kept = Calibration(Law(0.1, 1.0, 0.2, 5), Law(0.0, 0.5, 0.3, 4), "5 models of cnn-mlp")
    assert Calibration.from_dict(json.loads(to_json({"sgd": kept}))["sgd"]) == kept
