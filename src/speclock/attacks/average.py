"""Averaging several releases of one base: what each release drew at random cancels out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery

if TYPE_CHECKING:
    from speclock.models import Model


@dataclass(frozen=True, kw_only=True)
class Average(Surgery):
    """``θ ← (1/n) Σᵢ θᵢ`` over the released model and its siblings, then fine-tuning.

    Noise that each of n releases draws for itself falls by √n against what they share, so a publisher must
    use one draw for all. A head is averaged only where all answer with the same labels.
    """

    name: ClassVar[str] = "average"
    needs_siblings: ClassVar[bool] = True

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch

        from speclock.models.initial import head_names

        if not scene.siblings:
            raise InapplicableError("no other release of the same base is known (--sibling)")
        heads = tuple(f"{name}." for name in head_names(model.module))
        own_head = all(m.labels == model.labels for m in (scene.released, *scene.siblings))
        states = [(sibling.name, sibling.module.state_dict()) for sibling in scene.siblings]
        with torch.no_grad():
            for name, value in model.module.state_dict().items():
                if not value.is_floating_point() or (name.startswith(heads) and not own_head):
                    continue
                total = value.float()
                for sibling, state in states:
                    if name not in state or state[name].shape != value.shape:
                        raise InapplicableError(f"{sibling} has no {name} like that of {model.name}")
                    total = total + state[name].to(total)
                value.copy_(total / (1 + len(states)))
