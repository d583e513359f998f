"""What a lock will cost, from curvature, before any attack is run."""

from speclock.forecast.effort import Effort, fewest_steps
from speclock.forecast.measurement import Curvature, Sharpness, measure, sharpness
from speclock.forecast.objective import Objective
from speclock.forecast.slowdown import Forecast, forecast
from speclock.forecast.stability import largest_rate_found

__all__ = [
    "Curvature",
    "Effort",
    "Forecast",
    "Objective",
    "Sharpness",
    "fewest_steps",
    "forecast",
    "largest_rate_found",
    "measure",
    "sharpness",
]
