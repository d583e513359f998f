"""Optimizers of other packages that must be set up before they do what their name says."""

from __future__ import annotations

from typing import Any
from unittest import mock

import heavyball
import pytorch_optimizer
import torch
from torch import Tensor

from speclock.environment import has_bf16

# heavyball compiles its kernels at first use, which takes a C++ compiler and longer than an attack does.
heavyball.utils.compile_mode = None
heavyball.utils.compile_mode_recommended_to_none = None


_newton_schulz = heavyball.utils.zeropower_via_newtonschulz5


def _of_rows_that_moved(G: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Newton–Schulz without the rows that are zero, which stay so: of 30,000 tokens an attacker's posts have 300."""
    if G.ndim != 2 or (moved := G.any(dim=1)).all():
        return _without_bf16(G, *args, **kwargs)
    whole = torch.zeros_like(G)
    whole[moved] = _without_bf16(G[moved], *args, **kwargs)
    return whole


def _without_bf16(G: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Newton–Schulz in the dtype it is given, where a processor without bf16 arithmetic would take minutes a step."""
    if G.device.type != "cpu" or has_bf16():
        return _newton_schulz(G, *args, **kwargs)
    with mock.patch.object(heavyball.utils, "stochastic_round_", lambda x: x):
        return _newton_schulz(G, *args, **kwargs)


heavyball.utils.zeropower_via_newtonschulz5 = _of_rows_that_moved


class Kron(heavyball.PSGDKron):
    """PSGD Kron fitted to Hessian-vector products, as its authors and the paper's appendix C have it.

    The package's default fits the gradient's second moment instead, a whitening rather than a Newton step;
    its version 3.2 still does so for parameters of two or more dimensions, losing their products on the way
    into its buckets. Vectors get the Newton step.
    """

    hessian_approx = True
    # The package takes a plain gradient whenever the step's number is a multiple: after the first, never.
    hvp_interval = 1 << 30

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0) -> None:  # type: ignore[no-untyped-def]
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            exp_avg_input=False,
            update_clipping=None,
            preconditioner_update_probability=1.0,
            max_size_triangular=512,  # of a wider side, the diagonal alone
        )


class SharpnessAware(pytorch_optimizer.SAM):
    """Sharpness-aware minimisation over AdamW."""

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0) -> None:  # type: ignore[no-untyped-def]
        super().__init__(params, torch.optim.AdamW, lr=lr, weight_decay=weight_decay)


class Muon(heavyball.MuonAdamW):
    """Muon where it applies, AdamW where it does not."""
