"""A small real setting that the rooms above the models share: a cnn-mlp that reads digits."""

from __future__ import annotations

import pytest

from speclock import models, tasks
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.training import train


@pytest.fixture(scope="session")
def digits() -> Task:
    return tasks.load("mnist@800").limit(test=300)


@pytest.fixture(scope="session")
def silhouettes() -> Task:
    """Another ten-class task, so a fresh head."""
    return tasks.load("kmnist@400").limit(test=200)


@pytest.fixture(scope="session")
def base(digits: Task) -> Model:
    """A cnn-mlp that reads digits; never modified, which the tests of locks and attacks check."""
    model = models.load("cnn-mlp", labels=digits.labels)
    record = train(model, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=150, batch_size=32))
    assert record["score"] > 0.8
    return model
