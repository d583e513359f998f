"""Our own optimizers against their dense twins, and the preconditioned ones where descent is slow."""

from __future__ import annotations

import bisect
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speclock.errors import InputError
from speclock.optimizers import OPTIMIZERS, Needs, optimizer_named
from speclock.optimizers.xmat import applied, fitted, preconditioned


def dense(a: Tensor, b: Tensor) -> Tensor:
    """Q = diag(a) + adiag(b); the middle entry of an odd b is zero by convention."""
    return torch.diag(a) + torch.diag(b).flip(1)


def drawn(n: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    a, b, v, h = (torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(4))
    a = a.abs() + 1
    b = 0.3 * b
    if n % 2:
        b[n // 2] = 0
    return a, b, v, h


@given(n=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_x_shaped_products_are_the_dense_ones(n: int, seed: int) -> None:
    a, b, v, _ = drawn(n, seed)
    Q = dense(a, b)
    torch.testing.assert_close(applied(a, b, v), Q @ v)
    torch.testing.assert_close(preconditioned(a, b, v), Q.T @ Q @ v)


@given(n=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_small_fit_step_descends_the_criterion_within_the_group(n: int, seed: int) -> None:
    """hᵀPh + vᵀP⁻¹v by dense algebra; its relative gradient, restricted to X shapes, by autograd."""
    a, b, v, h = drawn(n, seed)

    def criterion(Q: Tensor) -> Tensor:
        P = Q.T @ Q
        return h @ P @ h + v @ torch.linalg.solve(P, v)

    E = torch.zeros(n, n, dtype=torch.float64, requires_grad=True)
    Q = dense(a, b)
    (gradient,) = torch.autograd.grad(criterion((torch.eye(n, dtype=torch.float64) + E) @ Q), E)
    shape = torch.eye(n, dtype=torch.float64)
    shape = ((shape + shape.flip(1)) > 0).double()
    step = gradient * shape
    wanted = Q - 1e-3 / (step.abs().max() / 2) * (step / 2) @ Q
    new_a, new_b = fitted(a, b, v, h, 1e-3)
    torch.testing.assert_close(dense(new_a, new_b), wanted, rtol=1e-9, atol=1e-12)
    assert criterion(dense(new_a, new_b)) <= criterion(Q) + 1e-12


def quadratic() -> tuple[Tensor, Tensor]:
    """Eigenvalues of ½xᵀHx in random order, κ = 10^3.5 and dimension 50, and where descent begins."""
    torch.manual_seed(0)
    return torch.logspace(0, -3.5, 50)[torch.randperm(50)], 1 + 0.1 * torch.randn(50)


def descents_best() -> int:
    """Steps of gradient descent until the loss is 1e-6 of the start, at η = 2/(λ_max + λ_min).

    In closed form, since a component of the error shrinks by |1 − ηλ| a step.
    """
    H, x = (t.double() for t in quadratic())
    rate = 2 / (H.max() + H.min())

    def there(steps: int) -> bool:
        return bool((H * x**2 * (1 - rate * H) ** (2 * steps)).sum() < 1e-6 * (H * x**2).sum())

    return bisect.bisect_left(range(20_000), True, key=there)


def steps_to_a_millionth(name: str, lr: float, limit: int) -> int:
    """The same by an optimizer; ``limit`` if it takes as many or more."""
    H, start = quadratic()
    x = torch.nn.Parameter(start)
    chosen = optimizer_named(name)
    optimizer = chosen.load()([x], lr=lr, **chosen.arguments)

    def closure() -> float:
        optimizer.zero_grad()
        loss = 0.5 * (H * x * x).sum()
        loss.backward(create_graph=chosen.needs is Needs.GRAPH)
        return loss.item()

    first = closure()
    for taken in range(limit):
        if closure() < 1e-6 * first:
            return taken
        optimizer.step(closure if chosen.needs is Needs.CLOSURE else None)
    return limit


def test_descent_takes_what_its_closed_form_says() -> None:
    """On as many steps as are quick: the loss after 200 of them."""
    H, start = quadratic()
    x = torch.nn.Parameter(start.double())
    rate = float(2 / (H.double().max() + H.double().min()))
    optimizer = optimizer_named("sgd").load()([x], lr=rate)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * (H.double() * x * x).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), start.double() * (1 - rate * H.double()) ** 200)


# Descent takes 9,559 steps. Over four problems xmat took 129 to 134, kron 584 to 830, lbfgs 17 or 18: each is asked for
# half the gain that it had at worst.
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize(("name", "lr", "gain"), [("xmat", 0.3, 30), ("kron", 0.3, 5), ("lbfgs", 1.0, 200)])
def test_preconditioning_takes_a_fraction_of_descents_best(name: str, lr: float, gain: int) -> None:
    most = descents_best() // gain
    assert steps_to_a_millionth(name, lr, most + 1) <= most


def test_differences_estimate_the_gradient() -> None:
    """On a quadratic the central difference is exact, so many probes give the gradient."""
    from speclock.optimizers.zeroth_order import ZerothOrder

    x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = ZerothOrder([x], lr=1.0, epsilon=1e-3, probes=4000)
    start = x.detach().clone()
    optimizer.step(lambda: float(0.5 * (x.detach() ** 2).sum()))
    # E[zzᵀ]g = g, with a spread of |g|/√probes.
    torch.testing.assert_close(start - x.detach(), start, rtol=0, atol=0.2)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match=r"pip install 'speclock\[attacks\]'"):
        optimizer_named("lion").load()


def test_naming_an_optimizer_costs_no_torch() -> None:
    code = (
        "import sys, speclock.recipe; speclock.recipe.Recipe(optimizer='soap'); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"


def test_every_optimizer_loads_and_says_what_it_is() -> None:
    for name, optimizer in OPTIMIZERS.items():
        assert issubclass(optimizer.load(), torch.optim.Optimizer), name
        assert optimizer.about


def test_muon_computes_in_fp32_where_there_is_no_bf16_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from speclock.optimizers import adapters

    seen = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            seen.update(t.dtype for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    for native, narrow in ((False, False), (True, True)):
        monkeypatch.setattr(adapters, "has_bf16", lambda native=native: native)
        weight = torch.nn.Parameter(torch.eye(8))
        weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        optimizer = optimizer_named("muon").load()([weight], lr=0.1)
        seen.clear()
        with Seen():
            optimizer.step()
        assert (torch.bfloat16 in seen) == narrow
        # Orthogonal, as far as Newton–Schulz goes.
        moved = torch.linalg.svdvals((torch.eye(8) - weight.detach()) / 0.1)
        assert moved.max() / moved.min() < 1.5


def test_muon_orthogonalises_the_rows_that_have_a_gradient_as_it_would_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from speclock.optimizers import adapters

    sizes = []
    newton_schulz = adapters._newton_schulz
    monkeypatch.setattr(adapters, "has_bf16", lambda: False)
    monkeypatch.setattr(
        adapters, "_newton_schulz", lambda G, *a: sizes.append(len(G)) or newton_schulz(G, *a)
    )
    gradient = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    gradient[4:] = 0
    found, whole = (f(gradient, 5) for f in (adapters._of_rows_that_moved, adapters._without_bf16))
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-3)
    assert sizes == [4, 40]
    assert not adapters._of_rows_that_moved(torch.zeros(40, 6), 5).any()
