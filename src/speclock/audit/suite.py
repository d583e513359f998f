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
    """Scores along each run, evenly spaced, beside one before training and one halfway to the first."""
    finalists: int = 1
    """Configurations of each target that are run again under every further seed."""

    @property
    def label(self) -> str:
        """Name and version, as a record quotes them."""
        return f"{self.name}/{self.version}"


def _sweep(optimizer: str, *rates: float) -> tuple[Attack, ...]:
    return tuple(FineTune(optimizer=optimizer, lr=lr) for lr in rates)


# The likeliest winners come first: pruning compares a run with those before it.
QUICK = Suite(
    name="quick",
    version=1,
    steps=60,
    attacks=(
        *_sweep("adamw", 3e-4, 1e-3, 1e-4, 3e-3, 3e-5),
        *_sweep("sgd-momentum", 1e-2, 1e-1, 1e-3),
        *_sweep("adam", 3e-4, 1e-3, 1e-4),
        *_sweep("adadelta", 1.0, 1e-1, 10.0),
        *(Clip(optimizer="adamw", lr=lr) for lr in (3e-4, 1e-3, 1e-4)),
    ),
)
