"""Healing first: further training on what the model was released for brings back what a lock made it forget."""

from __future__ import annotations

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
class Heal(FineTune):
    """The model trained on the retain task, under its own head, before it is trained on the attack task.

    Tuning on retained data alone undoes much of most unlearning [arXiv 2505.22310]. The data need not be the
    publisher's own, only of the kind that the model was released for. Both trainings have the same recipe.
    """

    healing: int = 64
    """Steps on the retain task, before the budget's."""

    name: ClassVar[str] = "heal"
    kind: ClassVar[str] = "healing"
    joint: ClassVar[str | None] = ", then "
    needs_retain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.healing < 1:
            raise InputError(f"healing is {self.healing}; it takes at least one step.")

    def unlabelled(self, steps: int) -> int:
        return self.healing

    def prepare_(self, model: Model, scene: Scene) -> None:
        super().prepare_(model, scene)
        if scene.retain is None:
            raise InapplicableError("no data of the kind that the model was released for are known")
        if scene.retain.labels != scene.released.labels:
            raise InapplicableError(f"the released model's head does not do {scene.retain.name}")

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        yield from in_turn(self._healed_(model, scene), super().trajectory(model, scene))

    def _healed_(self, model: Model, scene: Scene) -> Iterator[Step]:
        from speclock.training import fit

        assert scene.retain is not None
        # Without a fresh head, the head is healed too.
        patient = model if model.labels == scene.released.labels else model.with_head_of(scene.released)
        patient.module.float().requires_grad_(True)
        yield from fit(patient, scene.retain, self, steps=self.healing, skips=True, title="healing")
        if patient is not model:
            model.module = patient.with_head_of(model).module
