"""What a lock costs its users: agreement and calibration, as it is and under mild shift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from speclock import tasks
from speclock.audits.cost import BINS, calibration_error, cost
from speclock.models import Model
from speclock.tasks.augment import SHIFTS, shifted
from speclock.tasks.base import Task


def test_a_model_agrees_with_itself_and_a_broken_one_does_not(base: Model, digits: Task) -> None:
    task = digits.divided()
    same = cost(base, base.copy(), task)
    assert list(same) == ["test split", *SHIFTS["image"]]
    for row in same.values():
        assert row["agreement"] == 1
        assert row["score_base"] == row["score_locked"]
        assert row["examples"] == len(task.test)
    assert same["test split"]["score_base"] == task.score(base)
    assert same["noise"]["score_base"] > 0.5
    low, high = same["test split"]["interval_change"]
    assert -0.05 < low < 0 < high < 0.05
    other = cost(base, base.scratch(0), task)["test split"]
    assert other["agreement"] < 0.5
    assert other["interval_change"][1] < 0
    # Logits ten times as large change no answer and make it overconfident.
    sure = base.copy()
    with torch.no_grad():
        for p in sure.module.mlp[-1].parameters():
            p.mul_(10)
    bold = cost(base, sure, task)["test split"]
    assert bold["agreement"] == 1
    assert bold["calibration_locked"] > bold["calibration_base"]


def test_calibration_error_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.2, 1, 500)
    right = rng.random(500) < sure**2
    total = 0.0
    for b in range(BINS):
        rows = [
            i for i in range(500) if b / BINS <= sure[i] < (b + 1) / BINS or (b == BINS - 1 and sure[i] == 1)
        ]
        if rows:
            total += len(rows) / 500 * abs(np.mean(right[rows]) - np.mean(sure[rows]))
    assert calibration_error(sure, right) == pytest.approx(total)
    assert calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0


@pytest.mark.parametrize("kind", SHIFTS["text"])
def test_shifted_texts_are_of_the_same_words_or_nearly(kind: str) -> None:
    task = tasks.load("newsgroups:rec.autos,comp.graphics@100/60/60")
    moved = shifted(task, kind)
    assert moved.test.labels is task.test.labels or (moved.test.labels == task.test.labels).all()
    assert moved.train is task.train
    pairs = list(zip(task.test.inputs, moved.test.inputs, strict=True))
    assert sum(a != b for a, b in pairs) > 40
    for before, after in pairs:
        one, two = before.split(), after.split()
        if kind == "windows":
            assert one[len(one) - len(two) :] == two
            assert 2 * len(two) >= len(one)
        else:
            assert [sorted(w) for w in one] == [sorted(w) for w in two]
    assert list(shifted(task, kind).test.inputs) == list(moved.test.inputs)


def test_pairs_of_texts_are_shifted_each() -> None:
    task = tasks.load("newsgroups:rec.autos,comp.graphics@100/60/60")
    both = np.empty(60, dtype=object)
    for i, text in enumerate(task.test.inputs):
        both[i] = (text, text)
    moved = shifted(replace(task, test=replace(task.test, inputs=both)), "typos")
    assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in moved.test.inputs)
