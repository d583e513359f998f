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
    },
)
