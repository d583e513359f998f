"""Frozen suites: which attacks an audit runs, so that two people's numbers compare.

A suite that has been published never changes; a better one gets the next version number.
"""

from __future__ import annotations

from dataclasses import dataclass

from speclock.attacks.base import Attack
from speclock.attacks.finetune import FineTune
from speclock.attacks.repair import Clip


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


def _sweep(optimizer: str, *rates: float, weight_decay: float = 0.0) -> tuple[Attack, ...]:
    return tuple(FineTune(optimizer=optimizer, lr=lr, weight_decay=weight_decay) for lr in rates)


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
