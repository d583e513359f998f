"""The theorems as properties: no bound is ever above σ_max(H), dense and in float64."""

import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speclock.curvature import (
    cross_entropy,
    mlp_bounds,
    mlp_layers,
    product_bound,
    squared_error,
    transformer_bounds,
)
from speclock.curvature.bounds import remark_a3
from speclock.curvature.transformer import Head, forward
from speclock.errors import InputError

SLACK = 1 + 1e-9


def _sigma_max(loss: Callable[[], Tensor], parameters: Mapping[str, Tensor]) -> float:
    """Of the Hessian by autograd, all rows at once: hundreds of nets are asked."""
    inputs = list(parameters.values())
    slopes = torch.autograd.grad(loss(), inputs, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in slopes])
    eye = torch.eye(len(gradient), dtype=gradient.dtype)
    blocks = torch.autograd.grad(gradient, inputs, eye, is_grads_batched=True, materialize_grads=True)
    return float(torch.linalg.matrix_norm(torch.cat([block.flatten(1) for block in blocks], 1), 2))


def _mlp(seed: int, widths: list[int], activation: type[nn.Module], gain: float, bias: bool) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        linear = nn.Linear(fan_in, fan_out, bias=bias)
        nn.init.xavier_uniform_(linear.weight, gain=gain)
        modules += [linear, activation()]
    return nn.Sequential(*modules[:-1]).double()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    activation=st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Identity]),
    gain=st.sampled_from([0.1, 1.0, 5.0]),
    n=st.integers(1, 7),
    entropy=st.booleans(),
    bias=st.booleans(),
)
def test_no_bound_of_an_mlp_is_above_the_curvature(
    seed: int, widths: list[int], activation: type[nn.Module], gain: float, n: int, entropy: bool, bias: bool
) -> None:
    net = _mlp(seed, widths, activation, gain, bias)
    x = torch.randn(n, widths[0], dtype=torch.float64)
    layers, outputs = mlp_layers(net, x)
    torch.testing.assert_close(outputs, net(x).detach())
    if entropy:
        labels = torch.randint(widths[-1], (n,))
        outer = cross_entropy(outputs, labels)
        sigma = _sigma_max(lambda: nn.functional.cross_entropy(net(x), labels), dict(net.named_parameters()))
    else:
        targets = torch.randn_like(outputs)
        outer = squared_error(outputs, targets)
        sigma = _sigma_max(lambda: nn.functional.mse_loss(net(x), targets), dict(net.named_parameters()))
    for bound in mlp_bounds(layers, outer, k=2):
        assert bound.value <= sigma * SLACK + 1e-12, bound
        assert (bound.value == 0) == (bound.vacuous is not None), bound


def test_without_rectified_units_the_bounds_are_far_from_vacuous() -> None:
    net = _mlp(0, [4, 4, 4], nn.LeakyReLU, 1.0, bias=False)
    x = torch.randn(16, 4, dtype=torch.float64)
    layers, outputs = mlp_layers(net, x)
    targets = torch.randn_like(outputs)
    sigma = _sigma_max(lambda: nn.functional.mse_loss(net(x), targets), dict(net.named_parameters()))
    bounds = {bound.statement: bound for bound in mlp_bounds(layers, squared_error(outputs, targets))}
    assert bounds["theorem 2.1"].vacuous is None
    assert bounds["aligned"].value > sigma / 3


def test_a_zeroed_unit_makes_lemma_a1_vacuous_and_remark_a3_not() -> None:
    torch.manual_seed(0)
    W1 = nn.Linear(3, 4, bias=True).double()
    with torch.no_grad():
        W1.bias[0] = -100.0  # the first unit is never active
    net = nn.Sequential(W1, nn.ReLU(), nn.Linear(4, 4, bias=False).double())
    with torch.no_grad():
        W1.bias[1:] = 100.0
    x = torch.randn(5, 3, dtype=torch.float64)
    layers, outputs = mlp_layers(net, x)
    outer = squared_error(outputs, torch.zeros_like(outputs))
    bounds = {bound.statement: bound for bound in mlp_bounds(layers, outer, k=2)}
    assert "zeroes a unit" in bounds["theorem 2.1"].vacuous
    assert bounds["remark A.3, sharpened"].rests_on == 2, (
        "one dead unit: the second singular value carries it"
    )
    assert bounds["remark A.3, k = 2"].value > 0
    assert bounds["remark A.3, sharpened"].value >= bounds["remark A.3, k = 2"].value


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    p=st.integers(1, 6),
    q=st.integers(1, 6),
    o=st.integers(1, 6),
    i=st.integers(1, 6),
    rank=st.integers(0, 6),
)
def test_products_of_singular_values(seed: int, p: int, q: int, o: int, i: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> Tensor:
        M = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        U, S, V = torch.linalg.svd(M, full_matrices=False)
        return U[:, :rank] * S[:rank] @ V[:rank] if rank else torch.zeros_like(M)

    P, W, Q = random(o, p), torch.randn(p, q, dtype=torch.float64, generator=generator), random(q, i)

    def values(M: Tensor, size: int) -> Tensor:
        S = torch.linalg.svdvals(M)
        return nn.functional.pad(S, (0, max(0, size - len(S))))[:size]

    value, _ = product_bound(torch.linalg.svdvals(W), values(P, p), values(Q, q))
    true = torch.linalg.matrix_norm(P @ W @ Q, 2)
    assert value <= true * SLACK + 1e-12
    for k in range(1, q + 1):
        printed = remark_a3(values(W, q), values(Q, q), k)
        assert printed <= torch.linalg.matrix_norm(W @ Q, 2) * SLACK + 1e-12
        sharpened, _ = product_bound(
            torch.linalg.svdvals(W), torch.ones(p, dtype=torch.float64), values(Q, q)
        )
        assert printed <= sharpened * SLACK + 1e-12, "the best term is never below the mean of them"


def _transformer(
    seed: int, layers: int, heads: int, gain: float, D: int = 3, s: int = 2, h: int = 4
) -> list[list[Head]]:
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> nn.Parameter:
        return nn.Parameter(gain * torch.randn(rows, columns, dtype=torch.float64, generator=generator))

    shapes = [(s, D), (s, D), (s, D), (D, s), (h, D), (D, h)]
    return [[Head(*(random(*shape) for shape in shapes)) for _ in range(heads)] for _ in range(layers)]


def _named(layers: list[list[Head]]) -> dict[str, Tensor]:
    return {
        f"{i}.{j}.{name}": p
        for i, heads in enumerate(layers)
        for j, head in enumerate(heads)
        for name, p in head._asdict().items()
    }


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 2),
    heads=st.integers(1, 2),
    gain=st.sampled_from([0.3, 1.0, 3.0]),
    rows=st.sampled_from([None, 1, 3, 5]),
)
def test_no_bound_of_a_transformer_is_above_the_curvature(
    seed: int, depth: int, heads: int, gain: float, rows: int | None
) -> None:
    layers = _transformer(seed, depth, heads, gain)
    torch.manual_seed(seed)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    R = torch.eye(3, dtype=torch.float64) if rows is None else torch.randn(rows, 3, dtype=torch.float64)
    y = torch.randn(4, 2, len(R), dtype=torch.float64)
    sigma = _sigma_max(lambda: nn.functional.mse_loss(forward(layers, x) @ R.T, y), _named(layers))
    with torch.no_grad():
        bounds = transformer_bounds(layers, x, None if rows is None else R)
    for bound in bounds:
        assert bound.value <= sigma * SLACK + 1e-12, bound
        assert (bound.value == 0) == (bound.vacuous is not None), bound
    assert max(bound.value for bound in bounds) > 0


def test_the_block_of_a_query_matrix_falls_as_it_grows() -> None:
    """The paper's equation (9) has it grow in proportion to σ_max(W_Q); a softmax that saturates has no slope."""
    [[head]] = _transformer(1, 1, 1, 1.0)
    torch.manual_seed(1)
    x, y = torch.randn(8, 2, 3, dtype=torch.float64), torch.randn(8, 2, 3, dtype=torch.float64)
    curvature = []
    for factor in (1.0, 10.0, 1000.0):
        grown = head._replace(Q=nn.Parameter(factor * head.Q.detach()))
        curvature.append(
            _sigma_max(lambda grown=grown: nn.functional.mse_loss(forward([[grown]], x), y), {"Q": grown.Q})
        )
    assert curvature[0] > curvature[1] > curvature[2]
    assert curvature[2] < 1e-3 * curvature[0]


def test_other_nets_are_refused() -> None:
    with pytest.raises(InputError, match=r"module 1 is Softmax"):
        mlp_layers(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)), torch.ones(1, 2))
