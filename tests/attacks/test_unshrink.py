"""Undoing shrink-and-perturb: the random-matrix part against known answers, the attack on a perturbed base."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speclock import models
from speclock.attacks import ATTACKS
from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.unshrink import (
    denoised,
    estimated_share,
    marchenko_pastur_median,
    noise_level,
    optimal_shrinkage,
    told_share,
)
from speclock.models import Model
from speclock.tasks.base import Task


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_the_median_is_that_of_a_noise_matrix(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((round(600 * gamma), 600), generator=generator, dtype=torch.float64) / 600**0.5
    assert marchenko_pastur_median(gamma) == pytest.approx(
        float(torch.linalg.svdvals(noise).square().median()), rel=0.03
    )


def test_shrinkage_recovers_a_low_rank_matrix_from_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (120, 300)
    signal = 3 * torch.randn((120, 3), generator=generator) @ torch.randn((3, 300), generator=generator)
    noisy = signal + 2 * torch.randn(shape, generator=generator)
    U, sigma, Vh = torch.linalg.svd(noisy, full_matrices=False)
    level = noise_level(sigma, shape)
    assert level == pytest.approx(2, rel=0.05)
    shrunk = optimal_shrinkage(sigma, shape, level)
    assert int((shrunk > 0).sum()) == 3, "what lies below the edge is noise"
    truncated = torch.where(shrunk > 0, sigma, 0 * sigma)

    def error(values: torch.Tensor) -> float:
        return float(((U * values) @ Vh - signal).norm())

    assert error(shrunk) < error(truncated) < 0.5 * error(sigma)
    # All of the bulk is noise here, and so the two agree; with none of it noise nothing is taken away.
    torch.testing.assert_close(denoised(sigma, shape, level), shrunk)
    torch.testing.assert_close(denoised(sigma, shape, 0.0), sigma)


def perturbed(base: Model, beta: float, seed: int) -> Model:
    """UNDO's perturbation: matrices mixed with a fresh initialisation, vectors only shrunk."""
    model, fresh = base.copy(), base.scratch(seed)
    with torch.no_grad():
        for p, q in zip(model.module.parameters(), fresh.module.parameters(), strict=True):
            p.lerp_(q if p.ndim > 1 else torch.zeros_like(q), beta)
    return model


def logits(model: Model, task: Task) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([task.logits(model.module, batch) for batch in task.batches(model, "test", 64)])


@pytest.mark.parametrize("denoise", [True, False])
def test_a_perturbed_base_answers_more_like_the_base_again(base: Model, digits: Task, denoise: bool) -> None:
    wanted = logits(base, digits)
    gained = []
    for seed in (1, 2, 3):
        released = perturbed(base, 0.5, seed)
        model = released.copy()
        attack = ATTACKS["undo-shrinkage"](beta=0.5, denoise=denoise)
        attack.prepare_(model, Scene(released, digits, 10))
        near, far = (
            nn.functional.kl_div(
                logits(m, digits).log_softmax(1), wanted.softmax(1), reduction="batchmean"
            ).item()
            for m in (model, released)
        )
        gained.append(1 - near / far)
    assert min(gained) > 0.3, "a good part of the divergence from the base's answers is gone"


def test_the_share_is_read_off_the_gains_of_norms() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    model = models.wrap(module)
    assert estimated_share(model, {}) == 0
    with torch.no_grad():
        module[1].weight.mul_(0.4)
    assert estimated_share(model, {}) == pytest.approx(0.6)


def test_the_share_is_read_off_the_bulk_without_norms(base: Model, digits: Task) -> None:
    found = []
    for beta in (0.1, 0.3):
        released = perturbed(base, beta, 1)
        fresh = {
            name: float(p.detach().std())
            for name, p in base.scratch(7).module.named_parameters()
            if p.ndim > 1
        }
        found.append(estimated_share(released, fresh))
    assert found[0] == pytest.approx(0.1, abs=0.07)
    assert found[1] == pytest.approx(0.3, abs=0.07)
    with pytest.raises(InapplicableError, match="nothing seems to have been shrunk"):
        ATTACKS["undo-shrinkage"]().prepare_(base.copy(), Scene(base, digits, 10))


def test_the_share_that_a_card_names_is_taken_and_vectors_are_left(base: Model, digits: Task) -> None:
    released = base.copy()
    with torch.no_grad():
        for p, q in zip(released.module.parameters(), base.scratch(1).module.parameters(), strict=True):
            p.lerp_(q, 0.8 if p.ndim > 1 else 0.0)
    part = {"lock": "undo", "chosen_step": 9, "config": {"beta": 0.8}}
    other = {"lock": "specdef", "chosen_step": 9, "config": {"alpha": 0.5}}
    card = {"lock": "undo+specdef", "parts": [part, other]}
    model = released.copy()
    ATTACKS["undo-shrinkage"](denoise=False).prepare_(model, Scene(released, digits, 10, card=card))
    for (name, p), q in zip(model.module.named_parameters(), released.module.parameters(), strict=True):
        shrunk = p.ndim > 1 and not name.startswith("mlp.6")
        torch.testing.assert_close(p, 5 * q if shrunk else q, msg=name)
    for without in (None, other, {**part, "config": {"beta": 1.0}}, {**part, "chosen_step": 0}):
        assert told_share(without) is None
