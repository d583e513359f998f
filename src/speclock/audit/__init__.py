"""Judge a lock: the same attacks on base, scratch, control and locked model, and what follows from them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from speclock.registry import Registry

SUITES = Registry(
    "suite",
    {
        "quick": (
            "speclock.audit.suite:QUICK",
            "fine-tuning swept over rate × optimizer, and σ clipping; 32 steps",
        ),
        "standard": (
            "speclock.audit.suite:STANDARD",
            "every attack: optimizers, knobs, adapters, surgery, distillation; 48 steps",
        ),
    },
)


class _Callable(ModuleType):
    # The room is called what its one verb is called: `speclock.audit(base=…, locked=…)` is the public name,
    # and importing any module of the room binds `speclock.audit` to this package.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from speclock.audit.run import audit

        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
