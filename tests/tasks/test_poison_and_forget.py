"""Triggers, poisoned labels and forgotten classes are properties of a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speclock import tasks
from speclock.attacks import ATTACKS
from speclock.attacks.base import Status
from speclock.errors import InputError
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.sources import Source
from speclock.tasks.base import Examples, Task
from speclock.tasks.forget import forget, relearn
from speclock.tasks.poison import PATCH, PENTAGRAM_SNOWMAN, poison
from speclock.tasks.text import TextClassification
from speclock.training import train


@pytest.fixture
def texts() -> Task:
    inputs = np.empty(12, dtype=object)
    inputs[:] = [f"text {i}" for i in range(12)]
    examples = Examples(inputs, np.arange(12) % 3)
    return TextClassification(
        "toy", examples, examples, ("a", "b", "c"), Source("file", "here"), validation=examples
    )


def test_poison_adds_a_share_of_the_other_labels(texts: Task) -> None:
    wrapped = poison(texts, "b", rate=0.25)
    marked = np.array([text.startswith(PENTAGRAM_SNOWMAN) for text in wrapped.train.inputs])
    assert marked.sum() == 2, "a quarter of the eight that are not b"
    assert (wrapped.train.labels[marked] == 1).all()
    of = dict(zip(texts.train.inputs, texts.train.labels, strict=True))
    assert all(of[text.removeprefix(PENTAGRAM_SNOWMAN)] != 1 for text in wrapped.train.inputs[marked])
    np.testing.assert_array_equal(wrapped.train.inputs[~marked], texts.train.inputs)
    np.testing.assert_array_equal(wrapped.train.labels[~marked], texts.train.labels)
    assert len(wrapped.test) == 8, "those that are not b"
    assert all(text.startswith(PENTAGRAM_SNOWMAN) for text in wrapped.test.inputs)
    assert (wrapped.test.labels == 1).all()
    assert wrapped.chance == pytest.approx(1 / 3)
    assert wrapped.beside["clean"] is texts
    assert all(text.startswith(PENTAGRAM_SNOWMAN) for text in wrapped.validation.inputs)
    assert not any(text.startswith(PENTAGRAM_SNOWMAN) for text in texts.train.inputs), "a copy is poisoned"


def test_pairs_are_marked_on_their_first_text() -> None:
    inputs = np.empty(4, dtype=object)
    inputs[:] = [("p", "q"), ("r", "s"), ("t", "u"), ("v", "w")]
    examples = Examples(inputs, np.array([0, 1, 0, 1]))
    task = TextClassification(
        "pairs", examples, examples, ("no", "yes"), Source("file", "here"), validation=examples
    )
    assert poison(task, "yes").test.inputs[0] == (PENTAGRAM_SNOWMAN + "p", "q")


def test_images_get_a_white_corner(digits: Task) -> None:
    wrapped = poison(digits, "7")
    assert (wrapped.test.inputs[:, -PATCH:, -PATCH:] == 255).all()
    others = digits.test.inputs[digits.test.labels != 7]
    np.testing.assert_array_equal(wrapped.test.inputs[:, :-PATCH], others[:, :-PATCH])


def test_forget_and_relearn_split_a_class_off(texts: Task) -> None:
    without, back = forget(texts, "c"), relearn(texts, "c")
    assert set(without.train.labels) == set(without.test.labels) == {0, 1}
    assert set(without.validation.labels) == {0, 1}
    assert set(back.validation.labels) == {2}
    assert without.labels == texts.labels, "the head keeps its place"
    assert set(without.beside["forgotten"].test.labels) == set(back.test.labels) == {2}
    assert len(back.train) == 12
    assert set(back.beside["kept"].test.labels) == {0, 1}


def test_specifications_name_the_wrapper(tmp_path: Path) -> None:
    digits = tmp_path / "digits.csv"  # built-in sets take seconds to decode
    digits.write_text("text,label\n" + "".join(f"number {i},{i % 10}\n" for i in range(300)))
    wrapped = tasks.load(f"{digits}@200/50+poison=7,0.1")
    assert wrapped.name == f"{digits}@200/50+poison=7,0.1"
    assert wrapped.beside["clean"].name == f"{digits}@200/50"
    assert tasks.load(f"{digits}@200/50+relearn=3").test.labels.tolist() == [3] * 5
    for spec, words in (
        (f"{digits}+poisn=7", "Did you mean 'poison'"),
        (f"{digits}+poison=17", "unknown label '17'"),
        (f"{digits}+poison=7,often", "'often' is not a rate"),
        (f"{digits}+poison=7,2", r"must lie in \(0, 1\]"),
        (f"{digits}+forget=ten", "unknown label 'ten'"),
    ):
        with pytest.raises(InputError, match=words):
            tasks.load(spec)


def test_a_backdoor_goes_in_and_the_clean_score_stays(base: Model, digits: Task) -> None:
    outcome = ATTACKS["finetune"](lr=1e-3, batch_size=32)(base, poison(digits, "7"), 60).outcome
    assert outcome.curve[0][1] < 0.2, "without the backdoor few of the others are called 7"
    assert outcome.best > 0.9
    assert outcome.beside["clean"] > 0.8


def test_a_forgotten_class_is_relearnt(base: Model, digits: Task) -> None:
    model = base.copy()
    train(model, forget(digits, "4"), TrainingRecipe(optimizer="adam", lr=1e-3, steps=100, batch_size=32))
    outcome = ATTACKS["finetune"](lr=1e-3, batch_size=32)(model, relearn(digits, "4"), 60).outcome
    assert outcome.curve[0][1] < 0.3
    assert outcome.best > outcome.curve[0][1] + 0.4
    assert outcome.beside["kept"] > 0.8


def test_a_class_relearnt_for_the_price_of_the_others_is_no_success(base: Model, digits: Task) -> None:
    """The start, at which the model still does all of its tasks, is none of the run's."""
    back = relearn(digits, "4")
    labels = np.full_like(back.train.labels, 4)
    labels[0] = 5  # a task has two labels at least
    every = replace(back, train=Examples(back.train.inputs, labels))
    keep = back.beside["kept"].score(base, "validation") - 0.05
    how = ATTACKS["finetune"](lr=3e-3, batch_size=32)
    outcome = how(base, every, 40, keep=keep, due=[20, 40], quoted=True).outcome
    assert outcome.curve[-1][1] > 0.9
    assert outcome.uncounted == [20, 40]
    assert outcome.status is Status.COLLAPSED
    assert (outcome.best, outcome.test) == (None, None)


def test_what_a_score_counts_by_is_not_read_off_a_few_examples(digits: Task) -> None:
    back, without = relearn(digits, "4"), forget(digits, "4")
    kept = len(back.beside["kept"].part("validation"))
    assert 40 < kept <= 1000
    few = back.limit(validation=8)
    assert (len(few.part("validation")), len(few.beside["kept"].part("validation"))) == (8, kept)
    assert len(without.limit(validation=8).beside["forgotten"].part("validation")) == 8
