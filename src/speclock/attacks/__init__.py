"""Procedures that try to train a model within a budget of steps."""

from speclock.registry import Registry

ATTACKS = Registry(
    "attack",
    {
        "finetune": "speclock.attacks.finetune:FineTune",
        "clip": "speclock.attacks.repair:Clip",
    },
)
