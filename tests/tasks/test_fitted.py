"""A task fitted to a head that has its labels in another order, or spells them otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from speclock.errors import InputError
from speclock.models import Model, wrap
from speclock.sources import Source
from speclock.tasks.base import Examples, Task
from speclock.tasks.forget import relearn
from speclock.tasks.image import ImageClassification
from speclock.tasks.poison import poison

from .conftest import FakeEncoder


def turned(model: Model) -> Model:
    """The same network with its outputs, and their names, in the opposite order."""
    assert model.labels is not None
    turned = replace(model.copy(), labels=model.labels[::-1])
    head = [module for module in turned.module.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
        head.bias.copy_(head.bias.flip(0))
    return turned


def toy(labels: tuple[str, ...], numbers: list[int], metric: str = "accuracy") -> Task:
    examples = Examples(np.zeros((len(numbers), 5, 5, 1), dtype=np.uint8), np.array(numbers))
    return ImageClassification("toy", examples, examples, labels, Source("file", "here"), metric=metric)


def test_a_head_in_another_order_scores_as_in_the_task_does(base: Model, digits: Task) -> None:
    other = turned(base)
    fitted = digits.fitted_to(other)
    assert fitted.labels == digits.labels[::-1]
    assert fitted.score(other) == digits.score(base) > 0.8
    batch, there = next(digits.batches(base, "test", 64)), next(fitted.batches(other, "test", 64))
    torch.testing.assert_close(fitted.loss(other.module, there), digits.loss(base.module, batch))
    assert digits.fitted_to(base).train.labels.tolist() == digits.train.labels.tolist()


def test_what_stands_beside_is_fitted_too(base: Model, digits: Task) -> None:
    other = turned(base)
    for task, beside in ((poison(digits, "3"), "clean"), (relearn(digits, "3"), "kept")):
        fitted = task.fitted_to(other)
        assert fitted.chance == task.chance
        assert fitted.score(other) == task.score(base)
        assert fitted.beside[beside].score(other) == task.beside[beside].score(base)


def test_f1_stays_of_the_same_label() -> None:
    task = toy(("no", "yes"), [0, 0, 0, 1], metric="f1")
    fitted = task.fitted_to(FakeEncoder(labels=("yes", "no")))
    assert fitted.chance == task.chance == pytest.approx(0.4)
    module = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    nn.init.zeros_(module[1].weight)
    for bias, score in (([1.0, 0.0], 0.4), ([0.0, 1.0], 0.0)):  # always yes, always no
        module[1].bias.data = torch.tensor(bias)
        model = replace(wrap(module, modality="image"), channels=1)
        assert fitted.score(model) == pytest.approx(score)


@pytest.mark.parametrize(
    ("ours", "theirs", "numbers"),
    [
        (("NEGATIVE", "positive"), ("Positive", "Negative"), [1, 0]),
        (("0", "1", "10"), ("LABEL_10", "LABEL_0", "LABEL_1"), [1, 2, 0]),
        (("a", "A"), ("A", "a"), [1, 0]),
    ],
)
def test_spellings_that_can_only_mean_each_other(
    ours: tuple[str, ...], theirs: tuple[str, ...], numbers: list[int]
) -> None:
    task = toy(ours, list(range(len(ours))))
    assert task.fits(FakeEncoder(labels=theirs))
    fitted = task.fitted_to(FakeEncoder(labels=theirs))
    assert fitted.labels == theirs
    assert fitted.train.labels.tolist() == fitted.test.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        (None, "fake has no head trained for a task."),
        (("a", "c"), "the labels of toy (a, b) do not fit the head of fake (a, c)."),
        (("a", "b", "c"), "the labels of toy (a, b) do not fit the head of fake (a, b, c)."),
        (("A", "a"), "the labels of toy (a, b) do not fit the head of fake (A, a)."),
        (
            ("LABEL_0", "LABEL_1"),
            "fake does not say what its outputs mean (LABEL_0, LABEL_1). Name them in their order, "
            "in the words of toy: --labels a,b if that is it.",
        ),
        (("LABEL_0", "LABEL_1", "LABEL_2"), "the labels of toy (a, b) do not fit the head of fake (LABEL_0,"),
    ],
)
def test_a_head_that_does_not_fit(theirs: tuple[str, ...] | None, line: str) -> None:
    assert not toy(("a", "b"), [0, 1]).fits(FakeEncoder(labels=theirs))
    with pytest.raises(InputError) as caught:
        toy(("a", "b"), [0, 1]).fitted_to(FakeEncoder(labels=theirs))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_head_that_reads_something_else() -> None:
    with pytest.raises(InputError, match="toy is made of images, but fake reads texts"):
        toy(("a", "b"), [0, 1]).fitted_to(FakeEncoder(modality="text", labels=("a", "b")))
