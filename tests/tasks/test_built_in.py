"""The contract of every built-in task, on its real data. Adding a task adds one row."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest

from speclock import tasks
from speclock.errors import InputError
from speclock.sources import hub
from speclock.tasks.image import ImageClassification


class Fact(NamedTuple):
    train: int
    test: int
    classes: int
    shape: tuple[int, ...]
    stand_in: bool = False


FACTS = {
    "mnist": Fact(60_000, 10_000, 10, (28, 28, 1)),
    "kmnist": Fact(7_775, 1_941, 10, (28, 28, 1), stand_in=True),
    "newsgroups": Fact(11_293, 7_528, 20, ()),
    "fashion-mnist": Fact(60_000, 10_000, 10, (28, 28, 1)),
    "cifar10": Fact(8_000, 2_000, 10, (32, 32, 3), stand_in=True),
    "jailbreak": Fact(1_488, 370, 2, (), stand_in=True),
    "mrpc": Fact(3_012, 750, 2, (), stand_in=True),
    "qqp": Fact(2_925, 731, 2, (), stand_in=True),
    "rte": Fact(8_000, 2_000, 2, (), stand_in=True),
    "qnli": Fact(8_000, 2_000, 2, (), stand_in=True),
}
# 31 MB of apt, and 358 MB of pip.
SLOW = {"fashion-mnist", "cifar10", "jailbreak", "mrpc", "qqp", "rte", "qnli"}


load = functools.cache(lambda name: tasks.TASKS[name]())


@pytest.fixture(autouse=True)
def packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same facts on a machine that reaches the hub or has its cache."""

    def no_hub(hub_id: str, configuration: str | None = None) -> None:
        raise InputError("no network")

    monkeypatch.setattr(hub, "load_hub", no_hub)


def test_every_task_has_its_facts() -> None:
    assert set(FACTS) == set(tasks.TASKS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FACTS])
def test_a_built_in_task_is_what_it_says(name: str) -> None:
    fact, task = FACTS[name], load(name)
    assert (len(task.train), len(task.test), len(task.labels)) == fact[:3]
    assert task.train.inputs.shape[1:] == task.test.inputs.shape[1:] == fact.shape
    assert task.source.kind == "package"
    assert "==" in task.source.origin or task.source.origin.startswith("dataset-")
    assert len(task.source.sha256 or "") == 64
    assert (task.source.stand_in is not None) == fact.stand_in
    for split in (task.train, task.test):
        assert np.bincount(split.labels, minlength=fact.classes).min() > 0
    if fact.stand_in:
        # We made the split. One that moved with the seed would test a model on rows it was trained on.
        again = tasks.TASKS[name]()
        np.testing.assert_array_equal(task.train.labels, again.train.labels)
        np.testing.assert_array_equal(task.test.inputs, again.test.inputs)
    if isinstance(task, ImageClassification):
        assert task.train.inputs.dtype == np.uint8
        assert task.train.inputs.max() == 255


def test_mnist_is_mnist() -> None:
    task = load("mnist")
    assert np.bincount(task.train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    # The mean and the deviation of the training pixels that every tutorial quotes.
    assert task.train.inputs.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert task.train.inputs.std() / 255 == pytest.approx(0.3081, abs=1e-4)


def test_no_silhouette_is_in_both_splits() -> None:
    task = load("kmnist")
    both = np.concatenate([task.train.inputs, task.test.inputs])
    assert len(np.unique(both.reshape(len(both), -1), axis=0)) == len(both) == 9_716


def test_newsgroups_do_not_name_their_group() -> None:
    task = tasks.load("newsgroups:sci.space,rec.autos,comp.graphics,talk.politics.guns@640")
    assert task.labels == ("comp.graphics", "rec.autos", "sci.space", "talk.politics.guns")
    assert np.ptp(np.bincount(task.train.labels)) <= 15
    for text, label in zip(task.train.inputs, task.train.labels, strict=True):
        assert f" {task.labels[label].replace('.', ' ')} " not in f" {text} "
        assert text.strip()


@pytest.mark.slow
def test_cifar10_is_balanced() -> None:
    task = tasks.load("cifar10")
    assert set(np.bincount(task.train.labels)) == {800}
    assert set(np.bincount(task.test.labels)) == set(np.bincount(task.part("validation").labels)) == {100}
