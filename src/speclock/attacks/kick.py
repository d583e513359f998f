"""Kick and settle: out of a basin that was prepared for small steps, then down from where the kick led."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.distill import in_turn
from speclock.attacks.finetune import FineTune
from speclock.errors import InputError

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.training import Step


@dataclass(frozen=True, kw_only=True)
class Kick(FineTune):
    """A few steps at ``kick_factor · lr``, then the rest at lr with a fresh optimizer state [arXiv 2605.14605].

    A lock that makes the loss steep, or a trap that closes after small harmful steps, holds near the released
    weights only. The kicks are steps of the budget; warm-up and schedule are the settling's.
    """

    kicks: int = 1
    """Large steps, before the optimizer starts afresh."""
    kick_factor: float = 30.0
    """A kick's learning rate over lr."""

    name: ClassVar[str] = "kick"
    kind: ClassVar[str] = "kick and settle"
    joint: ClassVar[str | None] = ", then "

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kicks < 1:
            raise InputError(f"kicks is {self.kicks}; there must be at least one.")
        if not 1 < self.kick_factor < math.inf:
            raise InputError(f"kick_factor is {self.kick_factor}; it must be above 1.")

    def prepare_(self, model: Model, scene: Scene) -> None:
        super().prepare_(model, scene)
        if self.kicks >= scene.steps:
            raise InapplicableError(f"{self.kicks} kicks leave none of {scene.steps} steps to settle in")

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        kick = dataclasses.replace(self, lr=self.kick_factor * self.lr, warmup=0, schedule="constant")
        yield from in_turn(
            FineTune.trajectory(kick, model, scene._replace(steps=self.kicks)),
            super().trajectory(model, scene._replace(steps=scene.steps - self.kicks)),
        )
