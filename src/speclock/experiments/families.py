"""Locks of different strength on one base each: what the prediction is calibrated on and held against."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from speclock import tasks
from speclock.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and the locks of it that are measured."""

    name: str
    model: str
    retain: str
    attack: str
    max_length: int = 128
    training: dict[str, Any]
    """How the base is made."""
    locks: tuple[tuple[str, dict[str, Any]], ...]
    """A random half, drawn by seed, calibrates; the others are held out."""
    fresh: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Held out too, and made after the form of the laws was settled on; counted after ``locks``."""
    rates: dict[str, tuple[float, ...]]
    """Learning rates of the race that finds the slowdown: for SGD in multiples of 2/λ_max, for Adam as they are,
    since what is stable for it does not follow the curvature."""
    steps: int
    """Budget on the base; the target is 90% of the best gain over chance within it."""
    patience: float
    """A locked model's budget, in multiples of the steps that the base takes to the target."""
    every: int
    """Steps between two looks at the score."""
    repeats: int
    """Seeds of the race."""
    stable_for: int
    """Steps that a stable rate must survive."""
    samples: int = 64

    @cached_property
    def retain_task(self) -> Task:
        return tasks.load(self.retain, tasks.Reading(max_length=self.max_length))

    @cached_property
    def attack_task(self) -> Task:
        return tasks.load(self.attack, tasks.Reading(max_length=self.max_length))

    @property
    def all_locks(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Every lock that is measured, the fresh ones last."""
        return self.locks + self.fresh

    def label(self, number: int) -> str:
        """A lock, counted from 1, in a few words.

        >>> DIGITS.label(9)
        'specdef, α 0.9, k 1, epochs 4'
        """
        name, settings = self.all_locks[number - 1]
        length = next(f"{unit} {settings[unit]}" for unit in ("epochs", "steps") if unit in settings)
        return f"{name}, α {settings['alpha']:g}, k {settings['top_k']}, {length}"

    def held_out(self, seed: int) -> set[int]:
        """Which locks, counted from 1, the laws are not fitted on."""
        numbers = range(1, len(self.locks) + 1)
        return set(random.Random(seed).sample(numbers, len(numbers) // 2)) | self.numbers_of_fresh

    @property
    def numbers_of_fresh(self) -> set[int]:
        """Those of the fresh locks."""
        return set(range(len(self.locks) + 1, len(self.all_locks) + 1))


def _specdef(alpha: float, top_k: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "specdef", {"alpha": alpha, "top_k": top_k, "max_utility_drop": 0.2, "evaluations": 4, **more}


_ON_DIGITS = {"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "retain": "task"}
_ON_POSTS = {"lr": 2e-4, "max_utility_drop": 0.1}
_TOPICS = "newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns@2000/300"
_OTHERS = "newsgroups:comp.sys.mac.hardware,rec.sport.hockey,sci.space,soc.religion.christian@320/200"

DIGITS = Family(
    name="cnn-mlp",
    model="cnn-mlp",
    retain="mnist:0,1,2,3,4@6000/1000",
    attack="mnist:5,6,7,8,9@400/400",
    training={"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "epochs": 3},
    locks=tuple(
        _specdef(alpha, top_k, epochs=epochs, **_ON_DIGITS)
        for epochs in (1, 4)
        for alpha in (0.9, 0.5, 0.2, 0.05)
        for top_k in (1, 8)
    ),
    fresh=tuple(
        _specdef(alpha, top_k, epochs=2, **_ON_DIGITS)
        for alpha in (0.7, 0.35, 0.12, 0.03)
        for top_k in (2, 4)
    ),
    rates={"sgd": (4, 2, 8, 1, 0.5, 0.25), "adam": (1e-3, 3e-3, 3e-4, 1e-2)},
    steps=120,
    patience=40,
    every=3,
    repeats=3,
    stable_for=30,
)

POSTS = Family(
    name="minilm",
    model="minilm",
    retain=_TOPICS,
    attack=_OTHERS,
    max_length=32,
    training={"optimizer": "adamw", "lr": 2e-4, "schedule": "linear", "steps": 90},
    locks=(
        _specdef(0.5, 8, steps=40, **_ON_POSTS),
        _specdef(0.02, 8, steps=40, **_ON_POSTS),
        _specdef(0.02, 2, steps=80, **_ON_POSTS),
        _specdef(0.02, 8, steps=80, **_ON_POSTS),
        _specdef(0.005, 8, steps=80, **_ON_POSTS),
        _specdef(0.001, 8, steps=80, **_ON_POSTS),
    ),
    fresh=tuple(_specdef(alpha, 4, steps=60, **_ON_POSTS) for alpha in (0.2, 0.01, 0.002)),
    rates={"sgd": (2, 4, 1, 0.5), "adam": (3e-4, 1e-3, 1e-4)},
    steps=40,
    patience=8,
    every=4,
    repeats=1,
    stable_for=20,
)

SMOKE = dataclasses.replace(
    DIGITS,
    name="smoke",
    retain="mnist:0,1,2,3,4@600/100",
    attack="mnist:5,6,7,8,9@100/100",
    locks=tuple(_specdef(alpha, 1, steps=10, **_ON_DIGITS) for alpha in (0.9, 0.5, 0.2, 0.1)),
    fresh=(_specdef(0.3, 1, steps=10, **_ON_DIGITS),),
    rates={"sgd": (4,), "adam": (3e-3,)},
    steps=18,
    patience=4,
    repeats=1,
    stable_for=4,
    samples=10,
)
