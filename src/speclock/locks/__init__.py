"""Procedures that take a model and a retain task and return a locked model."""

from speclock.registry import Registry

LOCKS = Registry(
    "lock",
    {
        "specdef": (
            "speclock.locks.specdef:SpecDef",
            "gradient ascent on the top σ beside a retain loss (Algorithm 1)",
        ),
        "undo": (
            "speclock.locks.undo:Undo",
            "weights drawn anew, and taught again by the base's answers",
        ),
        "scheduled": (
            "speclock.locks.scheduled:Scheduled",
            "the top σ on a schedule, as fast as training can follow",
        ),
        "compensated": (
            "speclock.locks.compensated:Compensated",
            "the top σ of a layer raised, and lowered where it is read",
        ),
        "reparameterise": (
            "speclock.locks.reparameterise:Reparameterise",
            "layers multiplied, and divided out by those that read them",
        ),
        "rescale": (
            "speclock.locks.rescale:Rescale",
            "the top σ multiplied in place, without data (Figure 2)",
        ),
    },
)
