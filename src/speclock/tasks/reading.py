"""How the files behind a task are read; known without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from speclock.errors import InputError
from speclock.registry import unknown

METRICS = ("accuracy", "f1")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What of its examples a task reads, and how its score is counted."""

    max_length: int = 128
    """Tokens of a text that are read."""
    text_column: str = "text"
    """Column of the texts."""
    pair_column: str = "text_pair"
    """Column of the second texts, where examples are pairs."""
    label_column: str = "label"
    """Column of the labels."""
    metric: Literal["accuracy", "f1"] | None = None
    """accuracy or f1 (of the second label); none leaves it to the task."""

    name: ClassVar[str] = "reading"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise InputError(f"max_length is {self.max_length}; a text needs at least 2 tokens.")
        if self.metric is not None and self.metric not in METRICS:
            raise InputError(unknown("metric", self.metric, list(METRICS)))
