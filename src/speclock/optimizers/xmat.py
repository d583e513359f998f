"""PSGD with an X-shaped preconditioner, which no maintained package has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-30


class XMat(torch.optim.Optimizer):
    """Preconditioned SGD with ``P = QᵀQ``, ``Q = diag(a) + adiag(b)``.

    ``adiag(b)`` has b on the anti-diagonal, so that Q couples entry i of the flattened parameters with entry
    n+1−i. Matrices of this shape form a group, on which P is fitted to the inverse Hessian's modulus by
    minimising ``E[hᵀPh + vᵀP⁻¹v]`` over pairs v ~ N(0, I), h = Hv: the relative gradient is taken within the
    group's own algebra, so that Q never leaves it and needs no inverse to be stored
    [Li 2015, arXiv 1512.04202; Pooladzandi & Li 2024, arXiv 2402.04553 and 2402.11858].

    The gradients in ``.grad`` must be differentiable (``backward(create_graph=True)``). Cost: one
    Hessian-vector product every ``update_every`` steps; memory: three vectors as long as the parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        fit_rate: float = 0.1,
        update_every: int = 1,
        seed: int = 0,
    ) -> None:
        """``fit_rate`` in (0, 1) is the step size of the preconditioner's own fit."""
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "fit_rate": fit_rate,
                "update_every": update_every,
                "seed": seed,
            },
        )

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Refit P where it is due, then ``W ← W − lr · P g`` (with momentum on ``P g``)."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            state = self.state[params[0]]
            taken = state.get("taken", 0)
            if taken % group["update_every"] == 0:
                # Of its own, so that dropout sees the same masks as under any other optimizer.
                generator = torch.Generator().manual_seed(group["seed"] * 1_000_003 + taken)
                v = [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in params]
                grads = [p.grad for p in params]
                products = torch.autograd.grad(grads, params, v, allow_unused=True)
                h = [
                    torch.zeros_like(p) if hv is None else hv for p, hv in zip(params, products, strict=True)
                ]
                self._fit(state, _flat(v), _flat(h), group["fit_rate"])
            state["taken"] = taken + 1
            self._descend(group, params, state)

    @torch.no_grad()
    def _fit(
        self, state: dict[str, Any], v: Float[Tensor, " n"], h: Float[Tensor, " n"], rate: float
    ) -> None:
        if "a" not in state:
            # Right for H = (‖h‖/‖v‖)·I: then P = (‖v‖/‖h‖)·I.
            state["a"] = torch.full_like(v, float((v.norm() / (h.norm() + _TINY)).sqrt()))
            state["b"] = torch.zeros_like(v)
        state["a"], state["b"] = fitted(state["a"], state["b"], v, h, rate)

    @torch.no_grad()
    def _descend(self, group: dict[str, Any], params: list[Tensor], state: dict[str, Any]) -> None:
        g = _flat([p.grad for p in params])  # type: ignore[misc]
        step = preconditioned(state["a"], state["b"], g)
        if group["momentum"]:
            state["m"] = step if "m" not in state else group["momentum"] * state["m"] + step
            step = state["m"]
        for p, delta in zip(params, step.split([p.numel() for p in params]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(delta.view_as(p), alpha=group["lr"])


def applied(a: Float[Tensor, " n"], b: Float[Tensor, " n"], x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``Q x`` with ``Q = diag(a) + adiag(b)``.

    >>> applied(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]))
    tensor([31., 24.])
    """
    return a * x + b * x.flip(0)


def preconditioned(
    a: Float[Tensor, " n"], b: Float[Tensor, " n"], g: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """``QᵀQ g``; Qᵀ is the X-shaped matrix of a and the reversed b."""
    return applied(a, b.flip(0), applied(a, b, g))


def fitted(
    a: Float[Tensor, " n"],
    b: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    h: Float[Tensor, " n"],
    rate: float,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(a, b) after one step of the relative gradient of ``hᵀPh + vᵀP⁻¹v``.

    With p = Qh and w = Q⁻ᵀv, perturbing Q to (I + E)Q changes the criterion by 2(pᵀEp − wᵀEw). For an
    X-shaped E the gradient is p∘p − w∘w on the diagonal and p∘flip(p) − w∘flip(w) off it. The step is
    normalised by the largest entry, so that rate < 1 keeps Q invertible.
    """
    p = applied(a, b, h)
    # The 2×2 systems that couple i and n+1−i, solved by Cramer's rule for Qᵀ.
    w = (a.flip(0) * v - b.flip(0) * v.flip(0)) / _determinant(a, b)
    on, off = p * p - w * w, p * p.flip(0) - w * w.flip(0)
    if len(off) % 2:
        # The middle entry is the diagonal's: counted once.
        off[len(off) // 2] = 0
    scale = rate / (torch.maximum(on.abs().max(), off.abs().max()) + _TINY)
    new_a = a - scale * (on * a + off * b.flip(0))
    new_b = b - scale * (on * b + off * a.flip(0))
    return new_a, new_b


def _determinant(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    d = a * a.flip(0) - b * b.flip(0)
    middle = len(a) // 2
    if len(a) % 2:
        # b's middle entry is zero throughout; the middle equation is a·w = v.
        d[middle] = a[middle] ** 2
    return d


def _flat(tensors: list[Tensor]) -> Float[Tensor, " n"]:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
