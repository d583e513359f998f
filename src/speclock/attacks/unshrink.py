"""Undoing shrink-and-perturb: weights rescaled, and the noise beside them taken out as far as spectra tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery
from speclock.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from speclock.models import Model


@dataclass(frozen=True, kw_only=True)
class UndoShrinkage(Surgery):
    """Inverts ``W ← (1−β)W + βF``, F a fresh initialisation, ``v ← (1−β)v`` for vectors, as far as that can be.

    That is how UNDO makes a model forget [Lee et al. 2025, Distillation Robustifies Unlearning]. F's singular values
    lie below an edge; those above are W's and are freed of noise by the optimal shrinker for the Frobenius norm
    [Gavish & Donoho 2017, eq. 7], the noise level being read off the median singular value [Gavish & Donoho 2014].
    A trained W has a bulk of its own there, too: of the bulk's variance σ̂² noise accounts for β² times the
    initialisation's, and the bulk is scaled to the rest. Everything is divided by 1 − β.

    A lock card of `undo` that kept something tells β; that lock shrinks neither vectors nor embeddings nor the head,
    and so they are left.
    """

    beta: float | None = None
    """β, the share of the weights that was drawn anew; none reads it off the lock card, or else estimates it."""
    denoise: bool = True
    """Whether singular values are freed of noise before the rescaling."""

    name: ClassVar[str] = "undo-shrinkage"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and not 0 < self.beta < 1:
            raise InputError(f"beta is {self.beta}; it must lie between 0 and 1.")

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch
        from torch import nn

        from speclock.models.initial import head_names
        from speclock.spectra import weight_matrices

        fresh = {
            w.name: float(w.matrix.detach().float().std()) for w in weight_matrices(model.scratch(0).module)
        }
        told = None if self.beta is not None else told_share(scene.card)
        # A fresh head has been neither shrunk nor perturbed.
        own_head = told is None and model.labels == scene.released.labels
        heads = () if own_head else tuple(f"{name}." for name in head_names(model.module))
        weights = [w for w in weight_matrices(model.module) if not w.name.startswith(heads)]
        if told is not None:
            tables = {part.weight for part in model.module.modules() if isinstance(part, nn.Embedding)}
            weights = [w for w in weights if w.parameter not in tables]
        beta = self.beta or told or estimated_share(model, fresh)
        if beta == 0:
            raise InapplicableError("nothing seems to have been shrunk")
        for weight in weights:
            W = weight.matrix.detach().float()
            if self.denoise:
                U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
                W = (U * denoised(sigma, weight.shape, beta * fresh[weight.name])) @ Vh
            weight.assign_((W / (1 - beta)).to(weight.parameter.dtype))
        if told is not None:
            return
        with torch.no_grad():
            for name, p in model.module.named_parameters():
                if p.ndim == 1 and not name.startswith(heads):
                    p.div_(1 - beta)


def told_share(card: Mapping[str, Any] | None) -> float | None:
    """The β of a lock card that says one, below 1, and whose guard kept it; of a composition's first part that does."""
    parts = (card or {}).get("parts", [card] if card else [])
    told = (part["config"].get("beta") for part in parts if part["chosen_step"])
    return next((float(beta) for beta in told if isinstance(beta, int | float) and 0 < beta < 1), None)


def denoised(sigma: Float[Tensor, " k"], shape: tuple[int, int], noise: float) -> Float[Tensor, " k"]:
    """Singular values of an m×n matrix without the part that entries of deviation ``noise`` have in them.

    ``η(σ) + √(1 − noise²/σ̂²)·(σ − η(σ))``: η is the optimal shrinker at the whole bulk's level σ̂, what it
    takes away is the bulk, and of the bulk's variance all but noise² is the matrix's own.
    """
    bulk = noise_level(sigma, shape)
    if bulk == 0:
        return sigma
    spikes = optimal_shrinkage(sigma, shape, bulk)
    return spikes + math.sqrt(max(0.0, 1 - (noise / bulk) ** 2)) * (sigma - spikes)


def noise_level(sigma: Float[Tensor, " k"], shape: tuple[int, int]) -> float:
    """σ̂, the deviation of a noise matrix's entries: ``median σ / √(n·μ)``, n the longer side.

    μ is the median of the Marchenko–Pastur law [Gavish & Donoho 2014, eq. 10]. Low-rank signal hardly moves it.
    """
    short, long = sorted(shape)
    return float(sigma.median()) / math.sqrt(long * marchenko_pastur_median(short / long))


def optimal_shrinkage(
    sigma: Float[Tensor, " k"], shape: tuple[int, int], noise: float
) -> Float[Tensor, " k"]:
    """``η(y) = √((y² − γ − 1)² − 4γ) / y`` above the edge ``y = 1 + √γ``, else 0, with ``y = σ / (noise·√n)``.

    γ = m/n ≤ 1. The best estimate of a low-rank matrix in Frobenius norm [Gavish & Donoho 2017, eq. 7].
    """
    short, long = sorted(shape)
    gamma, unit = short / long, noise * math.sqrt(long)
    edge = 1 + math.sqrt(gamma)
    y = (sigma / unit).clamp_min(edge)
    shrunk = unit * ((y**2 - gamma - 1) ** 2 - 4 * gamma).clamp_min(0).sqrt() / y
    return shrunk.where(y > edge, shrunk.new_zeros(()))


@cache
def marchenko_pastur_median(gamma: float) -> float:
    """Median of the Marchenko–Pastur law of ratio ``gamma`` in (0, 1].

    >>> round(marchenko_pastur_median(1.0), 3)
    0.653
    """
    import numpy as np

    low, high = (1 - math.sqrt(gamma)) ** 2, (1 + math.sqrt(gamma)) ** 2
    # x = middle − half·cos φ takes the density's square root, and its pole at 0 for γ = 1, out of the integral.
    phi = (np.arange(20_000) + 0.5) * (np.pi / 20_000)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(phi)
    mass = np.cumsum(np.sin(phi) ** 2 / x)
    return float(x[np.searchsorted(mass, mass[-1] / 2)])


def estimated_share(model: Model, fresh: dict[str, float]) -> float:
    """β as the released file tells it; ``fresh`` holds the initialisation's deviation for each weight matrix.

    The gains of norms start at 1 and stay near it, and a vector is only shrunk: ``1 − median |gain|``. Without
    norms the bulk has to do: of a matrix whose own bulk is as wide as its initialisation's, it is
    ``√((1−β)² + β²)`` times that, whose smaller solution is taken. The latter says little near ½; 0.95 at most.
    """
    from statistics import median

    import torch

    from speclock.attacks.finetune import is_norm
    from speclock.spectra import weight_matrices

    gains = [
        p.detach().float().abs()
        for part in model.module.modules()
        if is_norm(part)
        for name, p in part.named_parameters(recurse=False)
        if name == "weight"
    ]
    if gains:
        return min(0.95, max(0.0, 1 - float(torch.cat(gains).median())))
    ratio = median(
        noise_level(torch.linalg.svdvals(w.matrix.detach().float()), w.shape) / fresh[w.name]
        for w in weight_matrices(model.module)
        if fresh[w.name] > 0
    )
    return (1 - math.sqrt(min(1.0, max(0.0, 2 * ratio**2 - 1)))) / 2
