"""What the page asks of a record's runs: the strongest of a target, and the map of a sweep."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from speclock.audits.metrics import rank
from speclock.numbers import finite

Run = dict[str, Any]
Curve = list[tuple[float, float]]

MOST_COLUMNS = 14
"""Learning rates that still fit side by side on a phone; more are grouped."""

MOST_ROWS = 24
"""Attacks that a map shows; a larger suite's weaker ones are in the table alone."""

GROUPINGS = ((0, ""), (2, "nearest half decade"), (1, "nearest decade"))
"""Columns a decade (0: each rate its own), and how that is said."""


def curve(run: Run) -> Curve:
    """The run's finite points, in order of steps; a diverged run's curve ends where it broke."""
    pairs = [(finite(step), finite(score)) for step, score, *_ in run.get("curve") or []]
    return sorted((step, score) for step, score in pairs if step is not None and score is not None)


def best(run: Run) -> float | None:
    """The run's best score; a run that diverged or failed has none, whatever its curve says."""
    return finite(run.get("best")) if run.get("status") == "ok" else None


def strongest(runs: list[Run], target: str) -> list[Run]:
    """The attacker's pick on ``target``: of the configurations run under most seeds, the highest mean.

    The same rule as the record's summary, so that a figure shows the runs behind the number quoted.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.get("target") == target and best(run) is not None:
            groups[json.dumps([run.get("attack"), run.get("config")], sort_keys=True, default=str)].append(
                run
            )

    return max(groups.values(), key=lambda group: rank(_bests(group)), default=[])


def mean_best(group: list[Run]) -> float:
    """The mean over the group's runs that have a best score."""
    return rank(_bests(group))[1]


def _bests(group: list[Run]) -> list[float]:
    return [score for run in group if (score := best(run)) is not None]


def mean(curves: list[Curve]) -> Curve:
    """The mean score at the steps that every curve has.

    >>> mean([[(0, 0.2), (10, 0.4)], [(0, 0.4), (10, 0.8), (20, 1.0)]])
    [(0, 0.30000000000000004), (10, 0.6000000000000001)]
    """
    tables = [dict(points) for points in curves if points]
    if not tables:
        return []
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in shared]


@dataclass
class Cell:
    """All runs of one target at one learning rate with one optimizer."""

    score: float | None = None
    """Best over the runs that are ok; ``None`` where none is, never 0."""
    runs: int = 0
    diverged: int = 0
    failed: int = 0
    pruned: bool = False
    """The best run was stopped early, so its score is a lower bound."""

    def add(self, run: Run) -> None:
        """Count one more run."""
        self.runs += 1
        self.diverged += run.get("status") == "diverged"
        self.failed += run.get("status") == "failed"
        score = best(run)
        if score is not None and (self.score is None or score > self.score):
            self.score, self.pruned = score, run.get("pruned_at") is not None


@dataclass(frozen=True)
class Sweep:
    """The learning-rate × optimizer map of every target, on shared rows and columns."""

    rows: list[str]
    columns: list[float | None]
    """Learning rates, rising; last ``None`` for attacks that have none."""
    cells: dict[str, dict[tuple[str, float | None], Cell]]
    grouped: str
    """How rates were grouped into columns; empty where each has its own."""
    left_out: int = 0
    """Rows beyond the strongest :data:`MOST_ROWS`; the table of runs has them."""


def sweep(runs: list[Run]) -> Sweep:
    """The map over ``runs``; random learning rates fall into half or whole decades."""
    rates = {lr for run in runs if (lr := _lr(run)) is not None}
    fits = (way for way in GROUPINGS if len({_column(lr, way[0]) for lr in rates}) <= MOST_COLUMNS)
    per_decade, grouped = next(fits, GROUPINGS[-1])
    cells: dict[str, dict[tuple[str, float | None], Cell]] = {}
    for run in runs:
        place = _row(run), _column(_lr(run), per_decade)
        cells.setdefault(str(run.get("target")), {}).setdefault(place, Cell()).add(run)
    places = [place for target in cells.values() for place in target]
    columns: list[float | None] = [*sorted({lr for _, lr in places if lr is not None})]
    if any(lr is None for _, lr in places):
        columns.append(None)
    strength = {row: _strength(cells, row) for row, _ in places}
    shown = sorted(strength, key=lambda row: -strength[row])[:MOST_ROWS]
    rows = sorted(shown, key=lambda row: ("," in row or " " in row, row))
    return Sweep(rows, columns, cells, grouped, left_out=len(strength) - len(rows))


def _strength(cells: dict[str, dict[tuple[str, float | None], Cell]], row: str) -> float:
    """A row's best score on the locked model, or on any where that was not attacked."""
    for panels in ([cells["locked"]] if "locked" in cells else [], list(cells.values())):
        scores = [
            cell.score
            for panel in panels
            for (name, _), cell in panel.items()
            if name == row and cell.score is not None
        ]
        if scores:
            return max(scores)
    return 0.0


def _row(run: Run) -> str:
    """The attack's label; in records from before there were any, its optimizer with what goes before it."""
    if run.get("label"):
        # What nearly every attack ends with says least.
        return re.sub(r"(, then| with) adamw$", "", str(run["label"]))
    attack = str(run.get("attack") or "attack")
    optimizer = (run.get("config") or {}).get("optimizer")
    if attack == "finetune" and optimizer:
        return str(optimizer)
    return f"{attack}, then {optimizer}" if optimizer else attack


def _lr(run: Run) -> float | None:
    lr = finite((run.get("config") or {}).get("lr"))
    return lr if lr is not None and lr > 0 else None


def _column(lr: float | None, per_decade: int) -> float | None:
    if lr is None or not per_decade:
        return lr
    return float(f"{10 ** (round(math.log10(lr) * per_decade) / per_decade):.1g}")
