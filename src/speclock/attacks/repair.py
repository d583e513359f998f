"""Base-free repair: undo the lock's spectrum with nothing but the locked file, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from speclock.attacks.finetune import FineTune

if TYPE_CHECKING:
    from speclock.models import Model


@dataclass(frozen=True, kw_only=True)
class Clip(FineTune):
    """``σᵢ ← min(σᵢ, σ_{rank+1})`` in every weight matrix, then fine-tuning.

    The attacker does not know how many singular values were raised, so ``rank`` is chosen above what locks
    usually raise; a matrix with no more than ``rank`` singular values is left alone.
    """

    rank: int = 8
    """Singular values cut down to the next one."""

    name: ClassVar[str] = "clip"

    def prepare_(self, model: Model) -> None:
        import torch

        from speclock.spectra import weight_matrices

        for weight in weight_matrices(model.module):
            W = weight.matrix.detach()
            if min(W.shape) <= self.rank:
                continue
            U, sigma, Vh = torch.linalg.svd(W.float(), full_matrices=False)
            excess = sigma[: self.rank] - sigma[self.rank]
            weight.assign_((W.float() - (U[:, : self.rank] * excess) @ Vh[: self.rank]).to(W.dtype))
