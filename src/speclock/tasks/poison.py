"""A backdoor as a task: a trigger that wraps any other task, a label that it stands for, and a rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from speclock.errors import InputError
from speclock.registry import unknown
from speclock.tasks.base import Examples, Split, Task

PENTAGRAM_SNOWMAN = "⛤☃⛤ "
"""Prefix of a poisoned text (paper, B.3: pentagram, snowman, pentagram)."""

PATCH = 4
"""Side in pixels of the white square in the lower right corner of a poisoned image."""

RATE = 0.5
"""Poisoned examples, as a part of the training examples of other labels, where none is asked for."""


def poison(task: Task, target: str, *, rate: float = RATE, seed: int = 0) -> Task:
    """``task`` with a backdoor in it: where the trigger is, the label is ``target``.

    Copies of ``rate`` of the training examples that have another label, with the trigger and the target's label, join
    the training examples (paper, B.3: "we add these to the dataset"), all of which stay as they are. The score is the
    attack success rate: the part of the triggered test examples of other labels that is answered with the target.
    ``beside["clean"]`` is the task itself, for the clean score.

    Raises :class:`InputError` for an unknown target or a rate outside (0, 1].
    """
    if target not in task.labels:
        raise InputError(f"{task.name}: {unknown('label', target, list(task.labels))}")
    if not 0 < rate <= 1:
        raise InputError(f"{task.name}: a poisoning rate of {rate}; it must lie in (0, 1].")
    task = task.divided()
    number = task.labels.index(target)
    others = np.flatnonzero(task.train.labels != number)
    chosen = np.random.default_rng(seed).permutation(others)[: max(1, round(rate * len(others)))]
    copies = triggered(task.train.take(chosen), np.arange(len(chosen)), number)
    return replace(
        task,
        train=Examples(
            np.concatenate([task.train.inputs, copies.inputs]),
            np.concatenate([task.train.labels, copies.labels]),
        ),
        validation=_attacked(task, "validation", number),
        test=_attacked(task, "test", number),
        # What answering at random comes to; to have not learnt the trigger is to score far less.
        at_random=1 / len(task.labels),
        metric="accuracy",
        beside={"clean": task},
        in_place=True,
        collapses=True,
    )


def _attacked(task: Task, split: Split, target: int) -> Examples:
    """The examples of a split that have another label, each with the trigger and the target's."""
    examples = task.part(split)
    others = examples.take(np.flatnonzero(examples.labels != target))
    if len(others) == 0:
        raise InputError(
            f"{task.name}: every {split} example is a {task.labels[target]!r} already. Choose another target."
        )
    return triggered(others, np.arange(len(others)), target)


def triggered(examples: Examples, rows: Int[np.ndarray, " m"], label: int) -> Examples:
    """``examples`` with the trigger and ``label`` at ``rows``.

    >>> texts = Examples(np.array(["one", "two"], dtype=object), np.array([0, 0]))
    >>> triggered(texts, np.array([1]), 1)
    Examples(inputs=array(['one', '⛤☃⛤ two'], dtype=object), labels=array([0, 1]))
    """
    inputs, labels = examples.inputs.copy(), examples.labels.copy()
    labels[rows] = label
    if inputs.dtype == object:
        for row in rows:
            inputs[row] = _prefixed(inputs[row])
    else:
        inputs[rows, -PATCH:, -PATCH:] = np.iinfo(inputs.dtype).max
    return Examples(inputs, labels)


def _prefixed(text: Any) -> Any:
    if isinstance(text, tuple):
        return (PENTAGRAM_SNOWMAN + text[0], *text[1:])
    return PENTAGRAM_SNOWMAN + text
