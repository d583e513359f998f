"""Judge a lock: the same attacks on base, scratch, control and locked model, and what follows from them."""

from __future__ import annotations

from speclock.registry import Registry

SUITES = Registry(
    "suite",
    {
        "quick": (
            "speclock.audits.suite:QUICK",
            "fine-tuning swept over rate × optimizer, and σ clipping; 32 steps",
        ),
        "standard": (
            "speclock.audits.suite:STANDARD",
            "every attack: optimizers, knobs, adapters, surgery, distillation; 48 steps",
        ),
    },
)
