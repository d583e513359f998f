"""What an attacker has without a network for next-token tasks: n-grams of bytes, and choices by their words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from speclock.audits.classical import overlaps, words_of
from speclock.tasks.base import Examples, Split, Task
from speclock.tasks.causal_lm import CausalLM, MultipleChoice, Row, answers_of, words

_ORDERS = (3, 5, 8)
"""Bytes of context that are tried."""


@dataclass(frozen=True)
class NGrams:
    """Byte n-grams of every order up to one, interpolated [Witten & Bell 1991, method C], down to 1/256."""

    order: int
    counts: dict[bytes, dict[int, int]] = field(repr=False)
    """How often each byte followed each context."""

    @classmethod
    def of(cls, texts: Iterable[bytes], order: int) -> NGrams:
        counts: dict[bytes, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for text in texts:
            for at, byte in enumerate(text):
                for length in range(min(order, at) + 1):
                    counts[text[at - length : at]][byte] += 1
        return cls(order, counts)

    def nats(self, before: bytes, text: bytes) -> float:
        """Minus the log-likelihood of ``text`` behind ``before``."""
        whole, total = before + text, 0.0
        for at in range(len(before), len(whole)):
            likely = 1 / 256
            for length in range(min(self.order, at) + 1):
                if (found := self.counts.get(whole[at - length : at])) is None:
                    break
                seen, kinds = sum(found.values()), len(found)
                likely = (found.get(whole[at], 0) + kinds * likely) / (seen + kinds)
            total -= math.log(likely)
        return total


@dataclass(frozen=True)
class Continued:
    """The n-grams of a task's training split."""

    task: CausalLM = field(repr=False)
    model: NGrams

    @property
    def name(self) -> str:
        return f"n-grams of up to {self.model.order} bytes"

    def answers(self, split: Split = "test", task: Task | None = None) -> Int[np.ndarray, " n"]:
        examples = (task or self.task).part(split)
        return answers_of(_nats(self.model, examples), examples.labels)


def _nats(model: NGrams, examples: Examples) -> np.ndarray:
    return np.array([model.nats(before[-model.order :], text) for before, text in _read(examples)])


def _texts(examples: Examples) -> list[bytes]:
    return [before + text for before, text in _read(examples)]


def _read(examples: Examples) -> list[tuple[bytes, bytes]]:
    """What stands before each completion, and the completion."""
    rows = (Row(*row) for row in examples.inputs)
    return [(words(row.prompt).encode(), row.completion.encode()) for row in rows]


@dataclass(frozen=True)
class Chosen:
    """Which of a question's choices looks right: logistic regression on the words of both and on what they share."""

    task: MultipleChoice = field(repr=False)
    pipeline: Any = field(repr=False)
    name: str = "TF-IDF of question and choice, logistic regression"

    def answers(self, split: Split = "test", task: Task | None = None) -> Int[np.ndarray, " n"]:
        examples = (task or self.task).part(split)
        sure = self.pipeline.predict_proba(_pairs(examples))[:, 1]
        ends = np.cumsum([len(options) for _, options in examples.inputs])[:-1]
        return np.array([int(scores.argmax()) for scores in np.split(sure, ends)])


def _pairs(examples: Examples) -> np.ndarray:
    pairs = [(prompt, option) for prompt, options in examples.inputs for option in options]
    rows = np.empty(len(pairs), dtype=object)
    rows[:] = pairs
    return rows


def continued(task: CausalLM, seed: int = 0) -> Continued | Chosen:
    """The classical model of a next-token task's training split; of n-grams the order that a fifth of it likes best."""
    if isinstance(task, MultipleChoice):
        return _chosen(task)
    rows = np.random.default_rng(seed).permutation(len(task.train))
    held, rest = (task.train.take(part) for part in np.split(rows, [max(1, len(rows) // 5)]))
    orders: Sequence[int] = _ORDERS if len(rest) else _ORDERS[:1]
    best = min(orders, key=lambda order: _nats(NGrams.of(_texts(rest), order), held).sum())
    return Continued(task, NGrams.of(_texts(task.train), best))


def _chosen(task: MultipleChoice) -> Chosen:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer

    right = [
        int(i == label)
        for (_, options), label in zip(task.train.inputs, task.train.labels, strict=True)
        for i in range(len(options))
    ]
    features = make_union(words_of(0), words_of(1), FunctionTransformer(overlaps))
    pipeline = make_pipeline(features, LogisticRegression(C=10.0, max_iter=300))
    return Chosen(task, pipeline.fit(_pairs(task.train), right))
