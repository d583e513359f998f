"""Averaging siblings: what cancels, and what is refused."""

from __future__ import annotations

import pytest
import torch

from speclock import models
from speclock.attacks import ATTACKS
from speclock.attacks.base import InapplicableError, Scene
from speclock.models import Model
from speclock.tasks.base import Task


def noisy(base: Model, seed: int) -> Model:
    model = base.copy()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)
    return model


def distance(model: Model, base: Model) -> float:
    pairs = zip(model.module.parameters(), base.module.parameters(), strict=True)
    return float(torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm())


def test_noise_falls_by_the_root_of_the_number_of_releases(base: Model, digits: Task) -> None:
    releases = [noisy(base, seed) for seed in range(4)]
    model = releases[0].copy()
    ATTACKS["average"]().prepare_(model, Scene(releases[0], digits, 10, siblings=tuple(releases[1:])))
    assert distance(model, base) == pytest.approx(distance(releases[0], base) / 2, rel=0.02)


def test_a_fresh_head_is_not_averaged(base: Model, digits: Task, silhouettes: Task) -> None:
    model = base.with_head(silhouettes.labels, 0)
    head = model.module.get_submodule("mlp.6").weight.detach().clone()  # type: ignore[union-attr, operator]
    ATTACKS["average"]().prepare_(model, Scene(base, silhouettes, 10, siblings=(noisy(base, 1),)))
    assert torch.equal(model.module.get_submodule("mlp.6").weight, head)


def test_another_architecture_is_no_sibling(base: Model, digits: Task) -> None:
    other = models.wrap(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 10)))
    with pytest.raises(InapplicableError, match=r"has no cnn\.0\.weight"):
        ATTACKS["average"]().prepare_(base.copy(), Scene(base, digits, 10, siblings=(other,)))
