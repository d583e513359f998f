"""The Hessian of a loss as an operator: products with vectors, extreme eigenvalues, density, trace."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from speclock.errors import InputError

Share = Callable[[], Float[Tensor, ""]]
"""Computes one mini-batch's share of an objective; the shares of all mini-batches add up to it."""


class Hessian(LinearOperator):
    """``H = ∇²L(θ)`` of ``L = Σ_b share_b`` with respect to ``parameters``, applied to flat vectors.

    A product is the gradient of ``⟨∇L, v⟩``, twice through autograd [Pearlmutter 1994], share by share: its memory
    is that of one mini-batch, three to four times what a backward pass over it takes (``benchmarks/hessian.py``), and
    its time about three backward passes'. Gradients are dropped as they come; on a CPU the only other vector as long
    as the weights is the result, and with a ``scale`` one more.

    The loss must be a fixed function of the parameters: no dropout, no batch statistics, the same sample
    every time. It is a ``scipy`` operator of the parameters' dtype, so everything there that takes one takes
    this.

    >>> X = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    >>> H = Hessian([lambda: (X @ w).square().sum()], {"w": w})  # ‖Xw‖², so H = 2XᵀX
    >>> dense(H).tolist()
    [[2.0, 0.0], [0.0, 8.0]]
    """

    def __init__(
        self,
        shares: Sequence[Share],
        parameters: Mapping[str, Tensor],
        scale: NDArray[np.floating] | None = None,
    ) -> None:
        """``scale``, a vector s, makes it ``S H S`` with ``S = diag(s)``: see :meth:`preconditioned`."""
        kinds = {p.dtype for p in parameters.values()}
        if not parameters or not shares:
            raise InputError("a Hessian needs at least one parameter and one mini-batch.")
        if not kinds <= {torch.float32, torch.float64} or len(kinds) > 1:
            raise InputError(
                f"curvature is measured in float32 or float64, and these weights are "
                f"{', '.join(sorted(str(kind) for kind in kinds))}. Convert the model first: model.float()."
            )
        self.shares = list(shares)
        self.parameters = dict(parameters)
        self.scale = scale
        self.heard: Callable[[], object] | None = None
        size = sum(p.numel() for p in self.parameters.values())
        super().__init__(np.dtype(str(kinds.pop()).removeprefix("torch.")), (size, size))

    def block(self, *names: str) -> Hessian:
        """The diagonal block of the named parameters: second derivatives with respect to them alone."""
        return Hessian(self.shares, {name: self.parameters[name] for name in names})

    def preconditioned(self, P: NDArray[np.floating]) -> Hessian:
        """``P^{-½} H P^{-½}`` for a positive diagonal P: what an optimizer that divides gradients by P descends on.

        It has the eigenvalues of ``P⁻¹H``, and is symmetric.
        """
        return Hessian(self.shares, self.parameters, (1 / np.sqrt(P)).astype(self.dtype))

    def _matvec(self, v: NDArray[np.floating]) -> NDArray[np.floating]:
        v = np.ascontiguousarray(v.reshape(-1), self.dtype)
        with self._collected() as found:
            for share in self.shares:
                slope = self._slope(share, v)
                if slope.requires_grad:  # otherwise the share is linear in the parameters
                    slope.backward(inputs=list(self.parameters.values()))
        if self.heard is not None:
            self.heard()
        return found

    def gradient(self) -> NDArray[np.floating]:
        """``∇L``, or ``S ∇L``: one backward pass over all shares."""
        with self._collected() as found:
            for share in self.shares:
                share().backward(inputs=list(self.parameters.values()))
        return found

    def _slope(self, share: Share, v: NDArray[np.floating]) -> Float[Tensor, ""]:
        """``⟨∇share, S v⟩``, differentiable. Each parameter's gradient is dropped once its term is known."""
        along, scale = self.parts(v), None if self.scale is None else self.parts(self.scale)
        terms = [torch.zeros((), dtype=next(iter(along.values())).dtype)]

        def contract(name: str, gradient: Tensor) -> Tensor:
            part = along[name] if scale is None else along[name] * scale[name]
            terms.append((gradient * part.to(gradient.device)).sum().to(terms[0].device))
            return gradient.new_zeros(()).expand_as(gradient)  # for autograd to keep in its place

        hooks = [p.register_hook(partial(contract, name)) for name, p in self.parameters.items()]
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
                torch.autograd.grad(
                    share(), list(self.parameters.values()), create_graph=True, allow_unused=True
                )
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(terms).sum()

    @contextlib.contextmanager
    def _collected(self) -> Iterator[NDArray[np.floating]]:
        """A flat vector, S times what backward passes meanwhile add up in the parameters' ``.grad``.

        On a CPU these are its parts, so that no second copy is made.
        """
        found = np.zeros(self.shape[0], self.dtype)
        parts = self.parts(found)
        sums = {name: parts[name].to(p.device) for name, p in self.parameters.items()}
        kept = {name: p.grad for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.grad = sums[name]
            yield found
            for name, part in parts.items():
                part.copy_(sums[name])
            if self.scale is not None:
                found *= self.scale
        finally:
            for name, p in self.parameters.items():
                p.grad = kept[name]

    def parts(self, flat: NDArray[np.floating]) -> dict[str, Tensor]:
        """Views of a flat vector in the shapes of the parameters."""
        pieces = torch.from_numpy(flat).split([p.numel() for p in self.parameters.values()])
        return {
            name: piece.view_as(p) for piece, (name, p) in zip(pieces, self.parameters.items(), strict=True)
        }

    def _adjoint(self) -> Hessian:
        return self


class Eigenvalue(NamedTuple):
    """A Ritz value and how far it is from being an eigenvalue."""

    value: float
    residual: float
    """``‖Hv − λv‖`` for the unit Ritz vector v: some eigenvalue lies within this distance of ``value``."""


def extreme_eigenvalues(
    H: Hessian, k: int = 1, *, which: str = "LM", tol: float = 1e-4, seed: int = 0, title: str = "Lanczos"
) -> list[Eigenvalue]:
    """The ``k`` extreme eigenvalues by implicitly restarted Lanczos (ARPACK), the most extreme first.

    ``which`` is scipy's: ``"LM"`` by modulus, so that the first is ±σ_max(H); ``"LA"`` the largest and ``"SA"``
    the smallest in value. ``tol`` is relative; 0 asks for machine precision. Memory: ``2k + 6`` vectors beside
    what a product needs.

    Where ARPACK gives up before ``tol``, what it reached comes back with the residuals it has.
    """
    n = H.shape[0]
    if k >= n - 1:  # ARPACK wants k < n; so few weights are no work
        values, _ = np.linalg.eigh(dense(H).double().numpy())
        key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
        return [Eigenvalue(float(values[i]), 0.0) for i in np.argsort(key)[:k]]
    start = np.random.default_rng(seed).standard_normal(n, H.dtype)
    with _counted(H, title):
        try:
            values, vectors = eigsh(H, k=k, which=which, v0=start, tol=tol, ncv=min(n, 2 * k + 6))
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
            if not len(values):
                raise InputError(
                    "Lanczos found no eigenvalue to the tolerance asked for. Raise tol, or use float64."
                ) from error
        found = [
            Eigenvalue(float(value), float(np.linalg.norm(H @ v - value * v)))
            for value, v in zip(values, vectors.T, strict=True)
        ]
    key = {"LM": lambda e: -abs(e.value), "LA": lambda e: -e.value, "SA": lambda e: e.value}[which]
    return sorted(found, key=key)


class Ends(NamedTuple):
    """Both ends of a spectrum as one Lanczos run sees them."""

    largest: Eigenvalue
    smallest: Eigenvalue

    @property
    def by_modulus(self) -> Eigenvalue:
        """The one that is ±σ_max."""
        return max(self, key=lambda end: abs(end.value))


def spectral_ends(
    H: Hessian,
    which: str = "LM",
    *,
    tol: float = 1e-3,
    seed: int = 0,
    most: int = 300,
    title: str = "Lanczos",
) -> Ends:
    """The ends of the spectrum in three vectors' memory, for models whose weights fill it.

    Lanczos without reorthogonalisation, for as many products as it takes until the residual of what is asked for
    is below ``tol`` times σ_max: ``which`` is ``"LM"`` for the end of largest modulus, ``"LA"`` for the largest in
    value, ``"BE"`` for both. It starts from the gradient, which lies mostly among the top eigenvectors [Gur-Ari,
    Roberts & Dyer 2018], plus as long a random vector, which misses none. Rounding lets converged values reappear
    inside; the ends and their residuals stay what they are [Paige 1980]. No eigenvectors:
    :func:`extreme_eigenvalues` has those. After ``most`` products it returns what it has.
    """
    with _counted(H, title):
        for ritz in itertools.islice(_lanczos(H, _start(H, seed)), min(most, H.shape[0])):
            largest, smallest = (Eigenvalue(float(ritz.values[i]), float(ritz.residuals[i])) for i in (-1, 0))
            found = Ends(largest, smallest)
            asked = {"LM": [found.by_modulus], "LA": [found.largest], "BE": list(found)}[which]
            # One step has nothing to be compared with.
            if len(ritz.values) > 1 and all(e.residual <= tol * abs(found.by_modulus.value) for e in asked):
                break
    return found


def _start(H: Hessian, seed: int) -> NDArray[np.floating]:
    """The gradient plus a random vector of its length."""
    q = np.random.default_rng(seed).standard_normal(H.shape[0], H.dtype)
    g = H.gradient()
    q *= (np.linalg.norm(g) or 1.0) / np.linalg.norm(q)
    q += g
    return q


class _Ritz(NamedTuple):
    """What a Lanczos run has seen of a spectrum so far, smallest value first."""

    values: NDArray[np.floating]
    weights: NDArray[np.floating]
    """Squares of the first components of the tridiagonal matrix's eigenvectors: they add up to 1."""
    residuals: NDArray[np.floating]
    """``|β s_m|``, with β the norm of what is left and s_m the eigenvectors' last components."""


def _lanczos(H: Hessian, q: NDArray[np.floating]) -> Iterator[_Ritz]:
    """The three-term recurrence from ``q``, a Ritz spectrum after every product.

    Ends when nothing is left: the start then lies in an invariant subspace, and what it sees is exact.
    """
    q = q / np.linalg.norm(q)
    before, beta = np.zeros_like(q), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        r = H @ q
        before *= beta
        r -= before
        alphas.append(float(q @ r))
        np.multiply(q, alphas[-1], out=before)
        r -= before
        values, vectors = eigh_tridiagonal(alphas, betas)
        beta = float(np.linalg.norm(r))
        yield _Ritz(values, vectors[0] ** 2, np.abs(beta * vectors[-1]))
        if beta <= np.finfo(H.dtype).eps * max(map(abs, alphas)):
            return
        betas.append(beta)
        r /= beta
        before, q = q, r


class Density(NamedTuple):
    """A spectral density as weighted points: ``Σ weights = 1``, and ``n · Σ weights · f(nodes)`` estimates tr f(H)."""

    nodes: NDArray[np.floating]
    weights: NDArray[np.floating]
    residuals: NDArray[np.floating]
    """Of each node as a Ritz value (:class:`Eigenvalue`)."""


def spectral_density(
    H: Hessian, *, steps: int = 30, probes: int = 3, seed: int = 0, title: str = "density"
) -> Density:
    """Stochastic Lanczos quadrature: the spectrum that ``probes`` random vectors see in ``steps`` products each.

    Each probe's tridiagonal matrix gives Gauss quadrature nodes (its eigenvalues) and weights (squares of the
    first components of its eigenvectors) [Golub & Welsch 1969; Ubaru, Chen & Saad 2017]. No vectors are kept
    or reorthogonalised: that leaves copies of converged eigenvalues among the nodes, whose weights share what
    one would have, so densities and traces stay right [Greenbaum 1989]. Memory: three vectors.
    """
    rng = np.random.default_rng(seed)
    nodes, weights, residuals = [], [], []
    with _counted(H, title, total=steps * probes):
        for _ in range(probes):
            # Rademacher probes: the quadrature's first moment is then Hutchinson's trace estimate.
            q = _signs(rng, H)
            *_, ritz = itertools.islice(_lanczos(H, q), min(steps, H.shape[0]))
            nodes.append(ritz.values)
            weights.append(ritz.weights / probes)
            residuals.append(ritz.residuals)
    return Density(np.concatenate(nodes), np.concatenate(weights), np.concatenate(residuals))


class Trace(NamedTuple):
    """A trace with the standard error of its estimate."""

    value: float
    error: float


def trace(H: Hessian, *, probes: int = 16, seed: int = 0) -> Trace:
    """Hutchinson's estimate ``mean vᵀHv`` over Rademacher probes; exact for a diagonal ``H``."""
    rng = np.random.default_rng(seed)
    with _counted(H, "trace", total=probes):
        forms = []
        for _ in range(probes):
            v = _signs(rng, H)
            forms.append(float(v @ (H @ v)))
    return Trace(float(np.mean(forms)), float(np.std(forms, ddof=1) / math.sqrt(probes)))


def _signs(rng: np.random.Generator, H: Hessian) -> NDArray[np.floating]:
    """A Rademacher vector."""
    return (2 * rng.integers(0, 2, H.shape[0], np.int8) - 1).astype(H.dtype)


def dense(H: Hessian) -> Float[Tensor, "p p"]:
    """The matrix itself, one product a column, made symmetric: for nets of some hundred weights."""
    columns = torch.as_tensor(H @ np.eye(H.shape[0], dtype=H.dtype))
    return (columns + columns.T) / 2


@dataclass(frozen=True)
class Conditioning:
    """The spectrum of a Hessian in the few numbers that convergence depends on."""

    sigma_max: Eigenvalue
    """The eigenvalue of largest modulus, with its sign."""
    lambda_max: Eigenvalue
    """The largest eigenvalue: what caps the learning rate."""
    lambda_min: Eigenvalue
    """The smallest, negative at a saddle."""
    smallest: Eigenvalue | None
    """The smallest eigenvalue found above the floor; None where nothing converged there."""
    floor: float
    """Below this, an eigenvalue counts as zero."""
    exact: bool
    """Whether every eigenvalue was computed. Otherwise ``smallest`` is the smallest of those that Lanczos
    found: the true one may be smaller, and κ larger."""
    trace: Trace
    density: Density

    @property
    def kappa(self) -> float | None:
        """``λ_max / smallest``, the condition number over the floor."""
        return None if self.smallest is None else self.lambda_max.value / self.smallest.value


DENSE_UP_TO = 512
"""Weights up to which a spectrum is computed in full."""


def conditioning(
    H: Hessian, *, floor: float = 1e-4, tol: float = 1e-4, steps: int = 30, probes: int = 3, seed: int = 0
) -> Conditioning:
    """σ_max, the smallest eigenvalue above ``floor`` times it, κ, trace and density.

    Up to :data:`DENSE_UP_TO` weights by a full decomposition; above by Lanczos, with ``tol`` relative to
    σ_max for what counts as converged.
    """
    if H.shape[0] <= DENSE_UP_TO:
        values = np.linalg.eigvalsh(dense(H).double().numpy())
        exact = [Eigenvalue(float(value), 0.0) for value in values]
        by_modulus = max(exact, key=lambda e: abs(e.value))
        least = floor * abs(by_modulus.value)
        return Conditioning(
            by_modulus,
            exact[-1],
            exact[0],
            next((e for e in exact if e.value > least), None),
            least,
            True,
            Trace(float(values.sum()), 0.0),
            Density(values, np.full(len(values), 1 / len(values)), np.zeros(len(values))),
        )
    ends = spectral_ends(H, "BE", tol=tol, seed=seed, title="ends of the spectrum")
    by_modulus = ends.by_modulus
    seen = spectral_density(H, steps=steps, probes=probes, seed=seed)
    scale = abs(by_modulus.value)
    found = [
        Eigenvalue(float(value), float(residual))
        for value, residual in zip(seen.nodes, seen.residuals, strict=True)
        if value > floor * scale and residual < tol * scale
    ]
    forms = [  # the quadrature's first moment is vᵀHv of each probe
        float(H.shape[0] * probes * (weights * nodes).sum())
        for nodes, weights in zip(
            np.array_split(seen.nodes, probes), np.array_split(seen.weights, probes), strict=True
        )
    ]
    error = float(np.std(forms, ddof=1) / math.sqrt(probes)) if probes > 1 else math.nan
    return Conditioning(
        by_modulus,
        ends.largest,
        ends.smallest,
        min(found, key=lambda e: e.value, default=None),
        floor * scale,
        False,
        Trace(float(np.mean(forms)), error),
        seen,
    )


@contextlib.contextmanager
def _counted(H: Hessian, title: str, total: int | None = None) -> Iterator[None]:
    """A progress line that counts products while a ``with`` block takes them."""
    with tqdm(total=total, desc=title, unit="product", disable=None, leave=False) as bar:
        H.heard = bar.update
        try:
            yield
        finally:
            H.heard = None
