"""A class that a model is to forget, and its relearning, as tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from speclock.errors import InputError
from speclock.registry import unknown
from speclock.tasks.base import Examples, Task


def forget(task: Task, label: str) -> Task:
    """``task`` without the examples of ``label``, whose place in the head stays.

    The unlearning baseline trains on it (paper, B.4). ``beside["forgotten"]`` scores the class itself.
    """
    kept, gone = _parts(task, label)
    return replace(
        kept,
        train=_rows(kept.train, task.labels.index(label), equal=False),
        metric=task.metric,
        beside={"forgotten": gone},
    )


def relearn(task: Task, label: str) -> Task:
    """``task`` with all its training examples, scored on the test examples of ``label`` alone.

    The relearning attack. ``beside["kept"]`` scores the other classes.
    """
    kept, gone = _parts(task, label)
    return replace(gone, beside={"kept": kept}, collapses=True)


def _parts(task: Task, label: str) -> tuple[Task, Task]:
    if label not in task.labels:
        raise InputError(f"{task.name}: {unknown('label', label, list(task.labels))}")
    number = task.labels.index(label)
    task = task.divided()
    kept, gone = (
        replace(
            task,
            validation=_rows(task.part("validation"), number, equal=equal),
            test=_rows(task.test, number, equal=equal),
            metric="accuracy",
        )
        for equal in (False, True)
    )
    gone = replace(
        gone,
        # Answering always with this label would score 1; at random, this.
        at_random=1 / len(task.labels),
    )
    return kept, gone


def _rows(examples: Examples, number: int, *, equal: bool) -> Examples:
    return examples.take(np.flatnonzero((examples.labels == number) == equal))
