"""What a lock will cost, from curvature, before any attack is run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speclock.forecast.curvature import Curvature, Sharpness, measure, sharpness
    from speclock.forecast.objective import Objective
    from speclock.forecast.slowdown import Forecast, forecast
    from speclock.forecast.stability import largest_rate_found

_HOMES = {
    "Curvature": "curvature",
    "Forecast": "slowdown",
    "Objective": "objective",
    "Sharpness": "curvature",
    "forecast": "slowdown",
    "largest_rate_found": "stability",
    "measure": "curvature",
    "sharpness": "curvature",
}

__all__ = [
    "Curvature",
    "Forecast",
    "Objective",
    "Sharpness",
    "forecast",
    "largest_rate_found",
    "measure",
    "sharpness",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
