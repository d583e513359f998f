"""Every estimator against its dense twin in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jacrev

from speclock.curvature import (
    Hessian,
    conditioning,
    dense,
    extreme_eigenvalues,
    spectral_density,
    spectral_ends,
    trace,
)
from speclock.errors import InputError


def _net(seed: int, width: int = 4, inputs: int = 4, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 3)
    ).double()


def _objective(
    net: nn.Module, batches: int = 1, n: int = 12, inputs: int = 4
) -> tuple[Hessian, torch.Tensor]:
    """The Hessian of a mean cross-entropy over ``batches`` mini-batches, and its twin by torch.func."""
    x, y = torch.randn(n, inputs, dtype=torch.float64), torch.randint(3, (n,))
    params = dict(net.named_parameters())

    def share(rows: slice) -> torch.Tensor:
        return nn.functional.cross_entropy(net(x[rows]), y[rows], reduction="sum") / n

    size = math.ceil(n / batches)
    shares = [lambda at=at: share(slice(at, at + size)) for at in range(0, n, size)]
    shapes = [(name, p.shape, p.numel()) for name, p in params.items()]

    def flat_loss(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([size for *_, size in shapes])
        named = {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(net, named, x), y)

    theta = torch.cat([p.detach().reshape(-1) for p in params.values()])
    return Hessian(shares, params), jacrev(grad(flat_loss))(theta)


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batches=st.integers(1, 3),
    activation=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU]),
)
def test_products_and_extreme_eigenvalues_agree_with_the_dense_twin(
    seed: int, batches: int, activation: type[nn.Module]
) -> None:
    H, twin = _objective(_net(seed, activation=activation), batches)
    torch.testing.assert_close(dense(H), twin, rtol=1e-9, atol=1e-11)
    values = np.linalg.eigvalsh(twin.numpy())
    scale = np.abs(values).max()
    top, bottom = (extreme_eigenvalues(H, which=which, tol=0.0)[0] for which in ("LA", "SA"))
    largest = extreme_eigenvalues(H, 2, tol=0.0)
    assert top.value == pytest.approx(values[-1], abs=1e-6 * scale)
    assert bottom.value == pytest.approx(values[0], abs=1e-6 * scale)
    by_modulus = sorted(values, key=abs)[::-1]
    assert [abs(e.value) for e in largest] == pytest.approx(np.abs(by_modulus[:2]), abs=1e-6 * scale)
    assert max(e.residual for e in (top, bottom, *largest)) <= 1e-6 * scale
    ends = spectral_ends(H, "BE", tol=1e-8)
    assert ends.largest.value == pytest.approx(values[-1], abs=1e-6 * scale)
    assert ends.smallest.value == pytest.approx(values[0], abs=1e-6 * scale)
    assert abs(spectral_ends(H, tol=1e-8).by_modulus.value) == pytest.approx(scale, abs=1e-6 * scale)


def test_a_block_is_the_diagonal_block_of_the_whole() -> None:
    net = _net(0)
    H, twin = _objective(net)
    at = 0
    for name, p in net.named_parameters():
        block = twin[at : at + p.numel(), at : at + p.numel()]
        torch.testing.assert_close(dense(H.block(name)), block, rtol=1e-9, atol=1e-11)
        at += p.numel()


def test_the_gradient_is_that_of_all_shares() -> None:
    net = _net(2)
    H, _ = _objective(net, batches=3)
    loss = sum(share() for share in H.shares)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
    assert H.gradient() == pytest.approx(expected.numpy(), abs=1e-12)
    P = np.full(H.shape[0], 4.0)
    assert H.preconditioned(P).gradient() == pytest.approx(expected.numpy() / 2, abs=1e-12)


def test_the_ends_are_found_where_the_gradient_sees_nothing() -> None:
    """At the bottom of (x² + 5y²)/2 the gradient is zero, and next to it blind to y."""
    w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    bowl = Hessian([lambda: (w[0] ** 2 + 5 * w[1] ** 2) / 2], {"w": w})
    assert spectral_ends(bowl, tol=1e-10).by_modulus.value == pytest.approx(5)
    with torch.no_grad():
        w.zero_()
    assert spectral_ends(bowl, "BE", tol=1e-10).smallest.value == pytest.approx(1)


def test_a_preconditioned_hessian_has_the_eigenvalues_of_the_product() -> None:
    H, twin = _objective(_net(0))
    P = np.random.default_rng(0).uniform(0.1, 10, len(twin))
    expected = np.sort(np.linalg.eigvals(np.diag(1 / P) @ twin.numpy()).real)
    assert np.linalg.eigvalsh(dense(H.preconditioned(P)).numpy()) == pytest.approx(expected, abs=1e-9)


def test_least_squares_has_its_known_hessian() -> None:
    """‖XW − Y‖²/(n·o) has H = 2/(n·o) · XᵀX ⊗ I."""
    torch.manual_seed(0)
    X, Y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    W = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))
    H = Hessian([lambda: nn.functional.mse_loss(X @ W, Y)], {"W": W})
    expected = 2 / Y.numel() * torch.kron(X.T @ X, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(dense(H), expected)


def test_the_trace_is_within_its_error() -> None:
    H, twin = _objective(_net(3))
    values = torch.linalg.eigvalsh(twin).numpy()
    estimate = trace(H, probes=200)
    assert abs(estimate.value - values.sum()) <= 4 * estimate.error


def test_quadrature_is_exact_for_low_moments_of_what_its_probes_see() -> None:
    H, twin = _objective(_net(3))
    seen = spectral_density(H, steps=20, probes=5, seed=7)
    rng = np.random.default_rng(7)
    probes = [(2 * rng.integers(0, 2, len(twin), np.int8) - 1) / math.sqrt(len(twin)) for _ in range(5)]
    for power in range(6):
        moment = np.mean([q @ np.linalg.matrix_power(twin.numpy(), power) @ q for q in probes])
        assert (seen.weights * seen.nodes**power).sum() == pytest.approx(moment, rel=1e-9)
    largest = np.linalg.eigvalsh(twin.numpy()).max()
    assert seen.nodes.max() == pytest.approx(largest, rel=1e-6), "the extreme nodes are Ritz values"


def test_conditioning_by_lanczos_agrees_with_the_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net(5)
    H, _ = _objective(net)
    full = conditioning(H, floor=1e-2)
    assert full.exact
    monkeypatch.setattr("speclock.curvature.hessian.DENSE_UP_TO", 0)
    found = conditioning(H, floor=1e-2, tol=1e-6, steps=60)
    assert not found.exact
    for name in ("sigma_max", "lambda_max", "lambda_min"):
        assert getattr(found, name).value == pytest.approx(getattr(full, name).value, rel=1e-5)
    # What Lanczos finds above the floor is an eigenvalue, though there may be smaller ones.
    values = torch.linalg.eigvalsh(dense(H)).numpy()
    assert np.abs(values - found.smallest.value).min() <= 1e-6 * found.sigma_max.value
    assert found.smallest.value >= full.smallest.value * (1 - 1e-5)
    assert found.kappa <= full.kappa * (1 + 1e-5)


def test_a_share_linear_in_the_parameters_has_no_curvature() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    assert dense(Hessian([w.sum], {"w": w})).abs().max() == 0


def test_half_precision_is_refused_with_the_mend() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(InputError, match=r"float32 or float64.*bfloat16.*model\.float\(\)"):
        Hessian([lambda: w.square().sum()], {"w": w})
