"""Singular values of a model's weight matrices: which, how many, and how to train on them.

Names load on first use, so that importing this package costs no torch import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speclock.spectra.matrices import WeightMatrix, weight_matrices
    from speclock.spectra.penalty import SpectralPenalty
    from speclock.spectra.topk import (
        TopSingular,
        back_from_float64,
        frobenius,
        in_float64,
        operator_norm,
        singular_values,
        stable_rank,
        start_basis,
        top_part,
        top_singular,
    )

_HOMES = {
    "WeightMatrix": "matrices",
    "weight_matrices": "matrices",
    "SpectralPenalty": "penalty",
    "TopSingular": "topk",
    "back_from_float64": "topk",
    "frobenius": "topk",
    "in_float64": "topk",
    "operator_norm": "topk",
    "singular_values": "topk",
    "stable_rank": "topk",
    "start_basis": "topk",
    "top_part": "topk",
    "top_singular": "topk",
}

__all__ = [
    "SpectralPenalty",
    "TopSingular",
    "WeightMatrix",
    "back_from_float64",
    "frobenius",
    "in_float64",
    "operator_norm",
    "singular_values",
    "stable_rank",
    "start_basis",
    "top_part",
    "top_singular",
    "weight_matrices",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
