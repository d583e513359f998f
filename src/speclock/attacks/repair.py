"""Surgery on the spectrum before fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery

if TYPE_CHECKING:
    from speclock.models import Model
    from speclock.spectra.matrices import WeightMatrix


@dataclass(frozen=True, kw_only=True)
class Clip(Surgery):
    """``σᵢ ← min(σᵢ, σ_{rank+1})`` in every weight matrix: needs nothing but the locked file.

    ``rank`` is chosen above what locks usually raise. Where the lock card says that more were, or fewer, and the
    singular values drop more steeply there, it is as many; a matrix with no more singular values is left alone.
    """

    rank: int = 8
    """Singular values cut down to the next one."""

    name: ClassVar[str] = "clip"

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch

        from speclock.spectra import weight_matrices

        told = told_ranks(scene.card)
        for weight in weight_matrices(model.module):
            W = weight.matrix.detach()
            ranks = [k for k in (self.rank, *told) if k < min(W.shape)]
            if not ranks:
                continue
            U, sigma, Vh = torch.linalg.svd(W.float(), full_matrices=False)
            # A card that lies has no say: what was raised ends in a drop.
            rank = max(ranks, key=lambda k: float(sigma[k - 1] / sigma[k].clamp_min(1e-12)))
            excess = sigma[:rank] - sigma[rank]
            weight.assign_((W.float() - (U[:, :rank] * excess) @ Vh[:rank]).to(W.dtype))


def told_ranks(card: Mapping[str, Any] | None) -> list[int]:
    """How many singular values of each matrix the parts of a lock card say were raised, one or more."""
    parts = [] if card is None else card.get("parts", [card])
    told = [part.get("config", {}).get("top_k") for part in parts]
    return [k for k in told if isinstance(k, int) and k >= 1]


@dataclass(frozen=True, kw_only=True)
class Shrink(Surgery):
    """``σᵢ ← m·(σᵢ/m)^power`` for every σᵢ above the median m: a softer clip, of the whole upper spectrum."""

    power: float = 0.5
    """Exponent in (0, 1): 0 cuts to the median, 1 changes nothing."""

    name: ClassVar[str] = "shrink"

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch

        from speclock.spectra import weight_matrices

        for weight in weight_matrices(model.module):
            W = weight.matrix.detach()
            U, sigma, Vh = torch.linalg.svd(W.float(), full_matrices=False)
            bulk = sigma.median()
            if bulk <= 0:
                continue
            shrunk = torch.where(sigma > bulk, bulk * (sigma / bulk) ** self.power, sigma)
            weight.assign_(((U * shrunk) @ Vh).to(W.dtype))


@dataclass(frozen=True, kw_only=True)
class RestoreSigma(Surgery):
    """``W ← U diag(σ_public) Vᵀ``: the locked singular vectors under a public base's singular values."""

    name: ClassVar[str] = "restore-sigma"
    needs_public: ClassVar[bool] = True

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch

        for weight, public in paired_with_public(model, scene):
            W = weight.matrix.detach()
            U, _, Vh = torch.linalg.svd(W.float(), full_matrices=False)
            sigma = torch.linalg.svdvals(public.matrix.detach().float()).to(W.device)
            weight.assign_(((U * sigma) @ Vh).to(W.dtype))


@dataclass(frozen=True, kw_only=True)
class Merge(Surgery):
    """``W ← (1 − share)·W + share·W_public`` in every weight matrix."""

    share: float = 0.5
    """The public base's part, in [0, 1]."""

    name: ClassVar[str] = "merge"
    needs_public: ClassVar[bool] = True

    def operate_(self, model: Model, scene: Scene) -> None:
        for weight, public in paired_with_public(model, scene):
            W = weight.matrix.detach()
            weight.assign_(W.lerp(public.matrix.detach().to(W), self.share))


@dataclass(frozen=True, kw_only=True)
class Reinitialise(Surgery):
    """The weight matrices whose spectrum stands out most drawn anew, everything else kept."""

    share: float = 0.25
    """Part of the weight matrices that is drawn anew: those with the largest σ₁ over the median σ."""

    name: ClassVar[str] = "reinitialise"

    def operate_(self, model: Model, scene: Scene) -> None:
        from speclock.spectra import weight_matrices

        fresh = {w.name: w for w in weight_matrices(model.scratch(self.seed).module)}
        for weight in suspects(model, self.share):
            weight.assign_(fresh[weight.name].matrix.detach())


def suspects(model: Model, share: float) -> list[WeightMatrix]:
    """The ``share`` of the weight matrices, the head's aside, with the largest σ₁ over the median σ.

    What an attacker who has no base takes for locked: SpecDef and its kin raise a few σ and leave the bulk.
    """
    import torch

    from speclock.models.initial import head_names
    from speclock.spectra import weight_matrices

    heads = tuple(f"{name}." for name in head_names(model.module))
    ranked = []
    for weight in weight_matrices(model.module):
        if not weight.name.startswith(heads):
            sigma = torch.linalg.svdvals(weight.matrix.detach().float())
            ranked.append((float(sigma[0] / sigma.median().clamp_min(1e-12)), weight))
    ranked.sort(key=lambda pair: -pair[0])
    return [weight for _, weight in ranked[: max(1, round(share * len(ranked)))]]


def paired_with_public(model: Model, scene: Scene) -> Iterator[tuple[WeightMatrix, WeightMatrix]]:
    """Every weight matrix that the public model has in the same shape, beside its namesake there."""
    from speclock.models.initial import head_names
    from speclock.spectra import weight_matrices

    if scene.public is None:
        raise InapplicableError("no public base is known (--public-base)")
    known = {w.name: w for w in weight_matrices(scene.public.module)}
    heads = tuple(f"{name}." for name in head_names(model.module))
    pairs = [
        (weight, known[weight.name])
        for weight in weight_matrices(model.module)
        if not weight.name.startswith(heads)
        and weight.name in known
        and known[weight.name].shape == weight.shape
    ]
    if not pairs:
        raise InapplicableError(f"{scene.public.name} shares no weight matrix with {model.name}")
    yield from pairs
