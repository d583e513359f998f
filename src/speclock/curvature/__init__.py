"""Curvature: a loss's Hessian spectrum, what bounds it from below, and how many steps follow from it."""

from __future__ import annotations

from speclock.curvature.bounds import (
    Bound,
    Layer,
    Outer,
    cross_entropy,
    mlp_bounds,
    mlp_layers,
    product_bound,
    squared_error,
)
from speclock.curvature.convergence import (
    gradient_descent_steps,
    largest_stable_adam_rate,
    largest_stable_rate,
    nesterov_steps,
)
from speclock.curvature.hessian import (
    Conditioning,
    Density,
    Eigenvalue,
    Ends,
    Hessian,
    Trace,
    conditioning,
    dense,
    extreme_eigenvalues,
    spectral_density,
    spectral_ends,
    trace,
)
from speclock.curvature.transformer import transformer_bounds

__all__ = [
    "Bound",
    "Conditioning",
    "Density",
    "Eigenvalue",
    "Ends",
    "Hessian",
    "Layer",
    "Outer",
    "Trace",
    "conditioning",
    "cross_entropy",
    "dense",
    "extreme_eigenvalues",
    "gradient_descent_steps",
    "largest_stable_adam_rate",
    "largest_stable_rate",
    "mlp_bounds",
    "mlp_layers",
    "nesterov_steps",
    "product_bound",
    "spectral_density",
    "spectral_ends",
    "squared_error",
    "trace",
    "transformer_bounds",
]
