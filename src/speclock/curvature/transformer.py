"""The Transformer of Appendix A.2, and what of Theorem 2.2 holds for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from speclock.curvature.bounds import Bound, aligned_gram, product_bound


class Head(NamedTuple):
    """One head of a layer, attention and feed-forward: ``s`` is its width, ``h`` its hidden width."""

    Q: Float[Tensor, "s D"]
    K: Float[Tensor, "s D"]
    V: Float[Tensor, "s D"]
    O: Float[Tensor, "D s"]  # noqa: E741
    W1: Float[Tensor, "h D"]
    W2: Float[Tensor, "D h"]


def forward(layers: Sequence[Sequence[Head]], tokens: Float[Tensor, "n t D"]) -> Float[Tensor, "n t D"]:
    """``T(H, 1)`` of equations (1) to (6): L layers of M heads, residual steps of η/M with ``η = 1/(2L)``.

    Tokens are rows here, columns in the paper.
    """
    Z = tokens
    for heads in layers:
        Z = _step(heads, Z, 1 / (2 * len(layers) * len(heads)))[-1]
    return Z


class _Inside(NamedTuple):
    """What a layer computes on the way."""

    mixed: list[Float[Tensor, "n t D"]]
    """Of each head, the tokens mixed by its attention: Zσ_A."""
    between: Float[Tensor, "n t D"]
    """After attention, before the feed-forward half."""
    active: list[Bool[Tensor, "n t h"]]
    """Of each head, which hidden units are."""
    out: Float[Tensor, "n t D"]


def _step(heads: Sequence[Head], Z: Float[Tensor, "n t D"], eta: float) -> _Inside:
    mixed = [((Z @ head.Q.T) @ (Z @ head.K.T).mT).softmax(-1) @ Z for head in heads]
    between = Z + eta * torch.stack(
        [Y @ head.V.T @ head.O.T for head, Y in zip(heads, mixed, strict=True)]
    ).sum(0)
    hidden = [between @ head.W1.T for head in heads]
    out = between + eta * torch.stack(
        [z.relu() @ head.W2.T for head, z in zip(heads, hidden, strict=True)]
    ).sum(0)
    return _Inside(mixed, between, [z > 0 for z in hidden], out)


def transformer_bounds(
    layers: Sequence[Sequence[Head]],
    tokens: Float[Tensor, "n t D"],
    readout: Float[Tensor, "r D"] | None = None,
) -> list[Bound]:
    """Theorem 2.2 as it holds: for W_O, W_V, W_1 and W_2 of the last layer's heads.

    The loss is the mean of ``(R·T(H, 1) − y)²`` over samples, tokens and outputs; R, ``readout``, defaults to the
    identity. In W_V, in W_O and in either feed-forward matrix the model's last layer is piecewise linear, so those
    diagonal blocks of H are Gauss–Newton blocks, whatever the targets. With ``c = 2/(n·t·r)``, ``e = η/M``,
    ``A = R(I + e·Σ W_2 D W_1)`` a token's Jacobian behind attention, y its mixed input and z what enters the
    feed-forward half:

    - W_O, in the block of W_V: ``c·e²·σ₁(W_O)²·λ_max(Σ ‖A u₁‖² y yᵀ)``,
    - W_V, in the block of W_O: ``c·e²·σ₁(W_V)²·λ_max(Σ (v₁ᵀy)² AᵀA)``,
    - W_2, in the block of W_1: ``c·e²·σ₁(W_2)²·λ_max(GGᵀ ∘ ZZᵀ)/‖R⁺ᵀu₁‖²``, g = D v₁ the rows of G,
    - W_1, in the block of W_2: ``c·e²·σ₁(R)²·σ₁(D W_1 Zᵀ)²`` over the tokens that share D, the last factor bounded by
      :func:`product_bound`.

    u₁ and v₁ are singular vectors of the matrix named. W_Q and W_K have no such statement: they enter through a
    softmax that saturates, and the block of either *falls* as they grow (``docs/theory.md``). Nor have earlier
    layers, behind which the second derivatives of later softmaxes enter with the residuals' sign.
    """
    n, t, D = tokens.shape
    heads = layers[-1]
    eta = 1 / (2 * len(layers) * len(heads))
    Z = tokens
    for earlier in layers[:-1]:
        Z = _step(earlier, Z, eta * len(heads) / len(earlier))[-1]
    inside = _step(heads, Z, eta)
    R = torch.eye(D, dtype=Z.dtype, device=Z.device) if readout is None else readout
    scale = 2 / (n * t * len(R)) * eta**2

    between = inside.between.reshape(-1, D)
    active = [D_.reshape(n * t, -1).to(Z.dtype) for D_ in inside.active]
    behind = torch.eye(D, dtype=Z.dtype, device=Z.device) + eta * torch.stack(
        [head.W2 @ (on[:, :, None] * head.W1) for head, on in zip(heads, active, strict=True)]
    ).sum(0)
    A = R @ behind  # (n·t) × r × D

    bounds: list[Bound] = []
    for number, (head, mixed, on) in enumerate(zip(heads, inside.mixed, active, strict=True), 1):
        y = mixed.reshape(-1, D)

        def stated(
            matrix: str, block: str, value: Tensor, reason: str, rests_on: int = 1, number: int = number
        ) -> None:
            names = f"head {number}: {matrix}", f"head {number}: {block}"
            known = float(value) > 0
            bounds.append(
                Bound("theorem 2.2", *names, float(value), rests_on)
                if known
                else Bound("theorem 2.2", *names, 0.0, vacuous=reason)
            )

        U, sigma, _ = torch.linalg.svd(head.O, full_matrices=False)
        weight = (A @ U[:, 0]).square().sum(-1)
        stated(
            "W_O", "W_V", scale * sigma[0] ** 2 * _top((y * weight[:, None]).T @ y), "the readout loses it"
        )
        _, sigma, Vh = torch.linalg.svd(head.V, full_matrices=False)
        read = (y @ Vh[0]).square()
        curved = (A.mT @ A * read[:, None, None]).sum(0)
        stated("W_V", "W_O", scale * sigma[0] ** 2 * _top(curved), "no token has a part along v₁")
        U, sigma, Vh = torch.linalg.svd(head.W2, full_matrices=False)
        back = torch.linalg.pinv(R).T @ U[:, 0]
        full = torch.linalg.matrix_rank(R) == D
        gram = aligned_gram(on * Vh[0], between)
        value = scale * sigma[0] ** 2 * _top(gram) / back.square().sum() if full else gram.new_zeros(())
        stated("W_2", "W_1", value, "the readout mixes outputs, or no unit that v₁ reads is active")
        value, order = _grouped(head.W1, between, on)
        value = scale * torch.linalg.matrix_norm(R, 2) ** 2 * value**2
        stated("W_1", "W_2", value, "no tokens with one pattern of active units span enough", order)
        for matrix in ("W_Q", "W_K"):
            reason = "the softmax saturates: its derivatives fall as this matrix grows"
            stated(matrix, matrix, gram.new_zeros(()), reason)
    return bounds


def _grouped(
    W: Float[Tensor, "h D"], z: Float[Tensor, "m D"], on: Float[Tensor, "m h"]
) -> tuple[Float[Tensor, ""], int]:
    """The best bound of ``σ₁(D W Zᵀ)`` over groups of tokens that share D, and the l of the σ_l it rests on."""
    sigma = torch.linalg.svdvals(W)
    best, order = z.new_zeros(()), 1
    patterns, group = on.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        spread = torch.linalg.svdvals(z[group == number])
        spread = torch.nn.functional.pad(spread, (0, max(0, W.shape[1] - len(spread))))
        value, at = product_bound(sigma, pattern.sort(descending=True).values, spread)
        if value > best:
            best, order = value, int(at)
    return best, order


def _top(symmetric: Float[Tensor, "p p"]) -> Float[Tensor, ""]:
    return torch.linalg.eigvalsh(symmetric)[-1]
