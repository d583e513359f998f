"""How many steps gradient descent takes, and the largest rate at which it takes them, from a spectrum."""

from __future__ import annotations

import math


def largest_stable_rate(lambda_max: float) -> float:
    """``2/λ_max``: above it gradient descent leaves every minimum of that curvature [§2; Nesterov 2013].

    Infinite where nothing curves upwards.

    >>> largest_stable_rate(4.0)
    0.5
    """
    return 2 / lambda_max if lambda_max > 0 else math.inf


def largest_stable_adam_rate(lambda_max: float, beta1: float = 0.9) -> float:
    """``(2 + 2β₁)/((1 − β₁)·λ_max)`` for Adam, with ``λ_max`` of the preconditioned Hessian ``P⁻¹H``.

    Momentum that averages gradients (as Adam's does) is stable up to that multiple of the plain rate's bound; β₁ = 0.9
    gives the 38/λ_max of [Cohen et al. 2022, "Adaptive Gradient Methods at the Edge of Stability", §3]. Held as
    Adam's preconditioner stood when P was taken.

    >>> round(largest_stable_adam_rate(1.0))
    38
    """
    return (1 + beta1) / (1 - beta1) * largest_stable_rate(lambda_max)


def gradient_descent_steps(kappa: float, tolerance: float = 1e-6) -> float:
    """Steps until ``‖w − w*‖²`` on a quadratic is ``tolerance`` of its start, at the best fixed rate, at worst.

    With ``η = 2/(σ_max + σ_min)`` every component of the error shrinks by at least
    ``(κ − 1)/(κ + 1)`` a step, and squares by its square: ``t = ln(1/tolerance) / (2·ln((κ + 1)/(κ − 1)))``,
    about ``κ/4 · ln(1/tolerance)`` [Nesterov 2013, Theorem 2.1.15].

    >>> round(gradient_descent_steps(100.0))
    345
    """
    if kappa <= 1:
        return 1.0
    return math.log(1 / tolerance) / (2 * math.log((kappa + 1) / (kappa - 1)))


def nesterov_steps(kappa: float, tolerance: float = 1e-6) -> float:
    """The same for Nesterov's method with constant momentum: ``O(√κ)``.

    With ``η = 1/σ_max`` and ``β = (√κ − 1)/(√κ + 1)`` the slowest component shrinks by ``1 − 1/√κ`` a step up to
    a factor that grows linearly, and squares by its square: ``t ≈ ln(1/tolerance) / (−2·ln(1 − 1/√κ))``,
    about ``√κ/2 · ln(1/tolerance)`` [Nesterov 2013, §2.2].

    >>> round(nesterov_steps(100.0))
    66
    """
    if kappa <= 1:
        return 1.0
    return math.log(1 / tolerance) / (-2 * math.log(1 - 1 / math.sqrt(kappa)))
