from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speclock.errors import InputError
from speclock.sources import Source
from speclock.tasks.base import NO_ANSWER, Examples
from speclock.tasks.image import ImageClassification

from .conftest import FakeEncoder

HERE = Source("file", "here")


def task_of(labels: np.ndarray, classes: int | None = None) -> ImageClassification:
    """One-pixel images whose value is their row number."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    examples = Examples(images, labels.astype(np.int64))
    names = tuple("abcdefgh"[: classes or labels.max() + 1])
    return ImageClassification("toy", examples, examples, names, HERE)


@st.composite
def limits(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    counts = draw(st.lists(st.integers(1, 30), min_size=2, max_size=5))
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, draw(st.integers(len(counts), len(labels))), draw(st.integers(0, 2**32 - 1))


@given(limits())
def test_a_limit_keeps_the_proportions_and_repeats_no_row(case: tuple[np.ndarray, int, int]) -> None:
    labels, size, seed = case
    limited = task_of(labels).limit(train=size, seed=seed).train
    assert len(limited) == size
    assert len(np.unique(limited.inputs)) == size
    np.testing.assert_array_equal(labels[limited.inputs.ravel()], limited.labels)
    exact = np.bincount(labels) * size / len(labels)
    kept = np.bincount(limited.labels, minlength=len(exact))
    assert kept.min() >= 1
    if exact.min() >= 1:
        assert np.abs(kept - exact).max() < 1


@given(limits())
def test_a_limit_is_set_by_its_seed(case: tuple[np.ndarray, int, int]) -> None:
    labels, size, seed = case
    first, again = (task_of(labels).limit(train=size, seed=seed).train.inputs for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("train", [80, 160, None])
def test_of_near_copies_no_two_are_on_different_sides(train: int | None) -> None:
    """120 pairs: what is chosen by holds none of which a copy is trained on, nor one that is quoted."""
    whole = task_of(np.arange(240) % 3)
    families = np.arange(240) // 2
    copies = replace(
        whole, train=replace(whole.train, groups=families), test=replace(whole.test, groups=families)
    )
    task = copies.divided(train, validation=60)
    assert len(task.train) == (train or 240)
    assert task.validation is not None
    pairs = [(task.validation, task.test)] if train is None else [(task.train, task.validation)]
    for one, other in pairs:
        assert len(one) >= 60
        assert len(other) >= 60
        assert not set(one.groups) & set(other.groups)
    again = copies.divided(train, validation=60, seed=1).validation
    assert again is not None
    np.testing.assert_array_equal(again.inputs, task.validation.inputs)


def test_validation_is_what_the_source_holds_beyond_the_attackers_examples() -> None:
    whole = task_of(np.arange(60) % 3)
    task = whole.divided(train=12, test=30, validation=24, seed=5)
    assert [len(task.part(split)) for split in ("train", "validation", "test")] == [12, 24, 30]
    assert not set(task.train.inputs.ravel()) & set(task.validation.inputs.ravel())
    assert np.bincount(task.validation.labels).tolist() == [8, 8, 8]
    np.testing.assert_array_equal(task.test.inputs, whole.divided(train=12, test=30, seed=6).test.inputs)
    assert task.divided() is task


def test_where_the_source_holds_nothing_more_validation_is_half_of_test() -> None:
    whole = task_of(np.arange(60) % 3)
    task = whole.divided()
    assert len(task.train) == 60
    halves = set(task.validation.inputs.ravel()), set(task.test.inputs.ravel())
    assert [len(half) for half in halves] == [30, 30]
    assert not halves[0] & halves[1]
    with pytest.raises(InputError, match="has no validation split yet"):
        whole.score(FakeEncoder(module=Plain()), "validation")


def test_a_digest_tells_data_apart() -> None:
    task = task_of(np.arange(60) % 3).divided(train=12)
    assert task.digest() == task_of(np.arange(60) % 3).divided(train=12).digest()
    for other in (task.limit(test=20), task.limit(train=11), task_of(np.arange(60) % 2).divided(train=12)):
        assert other.digest() != task.digest()


def test_memory_that_holds_no_whole_batch_is_scored_in_parts() -> None:
    class Small(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x)

    torch.manual_seed(0)
    whole, small = Plain(), Small()
    small.load_state_dict(whole.state_dict())
    task = task_of(np.arange(20) % 2)
    np.testing.assert_array_equal(
        task.answers(FakeEncoder(module=small)), task.answers(FakeEncoder(module=whole))
    )


def test_an_answer_that_is_not_finite_is_none_and_wrong() -> None:
    class Overflowing(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).index_fill(0, torch.tensor([1]), math.inf)

    task, encoder = task_of(np.arange(20) % 2), FakeEncoder(module=Overflowing())
    answers = task.answers(encoder)
    assert (answers == NO_ANSWER).sum() == 1
    three = task_of(np.arange(6) % 2)
    assert math.isnan(three.score(encoder)), "one of six is more than a tenth"
    many = task_of(np.arange(200) % 2)
    assert (many.answers(encoder, batch_size=200) == NO_ANSWER).sum() == 1
    assert 0 < many.score(encoder, batch_size=200) == many.measured(many.answers(encoder, batch_size=200))
    right = np.where(answers == NO_ANSWER, NO_ANSWER, task.test.labels)
    assert task.measured(right) == 1 - 1 / len(task.test)


def test_another_metric_is_another_request() -> None:
    task = task_of(np.arange(20) % 2)
    others = (task.scored_by("f1"), replace(task, at_random=0.1), replace(task, collapses=True))
    assert len({task.digest(), *(other.digest() for other in others)}) == 4


def test_kept_labels_are_numbered_anew() -> None:
    kept = task_of(np.array([0, 1, 2, 3, 2, 1])).keep(["d", "b"])
    assert kept.labels == ("b", "d")
    np.testing.assert_array_equal(kept.train.labels, [0, 1, 0])
    np.testing.assert_array_equal(kept.train.inputs.ravel(), [1, 3, 5])


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a", "z"], "toy: unknown label 'z'. Known: a, b, c."),
        (["a"], "toy: only the label 'a' is kept. Name at least two."),
    ],
)
def test_labels_that_cannot_be_kept(names: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        task_of(np.array([0, 1, 2])).keep(names)
    assert str(caught.value) == line


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean((2, 3)))


class Named(Plain):
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        assert labels is None
        return super().forward(pixel_values)


@pytest.mark.parametrize(
    "module", [Plain(), Named(), nn.Sequential(Plain())], ids=["plain", "named", "sequential"]
)
def test_a_module_gets_its_one_input_by_name_or_else_by_position(module: nn.Module) -> None:
    task = task_of(np.array([0, 1, 1]))
    (batch,) = task.batches(FakeEncoder(), "train", 8)
    plain = next(m for m in module.modules() if isinstance(m, Plain))
    torch.testing.assert_close(task.logits(module, batch), plain.head(batch["pixel_values"].mean((2, 3))))


def test_answers_that_are_not_finite_have_no_score() -> None:
    module = Plain()
    nn.init.constant_(module.head.bias, torch.nan)
    assert np.isnan(task_of(np.array([0, 0, 1])).score(FakeEncoder(module=module)))
