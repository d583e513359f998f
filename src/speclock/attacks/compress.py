"""Compression as surgery: rounding or dropping weights may wash a lock out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.base import Scene
from speclock.attacks.surgery import Surgery
from speclock.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from speclock.models import Model


@dataclass(frozen=True, kw_only=True)
class Quantise(Surgery):
    """Every weight matrix rounded and back: ``W ← s·round(W/s)``, ``s = max|row| / (2^{bits−1} − 1)``."""

    bits: int = 8
    """Bits of a weight, 2 to 16."""

    name: ClassVar[str] = "quantise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 16:
            raise InputError(f"bits is {self.bits}; it must lie between 2 and 16.")

    def operate_(self, model: Model, scene: Scene) -> None:
        from speclock.spectra import weight_matrices

        for weight in weight_matrices(model.module):
            weight.assign_(rounded(weight.matrix.detach(), self.bits))


@dataclass(frozen=True, kw_only=True)
class Prune(Surgery):
    """The weights of smallest magnitude set to zero, over all linear layers and convolutions together."""

    share: float = 0.3
    """Part of the weights that goes, in (0, 1)."""

    name: ClassVar[str] = "prune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}; it must lie between 0 and 1.")

    def operate_(self, model: Model, scene: Scene) -> None:
        from torch.nn.utils import prune

        from speclock.models.wiring import LAYERS

        layers = [(module, "weight") for module in model.module.modules() if isinstance(module, LAYERS)]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=self.share)
        for module, name in layers:
            prune.remove(module, name)


def rounded(W: Float[Tensor, "m n"], bits: int) -> Float[Tensor, "m n"]:
    """``W`` after symmetric round-to-nearest quantisation of each row.

    >>> import torch
    >>> rounded(torch.tensor([[1.0, 0.4, -0.6]]), bits=2)
    tensor([[ 1.,  0., -1.]])
    """
    scale = W.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (W / scale).round() * scale
