"""Kick and settle: how far the kick goes, and what settles."""

from __future__ import annotations

import itertools

import pytest
import torch

from speclock.attacks import ATTACKS
from speclock.attacks.base import Scene
from speclock.errors import InputError
from speclock.models import Model
from speclock.tasks.base import Task


def test_a_kick_is_so_many_times_longer_than_what_follows(base: Model, digits: Task) -> None:
    """Adam's first step moves every weight by lr, whatever the gradient: a fresh state shows in both."""
    model = base.copy()
    attack = ATTACKS["kick"](optimizer="adam", lr=1e-4, clip=None, kicks=1, kick_factor=20.0)
    states, indices = [], []
    for step in attack.trajectory(model, Scene(base, digits, 2)):
        indices.append(step.index)
        states.append(torch.cat([p.detach().flatten().clone() for p in model.module.parameters()]))
    lengths = [float((after - before).abs().max()) for before, after in itertools.pairwise(states)]
    assert indices == [0, 1, 2], "kicks are steps of the budget"
    assert lengths == pytest.approx([20e-4, 1e-4], rel=0.01)


def test_a_kick_is_larger_than_a_step() -> None:
    with pytest.raises(InputError, match="above 1"):
        ATTACKS["kick"](kick_factor=0.5)
