"""Frozen suites: which attacks an audit runs, so that two people's numbers compare.

A suite that has been published never changes; a better one gets the next version number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speclock.attacks.balance import Balance
from speclock.attacks.base import Attack
from speclock.attacks.chain import Chain
from speclock.attacks.compress import Prune, Quantise
from speclock.attacks.distill import Distill
from speclock.attacks.finetune import FineTune
from speclock.attacks.fuse import Fuse
from speclock.attacks.lora import LoRA
from speclock.attacks.repair import Clip, Merge, Reinitialise, RestoreSigma, Shrink


@dataclass(frozen=True)
class Suite:
    """Attacks in the order in which a sweep tries them, and how losing ones are given up."""

    name: str
    version: int
    steps: int
    """Budget of each run, in optimizer steps, where the user gives none."""
    attacks: tuple[Attack, ...]
    evaluations: int = 4
    """Scores along each run, evenly spaced."""
    finalists: int = 1
    """Configurations of each target that are run again under every further seed."""

    @property
    def label(self) -> str:
        """Name and version, as a record quotes them."""
        return f"{self.name}/{self.version}"


def _sweep(optimizer: str, *rates: float, **settings: Any) -> tuple[Attack, ...]:
    return tuple(FineTune(optimizer=optimizer, lr=lr, **settings) for lr in rates)


def _adamw(attack: type[FineTune], *rates: float, **settings: Any) -> tuple[Attack, ...]:
    """An attack with AdamW as the paper sets it (B.2) at each of the rates."""
    return tuple(attack(optimizer="adamw", lr=lr, weight_decay=0.01, **settings) for lr in rates)


# The likeliest winners come first: pruning compares a run with those before it. AdamW decays as in the paper
# (B.2); Adam, which differs from it by that alone, fills in the rates between.
QUICK = Suite(
    name="quick",
    version=1,
    steps=32,
    attacks=(
        *_sweep("adamw", 3e-4, 1e-4, 1e-3, 3e-5, 3e-3, weight_decay=0.01),
        *_sweep("adam", 2e-4, 6e-4),
        *_sweep("sgd-momentum", 1e-2, 1e-1),
        *_sweep("adadelta", 1.0, 1e-1),
        *(Clip(optimizer="adamw", lr=lr, weight_decay=0.01) for lr in (3e-4, 1e-4)),
    ),
)

_MIDDLE = (3e-4, 1e-3, 1e-4, 3e-3)
"""Rates around AdamW's best, from pretrained transformers to small networks; a best on the edge is flagged."""

# Everything of FIELD's list. Sweeps first: they set the mark by which the variants are pruned.
STANDARD = Suite(
    name="standard",
    version=1,
    steps=48,
    finalists=3,
    attacks=(
        # Optimizer × learning rate.
        *_adamw(FineTune, *_MIDDLE, 3e-5, 1e-2, 1e-5, 1e-6, 1e-1, 1e-7, 1e-8),
        *_sweep("adam", 2e-4, 6e-4, 6e-5),
        *_sweep("sgd-momentum", 1e-1, 1e-2, 1.0, 1e-3),
        *_sweep("sgd", 1.0, 1e-1, 1e-2, 1e-3),
        *_sweep("sgd-nesterov", 1e-1, 1e-2, 1.0),
        *_sweep("adadelta", 1.0, 1e-1, 10.0),
        *_sweep("adagrad", 3e-3, 1e-2, 1e-3),
        *_sweep("rmsprop", 1e-4, 1e-3, 1e-5),
        *_sweep("adafactor", 1e-2, 1e-1, 1e-3),
        *_sweep("lion", 1e-4, 3e-4, 3e-5),
        *_sweep("muon", 1e-3, 1e-2, 1e-4),
        *_sweep("lamb", 1e-3, 1e-2, 1e-4),
        *_sweep("lars", 1e-3, 1e-2, 1e-4),
        *_sweep("sam", *_MIDDLE),
        *_sweep("natural-gradient", *_MIDDLE),
        # Preconditioners and second order.
        *_sweep("shampoo", 1e-2, 1e-1, 1e-3),
        *_sweep("soap", *_MIDDLE),
        *_sweep("kron", *_MIDDLE),
        *_sweep("xmat", 1e-2, 1e-1, 1e-3),
        *_sweep("sophia", 1e-2, 1e-1, 1e-3),
        *_sweep("adahessian", 1e-2, 1e-1, 1e-3),
        *_sweep("lbfgs", 1.0, 1e-1, 1e-2, clip=None),
        *_sweep("zeroth-order", 1e-4, 1e-5, 1e-6, clip=None, dropout=False),
        # Knobs.
        *_adamw(FineTune, *_MIDDLE, dropout=False),
        *_adamw(FineTune, *_MIDDLE, clip=None),
        *_adamw(FineTune, *_MIDDLE, clip=0.1),
        *_adamw(FineTune, *_MIDDLE, warmup=8),
        *_adamw(FineTune, *_MIDDLE, batch_size=4),
        *_adamw(FineTune, *_MIDDLE, batch_size=64),
        *_adamw(FineTune, *_MIDDLE, parameters="all-but-norms"),
        *_adamw(FineTune, *_MIDDLE, batch_statistics=False),
        *_adamw(FineTune, *_MIDDLE, precision="bf16"),
        *_adamw(FineTune, *_MIDDLE, layer_rates="spectral"),
        *_sweep("sgd-momentum", 1e-1, 1e-2, 1.0, layer_rates="spectral"),
        *_sweep("sgd", 1.0, 1e-1, 1e-2, temperature=1e-8, clip=None),
        # Few parameters.
        *_adamw(LoRA, 1e-3, 1e-2, 1e-4),
        *_adamw(LoRA, 1e-3, 1e-2, 1e-4, layers="unlocked"),
        *_adamw(FineTune, 1e-2, 1e-3, 1e-1, parameters="norms"),
        *_adamw(FineTune, 1e-2, 1e-3, 1e-1, parameters="biases"),
        *_adamw(FineTune, 1e-2, 1e-3, 1e-1, parameters="head"),
        # Surgery, then fine-tuning.
        *_adamw(Clip, *_MIDDLE),
        *_adamw(Clip, *_MIDDLE, rank=2),
        *_adamw(Clip, *_MIDDLE, rank=32),
        *_adamw(Clip, *_MIDDLE, heal=8),
        *_adamw(Shrink, *_MIDDLE),
        *_adamw(Balance, *_MIDDLE),
        *_adamw(Fuse, *_MIDDLE),
        *_adamw(Chain, *_MIDDLE),
        *_adamw(Chain, *_MIDDLE, factors=3),
        *_adamw(Chain, *_MIDDLE, factors=5),
        *_adamw(Reinitialise, *_MIDDLE),
        *_adamw(Reinitialise, *_MIDDLE, heal=8),
        *_adamw(Quantise, *_MIDDLE),
        *_adamw(Quantise, *_MIDDLE, bits=4),
        *_adamw(Quantise, *_MIDDLE, bits=4, heal=8),
        *_adamw(Prune, *_MIDDLE),
        *_adamw(Prune, *_MIDDLE, heal=8),
        *_adamw(RestoreSigma, *_MIDDLE),
        *_adamw(Merge, *_MIDDLE),
        # Distillation.
        *_adamw(Distill, *_MIDDLE),
        *_adamw(Distill, *_MIDDLE, student="public"),
    ),
)
