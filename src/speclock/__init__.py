"""Lock open-weight models against training, attack the lock, and say what it is worth.

Names load on first use: ``import speclock`` costs no torch import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speclock import attacks, audits, locks, models, spectra, tasks
    from speclock.attacks.finetune import FineTune
    from speclock.attacks.repair import Clip
    from speclock.audits.run import audit
    from speclock.errors import InputError
    from speclock.locks.base import Locked, lock
    from speclock.locks.rescale import Rescale
    from speclock.locks.specdef import SpecDef
    from speclock.models import Model, wrap
    from speclock.spectra import SpectralPenalty

_HOMES = {
    "Clip": "speclock.attacks.repair",
    "FineTune": "speclock.attacks.finetune",
    "InputError": "speclock.errors",
    "Locked": "speclock.locks.base",
    "Model": "speclock.models",
    "Rescale": "speclock.locks.rescale",
    "SpecDef": "speclock.locks.specdef",
    "SpectralPenalty": "speclock.spectra",
    "audit": "speclock.audits.run",
    "lock": "speclock.locks.base",
    "wrap": "speclock.models",
}
_ROOMS = ("attacks", "audits", "locks", "models", "spectra", "tasks")

__all__ = [
    "Clip",
    "FineTune",
    "InputError",
    "Locked",
    "Model",
    "Rescale",
    "SpecDef",
    "SpectralPenalty",
    "attacks",
    "audit",
    "audits",
    "lock",
    "locks",
    "models",
    "spectra",
    "tasks",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"speclock.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
