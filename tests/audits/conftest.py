"""A model that is trained in a blink, for tests of what an audit does and not of how well the models do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speclock import wrap
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.training import train


@pytest.fixture(scope="session")
def two_layers(digits: Task) -> Model:
    """An audit trains some forty models."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 32), nn.ReLU(), nn.Linear(32, 10))
    model = wrap(module, modality="image", labels=digits.labels)
    train(model, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=60, batch_size=32))
    return model
