"""Procedures that take a model and a retain task and return a locked model."""

from speclock.registry import Registry

LOCKS = Registry(
    "lock",
    {
        "specdef": "speclock.locks.specdef:SpecDef",
        "rescale": "speclock.locks.rescale:Rescale",
    },
)
