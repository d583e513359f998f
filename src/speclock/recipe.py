"""How to train: the configuration of the training loop, readable without importing torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclock.errors import InputError
from speclock.optimizers import optimizer_named
from speclock.registry import unknown

if TYPE_CHECKING:
    from speclock.tasks.base import Task

SCHEDULES = ("constant", "linear", "cosine", "step")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything of the loop that is neither the model, the task, the loss nor the number of steps."""

    optimizer: str = "adamw"
    """One of `speclock ls optimizers`."""
    lr: float = 1e-4
    """Peak learning rate."""
    batch_size: int = 16
    """Examples per forward pass."""
    accumulate: int = 1
    """Forward passes per optimizer step."""
    schedule: str = "constant"
    """constant, linear or cosine to zero, or step (times gamma after each epoch)."""
    gamma: float = 0.7
    """Factor per epoch of the step schedule."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    clip: float | None = None
    """Largest gradient norm; none leaves gradients as they are."""
    weight_decay: float = 0.0
    """Weight decay, decoupled or L2 as the optimizer has it."""
    precision: str = "no"
    """Mixed precision: no, bf16 or fp16."""
    dropout: bool = True
    """Whether dropout is on while training."""
    batch_statistics: bool = True
    """Whether batch norms normalise by the batch and keep their running averages up, or use them frozen."""
    seed: int = 0
    """Order of the data, dropout, fresh heads."""

    def __post_init__(self) -> None:
        optimizer_named(self.optimizer)
        if self.schedule not in SCHEDULES:
            raise InputError(unknown("schedule", self.schedule, list(SCHEDULES)))
        if self.precision not in PRECISIONS:
            raise InputError(unknown("precision", self.precision, list(PRECISIONS)))
        for name in ("lr", "batch_size", "accumulate", "gamma", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be a positive number.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must be from 0 to 2³² − 1.")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative.")

    def steps_per_epoch(self, task: Task) -> int:
        """Optimizer steps in one pass over the training split; a last, smaller batch is left out."""
        return max(1, len(task.train) // (self.batch_size * self.accumulate))


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(Recipe):
    """A recipe with a length of its own, in steps or in passes over the data."""

    epochs: float = 3.0
    """Passes over the training split, where steps is not given."""
    steps: int | None = None
    """Optimizer steps; overrides epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epochs < math.inf:
            raise InputError(f"epochs is {self.epochs}; it must be a positive number.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be at least 1.")

    def total_steps(self, task: Task) -> int:
        """Optimizer steps of the whole run on ``task``."""
        return self.steps or max(1, round(self.epochs * self.steps_per_epoch(task)))

    def repeats(self, task: Task) -> bool:
        """Whether the run comes to a training example of ``task`` more than once."""
        return self.total_steps(task) > self.steps_per_epoch(task)
