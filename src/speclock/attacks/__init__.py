"""Procedures that try to train a model within a budget of steps."""

from speclock.registry import Registry

ATTACKS = Registry(
    "attack",
    {
        "finetune": ("speclock.attacks.finetune:FineTune", "trained on the attack task, by any optimizer"),
        "lora": ("speclock.attacks.lora:LoRA", "low-rank adapters beside frozen weights"),
        "clip": ("speclock.attacks.repair:Clip", "the top σ cut down to the bulk, no base needed"),
        "shrink": ("speclock.attacks.repair:Shrink", "the upper spectrum bent down towards the median σ"),
        "restore-sigma": ("speclock.attacks.repair:RestoreSigma", "a public base's σ put back"),
        "merge": ("speclock.attacks.repair:Merge", "averaged with a public base"),
        "reinitialise": ("speclock.attacks.repair:Reinitialise", "the likeliest locked layers drawn anew"),
        "balance": ("speclock.attacks.balance:Balance", "adjacent layers rescaled against each other"),
        "fuse": ("speclock.attacks.fuse:Fuse", "adjacent linear layers multiplied into one"),
        "chain": ("speclock.attacks.chain:Chain", "each linear layer trained as a product of k factors"),
        "quantise": ("speclock.attacks.compress:Quantise", "weights rounded to a few bits and back"),
        "prune": ("speclock.attacks.compress:Prune", "the smallest weights set to zero"),
        "distill": (
            "speclock.attacks.distill:Distill",
            "a student without the lock taught by the locked model",
        ),
        "heal": ("speclock.attacks.heal:Heal", "trained on data of the retain task's kind first"),
        "probe": ("speclock.attacks.probe:Probe", "a linear model on the features of one frozen layer"),
        "undo-shrinkage": (
            "speclock.attacks.unshrink:UndoShrinkage",
            "singular values denoised and weights rescaled, as shrink-and-perturb calls for",
        ),
        "subtract-noise": (
            "speclock.attacks.subtract:SubtractNoise",
            "a lock's noise found by its seed, and taken out",
        ),
        "reset-units": ("speclock.attacks.reset:ResetUnits", "dead, saturated and cloned units drawn anew"),
        "kick": ("speclock.attacks.kick:Kick", "a few large steps, then small ones"),
        "average": ("speclock.attacks.average:Average", "averaged with other releases of the same base"),
    },
)
