"""Lower bounds of σ_max(H) from singular values of weight matrices: Theorems 2.1 and 2.2, Remark A.3.

What is bounded is the Hessian of ``L = Σ_s ℓ_s(ŷ_s)`` with respect to all weights. Each statement here bounds a
diagonal block of it, which is enough by Lemma A.2. Where the paper's proof does not hold as printed, the
statement that does is implemented; ``docs/theory.md`` proves each and says what differs.

A bound is a number that σ_max(H) is never below. 0 is such a number: a bound that says no more is *vacuous* and
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad, vmap

from speclock.errors import InputError


class Bound(NamedTuple):
    """One lower bound of σ_max(H)."""

    statement: str
    """Which statement gives it: ``"theorem 2.1"``, ``"remark A.3"``, ``"aligned"``, ``"theorem 2.2"``."""
    matrix: str
    """The weight matrix whose singular value it rests on."""
    block: str
    """The weight matrix whose diagonal block of H is bounded."""
    value: float
    rests_on: int | None = None
    """Index l of the singular value σ_l of ``matrix`` in it; None where several enter, or none does."""
    vacuous: str | None = None
    """Why it says nothing, where it does not."""


class Outer(NamedTuple):
    """The loss as a function of the model's outputs: what it adds to the chain rule."""

    gradient: Float[Tensor, "n o"]
    """∂L/∂ŷ_s."""
    hessian: Float[Tensor, "n o o"]
    """∂²L/∂ŷ_s², positive semidefinite."""


def squared_error(outputs: Float[Tensor, "n o"], targets: Float[Tensor, "n o"]) -> Outer:
    """Of ``nn.functional.mse_loss``, the mean over samples and outputs: ``∂² = 2/(n·o) · I``.

    >>> squared_error(torch.ones(1, 2), torch.zeros(1, 2)).hessian.tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    scale = 2 / outputs.numel()
    eye = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return Outer(scale * (outputs - targets), scale * eye.expand(len(outputs), -1, -1))


def cross_entropy(logits: Float[Tensor, "n o"], labels: Int[Tensor, " n"]) -> Outer:
    """Of ``nn.functional.cross_entropy``: gradient ``(p − onehot)/n``, Hessian ``(diag p − p pᵀ)/n``."""
    p = logits.softmax(-1)
    onehot = nn.functional.one_hot(labels, logits.shape[1])
    return Outer((p - onehot) / len(p), (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(p))


class Layer(NamedTuple):
    """A fully connected layer, ``z_s = W a_s``, and the activation φ behind it."""

    name: str
    W: Float[Tensor, "d e"]
    inputs: Float[Tensor, "n e"]
    """``a_s``, what comes into the layer; a bias does not change what is stated of the weights."""
    slope: Float[Tensor, "n d"]
    """``φ′(z_s)``; ones behind the last layer."""
    bend: Float[Tensor, "n d"]
    """``φ″(z_s)``; zeros where φ is piecewise linear, and behind the last layer."""


def mlp_layers(net: nn.Sequential, inputs: Float[Tensor, "n e"]) -> tuple[list[Layer], Float[Tensor, "n o"]]:
    """The layers of ``net``, linear ones with elementwise activations between, as ``inputs`` run through, and
    its outputs.

    Raises :class:`InputError` for any other module than ``nn.Linear`` and elementwise activations.
    """
    layers: list[Layer] = []
    x = inputs
    with torch.no_grad():
        for i, module in enumerate(net):
            if isinstance(module, nn.Linear):
                ones = x.new_ones(len(x), module.out_features)
                layers.append(Layer(f"{i}.weight", module.weight.detach(), x, ones, torch.zeros_like(ones)))
                x = module(x)
            elif type(module) in ELEMENTWISE and i > 0 and isinstance(net[i - 1], nn.Linear):
                slope, bend = _derivatives(module, x)
                layers[-1] = layers[-1]._replace(slope=slope, bend=bend)
                x = module(x)
            else:
                raise InputError(
                    f"module {i} is {type(module).__name__}; the bounds are stated for linear layers with "
                    f"{', '.join(kind.__name__ for kind in ELEMENTWISE)} between them."
                )
    return layers, x


ELEMENTWISE = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Sigmoid)
"""Activations that act on each unit alone."""


def _derivatives(
    activation: Callable[[Tensor], Tensor], z: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    first = grad(lambda u: activation(u).squeeze())
    flat = z.reshape(-1)
    return vmap(first)(flat).view_as(z), vmap(grad(first))(flat).view_as(z)


def product_bound(
    W: Float[Tensor, " w"], P: Float[Tensor, "*n p"], Q: Float[Tensor, "*n q"]
) -> tuple[Float[Tensor, "*n"], Int[Tensor, "*n"]]:
    """``σ₁(PWQ) ≥ max σ_l(W)·σ_a(P)·σ_b(Q)`` over ``l + a + b = p + q + 1``, and the l that attains it.

    Takes singular values, descending: of ``W`` (p × q; ``w = min(p, q)`` of them), of ``P`` (its p columns' worth) and
    of ``Q`` (its q rows' worth), those that a rectangular P or Q lacks being zero. l = 1 is Lemma A.1,
    ``σ₁(W)·σ_p(P)·σ_q(Q)``; where P or Q is singular that is nothing, and σ_l with l above 1 takes over: the
    best of the terms that Remark A.3 averages [Horn & Johnson 1991, 3.3.16, for singular values of products].

    >>> one = torch.ones(2)
    >>> product_bound(torch.tensor([3.0, 2.0]), one, one)  # nothing singular: σ₁
    (tensor(3.), tensor(1))
    >>> product_bound(torch.tensor([3.0, 2.0]), one, torch.tensor([1.0, 0.0]))  # Q has rank 1: σ₂
    (tensor(2.), tensor(2))
    """
    p, q = P.shape[-1], Q.shape[-1]
    a, b = torch.arange(1, p + 1)[:, None], torch.arange(1, q + 1)[None, :]
    order = p + q + 1 - a - b  # l, for every pair
    allowed = (order >= 1) & (order <= len(W))
    sigma = torch.where(allowed, W[(order - 1).clamp(0, len(W) - 1)], torch.zeros_like(W[:1]))
    terms = (P[..., :, None] * Q[..., None, :] * sigma).flatten(-2)
    value, at = terms.max(-1)
    return value, order.flatten()[at]


def remark_a3(W: Float[Tensor, " n"], A: Float[Tensor, " n"], k: int) -> float:
    """``σ₁(WA) ≥ (1/k) Σ_{i≤k} σ_i(W)·σ_{n−i+1}(A)`` [Remark A.3; Bhatia 2013], from singular values.

    n is the dimension that the product sums over, and values that a rectangular factor lacks are zero.
    With A of rank ``n − r`` the first r terms vanish: only ``k > r`` says anything.

    >>> remark_a3(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0]), k=1)
    0.0
    >>> remark_a3(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0]), k=2)
    1.0
    """
    return float((W[:k] * A.flip(0)[:k]).sum() / k)


def mlp_bounds(layers: Sequence[Layer], outer: Outer, *, k: int | None = None) -> list[Bound]:
    """Every statement of Theorem 2.1's kind for a fully connected net, or for the fully connected end of one.

    With ``B_s,i = ∂ŷ_s/∂z_s,i = W_{N+1} D_N W_N … D_i``, D the activations' slopes, the diagonal block of layer i is

        ``H_ii = Σ_s (B_s,iᵀ ∇²ℓ_s B_s,i) ⊗ a_s,i a_s,iᵀ + (what the activations' bends add)``,

    where the second part is absent for piecewise linear activations. Statements:

    - *theorem 2.1*, *remark A.3*: a single sample's term, ``‖a‖²·σ₁(FB)·σ₁(P W_j Q)`` with ``∇²ℓ = FᵀF`` and
      ``FB = P W_j Q``, the last factor bounded by :func:`product_bound` (Lemma A.1 where σ₁ of W_j carries it, the
      sharpened remark where a later one does). With ``k``, also Remark A.3 as printed, for the last matrix.
    - *aligned*: for the last matrix, all samples together: :func:`_aligned`.

    Costs n small SVDs for each pair of layers.
    """
    bounds: list[Bound] = []
    factor = _root(outer.hessian)
    last = len(layers) - 1
    for i in range(last):
        smooth = any(bool(layer.bend.any()) for layer in layers[i:])
        for j in range(i + 1, last + 1):
            bounds += _products(layers, factor, i, j, k, smooth)
        bounds.append(_aligned(layers, outer, i))
    return bounds


def _products(
    layers: Sequence[Layer], factor: Float[Tensor, "n o o"], i: int, j: int, k: int | None, smooth: bool
) -> list[Bound]:
    """Lemma A.1 and Remark A.3 on block i through matrix j > i, the best sample's."""
    matrix, block = layers[j].name, layers[i].name
    if smooth:
        reason = "the activations bend, and what that adds to the block may cancel a single sample's term"
        return [Bound("theorem 2.1", matrix, block, 0.0, vacuous=reason)]
    W = layers[j].W
    P = factor  # F W_{N+1} D_N … W_{j+1} D_j
    for at in range(len(layers) - 1, j, -1):
        P = (P @ layers[at].W) * layers[at - 1].slope[:, None, :]
    Q = torch.diag_embed(layers[i].slope)  # D_{j−1} W_{j−1} … D_i
    for layer in layers[i + 1 : j]:
        Q = layer.slope[:, :, None] * (layer.W @ Q)
    outside = layers[i].inputs.square().sum(-1) * torch.linalg.matrix_norm(P @ W @ Q, 2)
    sigma_w = torch.linalg.svdvals(W)
    sigma_p, sigma_q = (
        _padded(torch.linalg.svdvals(P), W.shape[0]),
        _padded(torch.linalg.svdvals(Q), W.shape[1]),
    )
    lemma = outside * sigma_w[0] * sigma_p[:, -1] * sigma_q[:, -1]
    sharp, order = product_bound(sigma_w, sigma_p, sigma_q)
    sharp = outside * sharp
    best = int(sharp.argmax())
    silent = "every sample zeroes a unit next to the matrix, or there are fewer outputs than units"
    unread = "the factors' ranks are too low for any of its singular values"
    found = [
        _stated("theorem 2.1", matrix, block, lemma.max(), 1, silent),
        _stated("remark A.3, sharpened", matrix, block, sharp[best], int(order[best]), unread),
    ]
    if k is not None and j == len(layers) - 1:
        # As printed, of two factors: F W and Q.
        sigma_fw = torch.linalg.svdvals(P @ W)
        n = W.shape[1]
        printed = max(
            float(out) * remark_a3(_padded(fw, n), q, min(k, n))
            for out, fw, q in zip(outside, sigma_fw, sigma_q, strict=True)
        )
        reason = f"more than k = {k} of the units next to the matrix are zeroed"
        found.append(_stated(f"remark A.3, k = {k}", matrix, block, printed, None, reason))
    return found


def _aligned(layers: Sequence[Layer], outer: Outer, i: int) -> Bound:
    """``σ_max(H) ≥ σ₁(W)²·λ_max(T^½ (GGᵀ ∘ AAᵀ) T^½)`` for the last matrix W, over all samples.

    With u, v the singular vectors of σ₁(W): ``uᵀŷ`` depends on z_s,i by ``σ₁·vᵀQ_s``, exactly; ``g_s = Q_sᵀv``
    are the rows of G, a_s those of A, ∘ the entrywise product, and ``T = diag(τ_s)`` with ``∇²ℓ_s ⪰ τ_s uuᵀ``,
    the largest such τ (2/(n·o) for mean squared error; for cross-entropy that of the centred W, on which alone
    it depends). It needs no σ_min: how far the rectifier takes units from v is in G.

    Where activations bend, what that adds is counted in, exactly; that is stated for the last hidden layer only.
    """
    last = layers[-1]
    statement, block = "aligned", layers[i].name
    W = last.W
    if _is_centred(outer.hessian):
        W = W - W.mean(0)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    u, sigma, v = U[:, 0], S[0], Vh[0]
    tau = _least_along(outer.hessian, u)
    g = v.expand(len(last.inputs), -1)
    for layer in reversed(layers[i + 1 : -1]):
        g = (g * layer.slope) @ layer.W
    g = g * layers[i].slope
    A = layers[i].inputs
    g = g * tau.sqrt()[:, None]
    gram = aligned_gram(g, A)
    if not any(bool(layer.bend.any()) for layer in layers[i:]):
        value = sigma**2 * torch.linalg.eigvalsh(gram)[-1]
    elif i == len(layers) - 2:
        value = _with_bends(gram, sigma, g, A, layers[i].bend * (outer.gradient @ last.W))
    else:
        reason = "stated for the last hidden layer where activations bend"
        return Bound(statement, last.name, block, 0.0, vacuous=reason)
    reason = "no unit that the top singular vector reads is active, or the activations' bends cancel it"
    return _stated(statement, last.name, block, value, 1, reason)


def _with_bends(
    gram: Float[Tensor, "n n"],
    sigma: Float[Tensor, ""],
    g: Float[Tensor, "n d"],
    A: Float[Tensor, "n e"],
    curving: Float[Tensor, "n d"],
) -> Float[Tensor, ""]:
    """The largest Rayleigh quotient that ``σ²·(Gauss–Newton) + Σ_s diag(curving_s) ⊗ a_s a_sᵀ`` takes on the
    span of the vectors ``g_s ⊗ a_s``.

    With ``M = Σ_t x_t g_t a_tᵀ`` both forms are n × n matrices in x: ``σ²·gram²``, and the sum of
    ``curving_sk·(M a_s)_k²``; ``‖M‖² = xᵀ gram x``.
    """
    moved = torch.einsum("td,ts->sdt", g, A @ A.T).flatten(0, 1)  # (M a_s)_k, linear in x
    form = sigma**2 * gram @ gram + moved.T @ (curving.flatten()[:, None] * moved)
    values, vectors = torch.linalg.eigh(gram)
    spanned = values > 1e-8 * values[-1]
    basis = vectors[:, spanned] / values[spanned].sqrt()
    if not basis.numel():
        return sigma.new_zeros(())
    return torch.linalg.eigvalsh(basis.T @ form @ basis)[-1]


def _stated(
    statement: str, matrix: str, block: str, value: Tensor | float, rests_on: int | None, otherwise: str
) -> Bound:
    """The bound, or a vacuous one with its reason where ``value`` is not above zero."""
    if float(value) > 0:
        return Bound(statement, matrix, block, float(value), rests_on)
    return Bound(statement, matrix, block, 0.0, vacuous=otherwise)


def aligned_gram(g: Float[Tensor, "n d"], a: Float[Tensor, "n e"]) -> Float[Tensor, "n n"]:
    """``GGᵀ ∘ AAᵀ``: the Gram matrix of the vectors ``g_s ⊗ a_s``, whose sum of squares it shares its λ_max with."""
    return (g @ g.T) * (a @ a.T)


def _padded(sigma: Float[Tensor, "*n r"], size: int) -> Float[Tensor, "*n s"]:
    """The first ``size`` singular values, with the zeros that a rectangular factor lacks."""
    return nn.functional.pad(sigma, (0, max(0, size - sigma.shape[-1])))[..., :size]


def _root(hessian: Float[Tensor, "n o o"]) -> Float[Tensor, "n o o"]:
    """``F`` with ``FᵀF = hessian``."""
    values, vectors = torch.linalg.eigh(hessian)
    return values.clamp_min(0).sqrt()[:, :, None] * vectors.mT


def _is_centred(hessian: Float[Tensor, "n o o"]) -> bool:
    """Whether adding a constant to all outputs changes nothing, as for cross-entropy."""
    return float(hessian.sum(-1).abs().max()) <= 1e-5 * float(hessian.abs().max())


def _least_along(hessian: Float[Tensor, "n o o"], u: Float[Tensor, " o"]) -> Float[Tensor, " n"]:
    """The largest τ_s with ``hessian_s ⪰ τ_s u uᵀ``, which is ``1/(uᵀ hessian_s⁻¹ u)``.

    Along the constant vector a centred Hessian is zero, and so is u: any curvature there leaves τ as it is.
    """
    if _is_centred(hessian):
        hessian = hessian + hessian.abs().amax((-1, -2), keepdim=True) / hessian.shape[-1]
    values, vectors = torch.linalg.eigh(hessian)
    # What rounds to nothing is taken for the smallest number there is: τ is then zero, never too large.
    least = torch.finfo(hessian.dtype).tiny
    return 1 / ((vectors.mT @ u).square() / values.clamp_min(least)).sum(-1)
