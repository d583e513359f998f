"""Fine-tuning: the attack that everybody tries first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import Attack
from speclock.recipe import Recipe

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.tasks.base import Task
    from speclock.training import Step


@dataclass(frozen=True, kw_only=True)
class FineTune(Recipe, Attack):
    """Every parameter trained on the attack task with its own loss."""

    clip: float | None = 1.0
    """Largest gradient norm; none leaves gradients as they are."""

    name: ClassVar[str] = "finetune"

    def trajectory(self, model: Model, task: Task, steps: int) -> Iterator[Step]:
        from speclock.training import fit

        yield from fit(model.module, task, model, self, steps=steps)
