"""Top singular values against their dense twin, ``svdvals`` in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speclock.errors import InputError
from speclock.spectra import frobenius, operator_norm, singular_values, stable_rank, start_basis, top_singular
from speclock.spectra.topk import GRAM_LIMIT, converge


def dense(W):
    return torch.linalg.svdvals(W.double())


def orthonormal(rows, columns, generator):
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def with_spectrum(m, n, sigma, generator, dtype=torch.float32):
    """A matrix with the singular values ``sigma``, but for rounding to ``dtype``."""
    r = len(sigma)
    U, V = orthonormal(m, r, generator), orthonormal(n, r, generator)
    return ((U * torch.as_tensor(sigma, dtype=torch.float64)) @ V.T).to(dtype)


def basis_for(W, k, seed=0):
    return start_basis(tuple(W.shape), k, torch.Generator().manual_seed(seed), W)


@st.composite
def matrices(draw):
    m, n = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    side = min(m, n)
    spectrum = draw(st.sampled_from(["random", "flat", "low rank", "zero"]))
    scale = 10.0 ** draw(st.integers(-6, 6))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if spectrum == "random":
        W = torch.randn(m, n, generator=generator, dtype=torch.float64)
    elif spectrum == "flat":
        W = with_spectrum(m, n, [1.0] * side, generator, torch.float64)
    elif spectrum == "zero":
        W = torch.zeros(m, n, dtype=torch.float64)
    else:
        rank = draw(st.integers(1, side))
        W = with_spectrum(m, n, [2.0**-i for i in range(rank)], generator, torch.float64)
    return (scale * W).to(dtype)


@given(matrices(), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_singular_values_equal_their_dense_twin(W, k):
    found, expected = singular_values(W, k), dense(W)[:k]
    assert found.dtype == torch.float64
    # At float64's own rounding of a matrix that is stored in it, no two algorithms agree.
    floor = 1e-13 * float(expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=floor)


SPECTRA = {
    "flat": lambda r: [3.0] * r,
    "twelve copies": lambda r: [10.0] * 12 + [1.0] * (r - 12),
    "geometric": lambda r: [0.5**i for i in range(r)],
    "isolated": lambda r: [100.0] + [1.0] * (r - 1),
    "rank one": lambda r: [1.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(120, 90), (60, 400), (700, 40)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values_of_hard_spectra(spectrum, shape, dtype):
    generator = torch.Generator().manual_seed(1)
    W = with_spectrum(*shape, SPECTRA[spectrum](min(shape)), generator, dtype)
    torch.testing.assert_close(singular_values(W, 8), dense(W)[:8], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("kind", ["copies", "random"])
def test_lanczos_beyond_the_gram_limit(kind):
    side = GRAM_LIMIT + 20
    if kind == "copies":  # a spectrum known in advance, on a matrix that is no diagonal
        sigma = torch.cat([torch.full((12,), 10.0), torch.linspace(9, 0.1, side - 12)]).double()
        x = torch.randn(side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x /= x.norm()
        W, expected = torch.diag(sigma) - 2 * torch.outer(x, x * sigma), sigma[:8]
    else:
        W = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
        expected = torch.linalg.eigvalsh(W.double().T @ W.double()).flip(0)[:8].sqrt()
    torch.testing.assert_close(singular_values(W, 8), expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    W = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(singular_values(W * scale, 3), dense(W * scale)[:3], rtol=1e-6, atol=0.0)


def test_more_values_than_there_are():
    assert len(singular_values(torch.randn(3, 5), 8)) == 3
    W = torch.randn(3, 5)
    assert len(top_singular(W, basis_for(W, 8), 8).sigma) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("measure", [lambda W: singular_values(W, 1), frobenius, stable_rank])
def test_weights_that_are_not_finite_are_refused(measure, bad):
    W = torch.ones(3, 4)
    W[1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        measure(W)


def test_a_matrix_without_elements_is_refused():
    with pytest.raises(InputError, match="no singular values"):
        singular_values(torch.zeros(0, 4), 1)


@given(matrices())
@settings(max_examples=40, deadline=None)
def test_stable_rank_and_frobenius(W):
    sigma = dense(W)
    norm = float(sigma.square().sum().sqrt())
    assert frobenius(W) == pytest.approx(norm, rel=1e-9)
    expected = (norm / float(sigma[0])) ** 2 if norm else 0.0
    assert stable_rank(W) == pytest.approx(expected, rel=1e-9)


@given(matrices(), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_converged_iteration_equals_its_dense_twin(W, k):
    top = converge(W, basis_for(W, k), k, 1e-4, 100)
    expected = dense(W)[: len(top.sigma)]
    assert top.sigma.dtype == torch.promote_types(W.dtype, torch.float32)
    there = top.sigma > 0
    # σ below 1e-6·σ₁ come back as zero. Within a cluster of σ a residual of 1e-4 may rest on any of them.
    torch.testing.assert_close(top.sigma.double(), expected, rtol=1e-3, atol=3e-6 * float(expected[0]))
    eye = torch.diag(there.to(top.U.dtype))
    torch.testing.assert_close(top.U.T @ top.U, eye, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(top.V.T @ top.V, eye, rtol=0.0, atol=1e-3)
    rotated = top.U.T.double() @ W.double() @ top.V.double()
    torch.testing.assert_close(
        rotated, torch.diag(top.sigma.double()), rtol=1e-3, atol=1e-3 * float(expected[0])
    )


@pytest.mark.parametrize("shape", [(64, 200), (200, 64)])
def test_the_error_falls_by_the_ratio_of_sigmas(shape):
    generator = torch.Generator().manual_seed(0)
    W = with_spectrum(*shape, [4.0, 4.0] + [2.0] * 62, generator, torch.float64)
    V, residuals = basis_for(W, 2), []
    for _ in range(5):
        top = top_singular(W, V, 2)
        V = top.basis
        residuals.append(float(top.residual))
    # (σ_{b+1}/σ_k)² = 1/4 each call
    for before, after in itertools.pairwise(residuals[1:]):
        assert after / before == pytest.approx(0.25, rel=0.1)


@given(st.integers(0, 2**32), st.sampled_from([(64, 48), (48, 64), (16, 200), (33, 33)]))
@settings(max_examples=30, deadline=None)
def test_sigma_never_exceeds_the_true_one_and_lies_within_its_residual(seed, shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    top = top_singular(W, basis_for(W, 2, seed), 2)
    true = dense(W)
    assert (top.sigma <= true[:2] * (1 + 1e-9)).all()
    distance = (top.sigma[:, None] - true).abs().amin(dim=1)
    assert (distance <= (top.residual + 1e-9) * true[0]).all()


def test_a_second_sigma_far_below_the_first_is_exact():
    W = with_spectrum(100, 80, [1e4, 1.0, 0.5, 0.25], torch.Generator().manual_seed(0))
    found = converge(W, basis_for(W, 2), 2, 1e-4, 50).sigma
    torch.testing.assert_close(found.double(), dense(W)[:2], rtol=3e-3, atol=0.0)


def test_the_basis_lies_on_the_shorter_side():
    W = torch.randn(50, 300)
    assert basis_for(W, 2).shape == (50, 16)
    assert top_singular(W, basis_for(W, 2), 2).basis.shape == (50, 16)
    assert basis_for(torch.randn(300, 7), 2).shape == (7, 7)
    assert basis_for(torch.randn(300, 70), 12).shape == (70, 32)


def test_not_a_number_in_not_a_number_out():
    W = torch.full((30, 20), math.nan)
    top = top_singular(W, basis_for(torch.zeros(30, 20), 2), 2)
    assert top.sigma.isnan().all()
    assert top.residual.isnan()


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_operator_norm_equals_the_dense_operator(stride, padding):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=stride, padding=padding).double()
    impulses = torch.eye(2 * 8 * 8, dtype=torch.float64).reshape(-1, 2, 8, 8)
    with torch.no_grad():
        dense_operator = (conv(impulses) - conv(torch.zeros_like(impulses))).flatten(1)
    assert operator_norm(conv, size=8, steps=1000, tol=1e-8) == pytest.approx(
        float(dense(dense_operator)[0]), rel=1e-4
    )


def test_operator_norm_bound_from_the_unfolded_matrix():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    unfolded = float(singular_values(conv.weight.flatten(1), 1))
    assert operator_norm(conv, size=12) <= 3 * unfolded
