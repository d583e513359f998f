"""Curvature of real models on real tasks, and the rates that follow from it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from speclock.curvature import dense, extreme_eigenvalues
from speclock.errors import InputError
from speclock.forecast import Objective, largest_rate_found, measure, sharpness
from speclock.models import Model, fingerprint, wrap
from speclock.models.wiring import fully_connected_end
from speclock.tasks.base import Task


@pytest.fixture(scope="module")
def tiny(digits: Task) -> Model:
    """Digits by two fully connected layers on pooled pixels: a Hessian of 194 weights."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 10)
    )
    return wrap(module, labels=digits.labels, modality="image")


def test_mini_batches_add_up_to_the_whole(tiny: Model, digits: Task) -> None:
    whole = Objective.of(tiny, digits, samples=48).hessian()
    parts = Objective.of(tiny, digits, samples=48, batch_size=20).hessian()
    assert len(parts.shares) == 3
    torch.testing.assert_close(dense(parts), dense(whole), rtol=1e-4, atol=1e-6)


def test_the_sample_is_the_same_every_time_and_the_model_is_untouched(base: Model, silhouettes: Task) -> None:
    before = fingerprint(base)
    first, second = (Objective.of(base, silhouettes, samples=16).hessian() for _ in range(2))
    v = np.ones(first.shape[0], dtype=np.float32)
    assert np.array_equal(first @ v, second @ v)
    assert fingerprint(base) == before


def test_what_is_measured_agrees_with_the_dense_hessian(tiny: Model, digits: Task) -> None:
    found = measure(tiny, digits, samples=32, per_matrix=True)
    assert found.weights == 12 * 8 + 8 + 8 * 10 + 10
    twin = dense(Objective.of(tiny, digits, samples=32).hessian()).double()
    values = torch.linalg.eigvalsh(twin)
    assert found.spectrum.lambda_max.value == pytest.approx(float(values[-1]), rel=1e-4)
    assert found.sharpness.start == found.spectrum.lambda_max
    assert found.to_dict()["sigma_max"] == pytest.approx(float(values.abs().max()), rel=1e-4)
    blocks = {row["name"]: row for row in found.matrices}
    assert set(blocks) == {"2.weight", "5.weight"}
    start = 12 * 8 + 8
    block = torch.linalg.matrix_norm(twin[start : start + 80, start : start + 80], 2)
    assert blocks["5.weight"]["block_sigma_max"] == pytest.approx(float(block), rel=1e-3)
    assert max(row["block_sigma_max"] for row in found.matrices) <= found.to_dict()["sigma_max"] * (1 + 1e-4)


def test_sharpness_settles_as_gradient_descent_does(tiny: Model, digits: Task) -> None:
    """By hand: three steps at 2/λ_max, a dense Hessian after each, the median; the model itself stays."""
    before = fingerprint(tiny)
    found = sharpness(tiny, digits, samples=32)
    assert fingerprint(tiny) == before
    objective = Objective.of(tiny, digits, samples=32)
    module = objective.model.module
    (batch,) = digits.limit(train=32).batches(tiny, "train", 32)
    tops = []
    for _ in range(3):
        module.zero_grad()
        nn.functional.cross_entropy(module(batch["pixel_values"]), batch["labels"]).backward()
        with torch.no_grad():
            for p in module.parameters():
                assert p.grad is not None
                p.sub_(p.grad, alpha=2 / found.start.value)
        tops.append(float(torch.linalg.eigvalsh(dense(objective.hessian()).double())[-1]))
    assert found.settled.value == pytest.approx(sorted(tops)[1], rel=1e-2)
    assert found.rates["sgd"] == pytest.approx(2 / found.settled.value)


def test_bounds_of_a_models_end_hold_for_all_of_it(base: Model, digits: Task) -> None:
    found = measure(base, digits, samples=32)
    sigma = abs(found.spectrum.sigma_max.value)
    assert {bound.matrix for bound in found.bounds} == {"mlp.2.weight", "mlp.4.weight", "mlp.6.weight"}
    assert 0 < max(bound.value for bound in found.bounds) <= sigma * (1 + 1e-3)


def test_the_end_of_a_model_is_found_through_dropout_and_views(tiny: Model, digits: Task) -> None:
    (batch,) = digits.limit(train=8).batches(tiny, "train", 8)
    end, entering = fully_connected_end(tiny.module, lambda module: digits.answer(module, batch))
    assert [type(m) for m in end] == [nn.Linear, nn.Tanh, nn.Linear]
    torch.testing.assert_close(end(entering), digits.logits(tiny.module.eval(), batch))


def test_the_rate_that_training_survives_is_near_what_curvature_says(base: Model, silhouettes: Task) -> None:
    """A sanity check on one model; the experiment does it on many."""
    found = sharpness(base, silhouettes, samples=64)
    tried = largest_rate_found(base, silhouettes, "sgd", found.rates["sgd"])
    assert tried.stable < tried.unstable <= 1.2 * tried.stable
    # The law is claimed to a factor of two; on a network this small and untrained for the task it may be far too low.
    assert 0.5 <= tried.rate / found.rates["sgd"] <= 10


def test_a_model_that_no_rate_trains_is_an_error(tiny: Model, digits: Task) -> None:
    blind = tiny.copy()
    for p in blind.module.parameters():
        torch.nn.init.constant_(p, math.nan)
    with pytest.raises(InputError, match=r"No learning rate down to .* stably with sgd"):
        largest_rate_found(blind, digits, "sgd", 0.1, steps=2)


def test_on_a_quadratic_the_rate_is_two_over_lambda(digits: Task) -> None:
    """A linear model near its optimum: cross-entropy there is as good as quadratic, and 2/λ is the edge."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    model = wrap(module, labels=digits.labels, modality="image")
    objective = Objective.of(model, digits, samples=64)
    weights = list(objective.model.module.parameters())
    optimizer = torch.optim.LBFGS(weights, max_iter=400, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((objective._share(batch) for batch in objective.batches), torch.zeros(()))
        loss = loss + 1e-3 * sum(w.square().sum() for w in weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    # Away from the optimum along the sharpest direction, so that there is something to descend and to overshoot.
    H = objective.hessian()
    top = extreme_eigenvalues(H, which="LA")[0].value
    assert top > 0
    tried = largest_rate_found(objective.model, digits, "sgd", 2 / top, steps=60, precision=1.05)
    assert tried.rate * top / 2 == pytest.approx(1, abs=0.35)
    assert math.isfinite(tried.unstable)
