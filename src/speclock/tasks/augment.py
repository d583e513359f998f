"""Inputs made from a task's own: for a teacher to label, which need mean nothing, and mildly shifted ones, which keep
their labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from speclock.tasks.base import Batch, Encoder, Examples, Task


class Augmented:
    """Draws made inputs; its state goes into a checkpoint, so that a resumed run draws on.

    Texts: a random window of one, or the beginning of one window and the end of another. Images: one that is moved by
    up to an eighth of its side, or the mean of two of those.
    """

    def __init__(self, task: Task, seed: int, inputs: np.ndarray | None = None) -> None:
        """``inputs`` are made into others; the task's training inputs if nothing is said."""
        self.task = task
        self.inputs = task.train.inputs if inputs is None else inputs
        self.rng = np.random.default_rng(seed)

    def batch(self, n: int, encoder: Encoder) -> Batch:
        """``n`` inputs as the encoder is fed; their labels are zeros, and mean nothing."""
        one, other = (self.inputs[rows] for rows in self.rng.integers(len(self.inputs), size=(2, n)))
        make = self._texts if self.task.modality == "text" else self._images
        # A task keeps what it has encoded, and what is made here does not come again.
        return replace(self.task).encode(Examples(make(one, other), np.zeros(n, dtype=np.int64)), encoder)

    def _texts(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        made = np.empty(len(one), dtype=object)
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if isinstance(a, tuple):
                made[i] = tuple(self._text(x, y) for x, y in zip(a, b, strict=True))
            else:
                made[i] = self._text(a, b)
        return made

    def _text(self, a: str, b: str) -> str:
        most = getattr(self.task, "max_length", 128)  # a word is a token or more
        windows = [self._window(text.split(), most) for text in (a, b)]
        if self.rng.random() < 0.5:
            return " ".join(windows[0])
        cut = self.rng.random()
        return " ".join(
            [*windows[0][: round(cut * len(windows[0]))], *windows[1][round(cut * len(windows[1])) :]]
        )

    def _window(self, words: list[str], most: int) -> list[str]:
        start = self.rng.integers(max(1, len(words) - most // 2))
        return words[start : start + most]

    def _images(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        a, b = (np.stack([self._moved(image) for image in images]) for images in (one, other))
        mixed = self.rng.random(len(a)) < 0.5
        share = np.where(mixed, self.rng.random(len(a)), 1.0).reshape(-1, 1, 1, 1)
        return (share * a + (1 - share) * b).round().astype(one.dtype)

    def _moved(self, image: np.ndarray) -> np.ndarray:
        most = max(1, min(image.shape[:2]) // 8)
        padded = np.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
        y, x = self.rng.integers(2 * most + 1, size=2)
        return padded[y : y + image.shape[0], x : x + image.shape[1]]

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


SHIFTS = {"text": ("windows", "typos"), "image": ("noise", "moved")}
"""Mild shifts of inputs, by what a task is made of."""

_TYPOS = 0.1
"""Share of words that get a typing error."""
_NOISE = 12.0
"""Standard deviation of the noise on pixels of 0…255."""


def shifted(task: Task, kind: str, seed: int = 0) -> Task:
    """The task with its test inputs shifted: labels carry over.

    Of texts another window that begins anywhere in the first half (windows), or one word in ten with two letters
    swapped (typos); of images noise of twelve levels of 255 (noise), or a movement by up to an eighth (moved).
    """
    made, rng = Augmented(task, seed), np.random.default_rng(seed)
    inputs = task.test.inputs
    if task.modality == "image":
        if kind == "moved":
            new = np.stack([made._moved(image) for image in inputs])
        else:
            new = (
                (inputs + _NOISE * rng.standard_normal(inputs.shape))
                .round()
                .clip(0, 255)
                .astype(inputs.dtype)
            )
    else:
        change = partial(_with_typos, rng=rng) if kind == "typos" else partial(_later, rng=rng)
        new = np.empty(len(inputs), dtype=object)
        for i, text in enumerate(inputs):
            new[i] = tuple(map(change, text)) if isinstance(text, tuple) else change(text)
    return replace(task, test=replace(task.test, inputs=new))


def _later(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    return " ".join(words[rng.integers(max(1, len(words) // 2)) :])


def _with_typos(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    for i in np.flatnonzero(rng.random(len(words)) < _TYPOS):
        if len(word := words[i]) > 1:
            at = rng.integers(len(word) - 1)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
