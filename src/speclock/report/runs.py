"""What the page asks of a record's runs: the finalists behind a quoted score, and the map of a search."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import fmean

from speclock.audits.record import FLOOR, Record, RunRecord
from speclock.numbers import finite

Curve = list[tuple[float, float]]

ORDER = ("base", "control", "locked", "student", "released", "scratch", "classical", "public")
"""Targets as a reader wants them: the models of the lock, then what the attacker has anyway."""

MOST_COLUMNS = 14
"""Learning rates that still fit side by side on a phone; more are grouped."""

MOST_ROWS = 24
"""Families that a map shows; a larger suite's weaker ones are in the tables alone."""

GROUPINGS = ((0, ""), (2, "nearest half decade"), (1, "nearest decade"))
"""Columns a decade (0: each rate its own), and how that is said."""


def curve(run: RunRecord) -> Curve:
    """The run's finite points, in steps from its first label on; a diverged run's ends where it broke.

    What comes before the first label (healing, imitation) lies at negative steps.
    """
    pairs = [(finite(step), finite(score)) for step, score in run.curve]
    return sorted(
        (step - run.first_label, score) for step, score in pairs if step is not None and score is not None
    )


def best(run: RunRecord) -> float | None:
    """The best validation score that counts; a run that diverged, collapsed or failed has none."""
    return finite(run.best) if run.status == "ok" else None


def ruined(run: RunRecord) -> float | None:
    """What a collapsed run reached on the validation split by ruining the model; None for any other run."""
    return max((score for _, score in curve(run)), default=None) if run.status == "collapsed" else None


def strongest(record: Record, target: str) -> list[RunRecord]:
    """The runs, one a seed, of the attack that the summary names as the strongest on ``target``.

    Where it ran under several budgets, those that did best.
    """
    title = (record.summary.get("strongest_attacks") or {}).get(target)
    groups: dict[str, list[RunRecord]] = {}
    for run in record.runs:
        if run.target == target and run.stage == "final" and run.title == title:
            groups.setdefault(run.key, []).append(run)
    if not groups:
        return []
    return max(groups.values(), key=lambda group: mean_best(record, group) or 0.0)


def mean_best(record: Record, group: list[RunRecord]) -> float | None:
    """The mean of the best validation scores, a seed that has none counting as what the attacker has anyway."""
    found = [best(run) for run in group]
    if all(score is None for score in found):
        return None
    of_the_floor = any(run.target in FLOOR for run in group)
    anyway = None if of_the_floor else finite(record.summary.get("floor_validation"))
    instead = anyway if anyway is not None else finite(record.summary.get("chance")) or 0.0
    return fmean(instead if score is None else score for score in found)


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
    """All runs of a family's search on one target at one learning rate."""

    score: float | None = None
    """Best on the validation split over the runs that count; ``None`` where none does, never 0."""
    ruined: float | None = None
    """Best that a collapsed run reached, which does not count."""
    runs: int = 0
    diverged: int = 0
    failed: int = 0
    collapsed: int = 0
    pruned: bool = False
    """The best run was stopped early, so its score is a lower bound."""

    @property
    def lost(self) -> int:
        """Runs without a score that counts."""
        return self.diverged + self.failed + self.collapsed

    def add(self, run: RunRecord) -> None:
        """Count one more run."""
        self.runs += 1
        self.diverged += run.status == "diverged"
        self.failed += run.status == "failed"
        self.collapsed += run.status == "collapsed"
        if (reached := ruined(run)) is not None:
            self.ruined = max(reached, self.ruined or 0.0)
        score = best(run)
        if score is not None and (self.score is None or score > self.score):
            self.score, self.pruned = score, run.pruned_at is not None


@dataclass(frozen=True)
class SearchMap:
    """What the search reached at each learning rate of each family, target by target, on shared columns."""

    rows: dict[str, list[str]]
    """By target. Scratch has families of its own; the other targets share theirs."""
    columns: list[float | None]
    """Learning rates, rising; last ``None`` for attacks that have none."""
    cells: dict[str, dict[tuple[str, float | None], Cell]]
    grouped: str
    """How rates were grouped into columns; empty where each has its own."""
    left_out: int = 0
    """Families beyond the strongest :data:`MOST_ROWS`; the page's tables have them."""


def search_map(runs: list[RunRecord]) -> SearchMap:
    """The map over the search's runs; many different learning rates fall into half or whole decades."""
    runs = [run for run in runs if run.stage == "search"]
    rates = {lr for run in runs if (lr := rate_of(run)) is not None}
    fits = (way for way in GROUPINGS if len({_column(lr, way[0]) for lr in rates}) <= MOST_COLUMNS)
    per_decade, grouped = next(fits, GROUPINGS[-1])
    cells: dict[str, dict[tuple[str, float | None], Cell]] = {}
    for run in runs:
        place = short_family(run.family or run.attack), _column(rate_of(run), per_decade)
        cells.setdefault(run.target, {}).setdefault(place, Cell()).add(run)
    places = [place for target in cells.values() for place in target]
    columns: list[float | None] = [*sorted({lr for _, lr in places if lr is not None})]
    if any(lr is None for _, lr in places):
        columns.append(None)
    shared = {target: found for target, found in cells.items() if target != "scratch"}
    strength = {row: _strength(shared, row) for found in shared.values() for row, _ in found}
    shown = sorted(strength, key=lambda row: -strength[row])[:MOST_ROWS]
    rows = dict.fromkeys(shared, sorted(shown, key=_plain_first))
    if "scratch" in cells:
        rows["scratch"] = sorted({row for row, _ in cells["scratch"]}, key=_plain_first)
    return SearchMap(rows, columns, cells, grouped, left_out=len(strength) - len(shown))


def short_family(name: str) -> str:
    """A family as a map names it: what nearly every attack ends with says least.

    >>> short_family("clip, then adamw"), short_family("adamw")
    ('clip', 'adamw')
    """
    return re.sub(r"(, then| with) adamw$", "", name)


def rate_of(run: RunRecord) -> float | None:
    """The run's learning rate, where it has one."""
    lr = finite(run.config.get("lr"))
    return lr if lr is not None and lr > 0 else None


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


def _plain_first(row: str) -> tuple[bool, str]:
    return "," in row or " " in row, row


def _column(lr: float | None, per_decade: int) -> float | None:
    if lr is None or not per_decade:
        return lr
    return float(f"{10 ** (round(math.log10(lr) * per_decade) / per_decade):.1g}")
