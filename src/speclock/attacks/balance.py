"""Balancing: undoes whatever adjacent layers compensate each other for, without knowing the lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.models.symmetries import Mixing, Rescaling

_ROUNDS = 100
_BALANCED = 0.01
"""Rounds end when no unit's factor is further than this from 1, in logarithm."""


@dataclass(frozen=True, kw_only=True)
class Balance(Surgery):
    """Layers brought to where both sides of a symmetry weigh the same: ``A ← MA``, ``B ← BM⁻¹`` (or ``M⁻ᵀB``).

    Between layers that a positively homogeneous function joins (ReLU, pooling, dropout; values and their
    output projection), between queries and keys, and between a norm's gain and all that reads the norm, a diagonal
    D > 0 can be moved without changing the function. Where that is so is found by trying a random D; d_i then makes
    the norms of the two sides' unit i equal, or the gain 1. Between a head's values and their output projection, its
    queries and keys, and layers with nothing between, any invertible M can: only the product counts, and its singular
    values are shared out evenly.

    In front of a batch norm the size of a layer's weights says nothing, but rates act by it: such a layer is brought
    to the size that initialisation gives, and the running statistics with it. What layers write that is the same in all
    units, and a layer norm takes out again, is taken out of them.
    """

    reach: int = 2
    """How many calls further on a layer's partner is looked for."""

    name: ClassVar[str] = "balance"

    def operate_(self, model: Model, scene: Scene) -> None:
        from torch import nn

        from speclock.models import wiring
        from speclock.models.symmetries import centre_, head_sizes, mixings, rescalings, resize_

        module, run = model.module, wiring.sample_run(model, scene.task)
        normed = wiring.feeding(module, run, wiring.LAYERS, (nn.BatchNorm1d, nn.BatchNorm2d))
        for layer, norm in normed:
            resize_(module, module.get_submodule(layer), module.get_submodule(norm), run)
        centred = centre_(module, run)
        heads = head_sizes(getattr(module, "config", None))
        found: list[Mixing | Rescaling] = [
            *mixings(module, run, heads, self.reach, self.seed),
            *rescalings(module, run, self.reach, self.seed),
        ]
        if not found and not normed and not centred:
            raise InapplicableError("no two layers can be rescaled against each other")
        # Each pair's balance upsets its neighbours'; together they converge to the least total norm.
        for _ in range(_ROUNDS):
            if max((symmetry.balance_() for symmetry in found), default=0.0) < _BALANCED:
                break
