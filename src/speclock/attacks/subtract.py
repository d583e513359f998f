"""Subtracting a lock's noise, where its seed can be guessed or is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.surgery import Surgery
from speclock.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from speclock.models import Model
    from speclock.spectra import WeightMatrix

_ENTRIES = 4096
"""First entries of a matrix that are compared with the noise of a seed that is only guessed."""
_SURE = 6.0
"""Deviations of independent noise's correlation: a chance of 1e-9, for each of some ten thousand tries."""
_ALL = 0.95
"""Share of noise from which on there is nothing left beside it to scale up."""


@dataclass(frozen=True, kw_only=True)
class SubtractNoise(Surgery):
    """Finds the seed of a lock's noise F, then ``W ← (W − b·F)/(1 − β̂)`` with b = ⟨W, F⟩/⟨F, F⟩, matrix by matrix.

    F is what `undo` draws for a parameter of that name; β̂ is b over the deviation of an initial matrix. Tried are
    the seeds that the lock card names and the first ``seeds`` whole numbers; a matrix is taken to hold a seed's noise
    when their correlation is six deviations from that of independent noise. Rows of embeddings are taken one by one,
    and not scaled.
    """

    seeds: int = 1000
    """How many seeds are tried, from 0 on, beside those that the lock card names."""

    name: ClassVar[str] = "subtract-noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 0:
            raise InputError(f"seeds is {self.seeds}; it must not be negative.")

    def operate_(self, model: Model, scene: Scene) -> None:
        import torch
        from torch import nn

        from speclock.models.initial import named_noise

        weights = _not_the_heads(model)
        if (seed := noise_seed(model, scene.card, self.seeds)) is None:
            raise InapplicableError("no weight matrix holds the noise of a seed that could be guessed")
        initial = {name: p.detach() for name, p in model.scratch(0).module.named_parameters()}
        tables = {part.weight for part in model.module.modules() if isinstance(part, nn.Embedding)}
        with torch.no_grad():
            for weight in weights:
                if not holds(weight, seed):
                    continue
                W, F = weight.parameter, named_noise(weight.name, weight.parameter, 1.0, seed)
                if W in tables:
                    W.sub_((W * F).sum(1, keepdim=True) / F.square().sum(1, keepdim=True) * F)
                    continue
                b = float((W * F).sum() / F.square().sum())
                share = b / float(initial[weight.name].std())
                W.sub_(F, alpha=b)
                if 0 < share < _ALL:
                    W.div_(1 - share)


def noise_seed(model: Model, card: Mapping[str, Any] | None, seeds: int = 1000) -> int | None:
    """The seed of the noise that the weights hold, if the card names it or it is among the first ``seeds``."""
    weights, told = _not_the_heads(model), _told(card)
    guessed = (seed for seed in range(seeds) if seed not in told)
    found = (s for s in told if any(holds(w, s) for w in weights))
    tried = (s for s in guessed if any(holds(w, s, _ENTRIES) for w in weights))
    return next(chain(found, tried), None)


def _not_the_heads(model: Model) -> list[WeightMatrix]:
    from speclock.models.initial import head_names
    from speclock.spectra import weight_matrices

    heads = tuple(f"{name}." for name in head_names(model.module))
    return [w for w in weight_matrices(model.module) if not w.name.startswith(heads)]


def _told(card: Mapping[str, Any] | None) -> list[int]:
    """Seeds that a lock card names, the noise's own first."""
    parts = (card or {}).get("parts", [card] if card else [])
    told = [seed for part in parts for seed in (part["config"].get("insecure_noise_seed"), part["seed"])]
    return list(dict.fromkeys(seed for seed in told if seed is not None))


def holds(weight: WeightMatrix, seed: int, entries: int | None = None) -> bool:
    """Whether the matrix, or its first ``entries``, correlates with the noise that the seed gives for its name."""
    from speclock.models.initial import named_noise

    W: Tensor = weight.parameter.detach().flatten()[:entries].float()
    F = named_noise(weight.name, W, 1.0, seed)
    size = float(W.norm() * F.norm())
    return size > 0 and float(W @ F) / size * math.sqrt(len(W)) > _SURE
