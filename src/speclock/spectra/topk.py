"""The largest singular values of a matrix: one warm step for training, converged ones for a report."""

from __future__ import annotations

import math
from typing import NamedTuple

import scipy.sparse.linalg as sparse
import torch
from jaxtyping import Float
from torch import Tensor, nn

from speclock.errors import InputError

BLOCK = 16
"""Width of the iterated basis; a product with 16 columns costs less than one with 10."""

RANK_TOLERANCE = 1e-6
"""A σ below this part of σ₁ cannot be told from rounding in fp32, nor can its vectors."""

GRAM_LIMIT = 1500
"""Longest short side for which all eigenvalues of the Gram matrix are found, so that none is overlooked."""

GRAM_FLOOR = 1e-4
"""Smallest σ_k/σ₁ taken from a float64 Gram matrix: its rounding error is ε·σ₁², so σ_k² keeps 8 digits."""


class TopSingular(NamedTuple):
    """The top k singular triplets of an (m, n) matrix, and the basis that finds them next time."""

    U: Float[Tensor, "m k"]
    sigma: Float[Tensor, " k"]
    """Descending; never above the true values but for rounding."""
    V: Float[Tensor, "n k"]
    residual: Float[Tensor, ""]
    """max_i ‖Wᵀu_i − σ_i v_i‖/σ_i on the basis handed in, before the iteration: how stale it was. Some
    singular value lies within residual·σ_i of σ_i, and σ_i itself is off by about residual²·σ_i over the
    relative gap below it."""
    basis: Float[Tensor, "s b"]
    """Orthonormal, on the shorter side, after the iteration."""


def start_basis(
    shape: tuple[int, int], k: int, generator: torch.Generator, like: Tensor
) -> Float[Tensor, "s b"]:
    """A random orthonormal basis on the shorter side of a matrix of ``shape``, in ``like``'s device.

    b is the least multiple of 16 that leaves half a block beyond k, or the whole side if that is less.
    """
    side = min(shape)
    width = min(side, BLOCK * math.ceil((k + BLOCK // 2) / BLOCK))
    # Drawn on the CPU, so that a seed means the same on every device.
    drawn = torch.randn(side, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.to(working_dtype(like)).to(like.device)


@torch.no_grad()
def top_singular(W: Float[Tensor, "m n"], V: Float[Tensor, "s b"], k: int) -> TopSingular:
    """Top-k singular triplets of ``W`` by one subspace iteration from ``V``, on the shorter side s.

    With A = W (or Wᵀ, if W is wide) and Y = A V, the rotation that diagonalises YᵀY gives
    u_i = A v_i/σ_i (Rayleigh–Ritz on V). Z = Aᵀ(u_1 … u_b) serves three times: for the residual of V, for
    sharper triplets (the small SVD of its first k columns: Rayleigh–Ritz on the u_i), and as the next basis
    qr(Z). The basis' error falls by (σ_{b+1}/σ_k)² each call [Golub & Van Loan 2013, §8.2].

    Cost: two passes over ``W``, 4·m·n·b flops, in ``V``'s dtype: fp32 or wider. Sums of squares are taken in
    float64, so that σ_k ≪ σ₁ comes as exact as from an SVD. At most min(k, b) triplets; those with
    σ_i ≤ 1e-6·σ₁ are beyond the rank that fp32 can see, and come back as zeros. Weights that are not finite
    give NaN.
    """
    k = min(k, V.shape[1])
    W = W.to(V.dtype)
    A = W if W.shape[0] >= W.shape[1] else W.T
    Y = A @ V
    sigma, S = _gram_svd(Y)
    floor = RANK_TOLERANCE * sigma[0]
    inverse = torch.where(sigma > floor, 1 / sigma, 0.0 * sigma)

    U = Y @ (S * inverse)
    Z = A.T @ U
    gaps = Z[:, :k] - V @ (S[:, :k] * sigma[:k])
    residual = (gaps.norm(dim=0) * inverse[:k]).amax()

    sharper, R = _gram_svd(Z[:, :k])
    present = sharper > torch.maximum(floor, RANK_TOLERANCE * sharper[0])
    left = U[:, :k] @ (R * present)
    right = Z[:, :k] @ (R * torch.where(present, 1 / sharper, 0.0 * sharper))
    if A is not W:
        left, right = right, left
    return TopSingular(left, sharper * present, right, residual, torch.linalg.qr(Z).Q)


def converge(
    W: Float[Tensor, "m n"], V: Float[Tensor, "s b"], k: int, tolerance: float, steps: int
) -> TopSingular:
    """:func:`top_singular` again and again, until the basis it was handed had a residual ≤ ``tolerance``.

    At most ``steps`` times; the residual returned tells whether that was enough.
    """
    W = W.detach().to(V.dtype)
    for _ in range(steps):
        top = top_singular(W, V, k)
        if not top.residual > tolerance:
            break
        V = top.basis
    return top


def _gram_svd(Y: Float[Tensor, "m b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b b"]]:
    """σ (descending) and right singular vectors of a thin ``Y``, from YᵀY in float64; NaN for NaN."""
    wide = in_float64(Y)
    gram = wide.T @ wide
    if not gram.isfinite().all():
        return torch.full_like(Y[0], torch.nan), back_from_float64(torch.full_like(gram, torch.nan), Y)
    squares, S = torch.linalg.eigh(gram)
    return back_from_float64(squares.clamp_min(0).sqrt().flip(0), Y), back_from_float64(S.flip(1), Y)


def in_float64(tensor: Tensor) -> Tensor:
    """``tensor`` in float64 on its own device, or on the CPU where the device has no float64; :func:`back_from_float64`
    returns what is computed from it."""
    device = tensor.device
    lacking = device.type == "mps" or (
        device.type == "xpu"
        and not (torch.xpu.is_available() and torch.xpu.get_device_capability(device)["has_fp64"])
    )
    return tensor.to("cpu" if lacking else device, torch.float64)


def back_from_float64(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in ``like``'s dtype, and only then on ``like``'s device, which may have no float64."""
    return value.to(like.dtype).to(like.device)


def working_dtype(W: Tensor) -> torch.dtype:
    """The dtype in which the spectrum of ``W`` is computed: its own, or fp32 if that is wider."""
    return torch.promote_types(W.dtype, torch.float32)


@torch.no_grad()
def singular_values(W: Float[Tensor, "m n"], k: int) -> Float[Tensor, " r"]:
    """The top r = min(k, m, n) singular values of ``W``, converged, in float64.

    From the Gram matrix on the shorter side s (2·m·n·s flops, which dominate): all its eigenvalues up to
    s = 1500, Lanczos [ARPACK; Lehoucq, Sorensen & Yang 1998] to machine precision beyond. The Gram matrix
    holds σ², so where σ_k < 1e-4·σ₁ a dense SVD takes over.

    >>> singular_values(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), k=2)
    tensor([5., 0.], dtype=torch.float64)

    Raises:
        InputError: NaN or infinite weights, or none at all.
    """
    _require_finite(W)
    W = in_float64(W.detach())
    side = min(W.shape)
    k = min(k, side)
    # Entries of about 1, so that squares neither overflow nor vanish; a power of two rounds nothing.
    scale = torch.exp2(torch.frexp(W.abs().amax()).exponent.to(W))
    W = W / scale
    A = W if W.shape[0] >= W.shape[1] else W.T
    gram = A.T @ A
    if side <= GRAM_LIMIT or 4 * k >= side:
        squares = torch.linalg.eigvalsh(gram).flip(0)[:k]
    else:
        squares = _lanczos(gram, k)
    if squares[-1] <= GRAM_FLOOR**2 * squares[0]:
        return scale * torch.linalg.svdvals(W)[:k]
    return scale * squares.sqrt()


def _lanczos(G: Float[Tensor, "s s"], k: int) -> Float[Tensor, " k"]:
    """The top k eigenvalues of a symmetric ``G``, by ARPACK, or densely should that not converge."""
    side = G.shape[0]
    operator = sparse.LinearOperator(
        (side, side),
        matvec=lambda x: (G @ torch.from_numpy(x).to(G.device).reshape(-1)).cpu().numpy(),
        dtype="float64",
    )
    start = torch.randn(side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    try:
        # tol=0, machine precision: with a looser one ARPACK overlooks copies of a multiple eigenvalue.
        top = sparse.eigsh(operator, k, v0=start, ncv=max(4 * k, 32), tol=0, return_eigenvectors=False)
    except sparse.ArpackError:
        return torch.linalg.eigvalsh(G).flip(0)[:k]
    return torch.from_numpy(top).to(G.device).sort(descending=True).values


def frobenius(W: Float[Tensor, "m n"]) -> float:
    """‖W‖_F, summed in float64.

    >>> frobenius(torch.tensor([[3.0, 4.0]]))
    5.0
    """
    _require_finite(W)
    return float(torch.linalg.vector_norm(in_float64(W.detach())))


def top_part(W: Float[Tensor, "m n"], k: int) -> Float[Tensor, "m n"]:
    """``Σ_{i≤k} σ_i u_i v_iᵀ``, the best approximation of rank k: ``W + (c − 1)·top_part(W, k)`` multiplies the
    top k singular values by c [Eckart & Young 1936]. By a full SVD, in W's dtype.

    >>> top_part(torch.diag(torch.tensor([3.0, 2.0])), 1).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :k] * sigma[:k]) @ Vh[:k]


def stable_rank(W: Float[Tensor, "m n"]) -> float:
    """‖W‖_F²/σ₁², between 1 and the rank; 0 for a zero matrix.

    >>> round(stable_rank(torch.eye(3)), 6)
    3.0
    """
    sigma = float(singular_values(W, 1)[0])
    return (frobenius(W) / sigma) ** 2 if sigma else 0.0


def _require_finite(W: Tensor) -> None:
    if W.numel() == 0:
        raise InputError(f"a matrix of shape {tuple(W.shape)} has no singular values.")
    if not W.isfinite().all():
        raise InputError(
            f"a matrix of shape {tuple(W.shape)} holds NaN or infinite weights. Its training diverged, or the"
            " file is damaged: take an earlier checkpoint."
        )


@torch.no_grad()
def operator_norm(
    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, size: int = 32, steps: int = 200, tol: float = 1e-6
) -> float:
    """σ₁ of ``conv`` as a linear map on inputs of side ``size``, its stride and padding included.

    Power iteration x ← KᵀK x, in float64 [Yoshida & Miyato 2017, §3; Farnia et al. 2019], until σ moves by
    less than ``tol`` of itself. It differs from σ₁ of the unfolded matrix, which is what a lock acts on: with
    unit stride it is at most √(kh·kw) times that. Cost: two convolutions a step.
    """
    _require_finite(conv.weight.flatten(1))
    dims = conv.weight.ndim - 2
    weight = in_float64(conv.weight)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, conv.in_channels, *[size] * dims, generator=generator, dtype=torch.float64)
    x = x.to(weight.device)

    def apply(x: Tensor) -> Tensor:
        return conv._conv_forward(x, weight, None)

    with torch.enable_grad():
        probe = torch.zeros_like(x, requires_grad=True)
        image = apply(probe)
    sigma = 0.0
    for _ in range(steps):
        x = x / x.norm()
        y = apply(x)
        before, sigma = sigma, float(y.norm())
        if sigma == 0 or abs(sigma - before) <= tol * sigma:
            break
        # Kᵀy: K is linear, so its transpose is the gradient of ⟨K·, y⟩ anywhere.
        (x,) = torch.autograd.grad(image, probe, y, retain_graph=True)
    return sigma
