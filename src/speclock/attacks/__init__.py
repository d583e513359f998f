"""Procedures that try to train a model within a budget of steps."""

from speclock.registry import Registry

ATTACKS = Registry(
    "attack",
    {
        "finetune": ("speclock.attacks.finetune:FineTune", "every parameter trained on the attack task"),
        "clip": (
            "speclock.attacks.repair:Clip",
            "the top σ cut down to the bulk, no base needed, then fine-tuning",
        ),
    },
)
