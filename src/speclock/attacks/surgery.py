"""What every surgery on the weights shares: the operation, the healing after it, then fine-tuning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import Scene
from speclock.attacks.finetune import FineTune
from speclock.errors import InputError

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.training import Step


_OUTLYING = 1e3
"""Times the median: no row or column of a trained matrix is that much longer than the others."""


def without_outliers_(model: Model) -> None:
    """Bring rows and columns far out of proportion to the median norm.

    A row that no input reads, a word that never comes, may be of any size without changing what the model does; the
    spectrum is then this row's, and in the rounding of what is operated on it all the others are lost.
    """
    from speclock.spectra import weight_matrices

    for weight in weight_matrices(model.module):
        W = weight.matrix.detach().float()
        changed = False
        for dim in (1, 0):
            norms = W.norm(dim=dim, keepdim=True)
            median = norms.median()
            apart = (norms > _OUTLYING * median) & (median > 0)
            if apart.any():
                W, changed = W * (median / norms).where(apart, 1.0), True
        if changed:
            weight.assign_(W.to(weight.parameter.dtype))


@dataclass(frozen=True, kw_only=True)
class Surgery(FineTune):
    """An operation on the weights, then fine-tuning.

    A subclass gives :meth:`operate_`. With ``heal``, steps before the budget's bring back what the operation
    spoilt: the released model's features on the attacker's own inputs are the target, so neither labels nor
    data of the publisher's are needed.
    """

    heal: int = 0
    """Steps before the budget's in which the operated model is trained to give the released one's features."""

    kind: ClassVar[str] = "surgery"
    joint: ClassVar[str | None] = ", then "

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heal < 0:
            raise InputError(f"heal is {self.heal}; it must not be negative.")

    @abstractmethod
    def operate_(self, model: Model, scene: Scene) -> None:
        """Change the weights in place."""

    def unlabelled(self, steps: int) -> int:
        return self.heal

    def prepare_(self, model: Model, scene: Scene) -> None:
        super().prepare_(model, scene)
        without_outliers_(model)
        self.operate_(model, scene)

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        from speclock.attacks.distill import imitation, in_turn

        if not self.heal:
            yield from super().trajectory(model, scene)
            return
        yield from in_turn(
            imitation(model, scene.released, scene.task, self, self.heal), super().trajectory(model, scene)
        )
