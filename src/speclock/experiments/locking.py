"""A model is locked, and then trained for other tasks: what Table 1 and Figure 4 have in common.

Four blocks of rows. *As printed*: the paper's one setting of each optimizer, on base and locked model. *Searched*: an
audit, in which each optimizer's rate is searched on every target and the locked model is repaired too. *Floor*: what
the attacker has without the weights. *Our locks*: the same audit of locks that the paper does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from speclock.audits.run import RULES_OF_AUDITS
from speclock.environment import environment
from speclock.experiments.audited import fell_back
from speclock.experiments.base import Experiment, Row, made_on, once
from speclock.experiments.claims import Claim, curvature, name_of, trained_no_more, tuning, utility
from speclock.experiments.place import Place
from speclock.experiments.settings import Settings
from speclock.tasks import parse

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase


@dataclass(frozen=True, kw_only=True)
class Locking(Settings, Experiment):
    """An experiment of such settings."""

    rules: ClassVar[str | None] = RULES_OF_AUDITS
    our_rates: ClassVar[tuple[str, ...]] = ()
    """Optimizers of which the paper gives no rate."""
    papers_steps: ClassVar[Mapping[str, int]] = {}
    """Of the paper's own attack, by column: one with fewer may not do what the paper's does."""

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        at = Place(self, kept, jobs)
        rows = [*at.search_for_a_lock(), *at.utilities(), *at.spectra()]
        for other in self.others:
            rows += [*at.before(other), *at.printed(other)]
            seen = self.proxy and parse(other.task).base == parse(self.proxy).base
            tuned = at.tuned if other.searched and not seen else ()
            for lock in (*self.audited_on(other), *tuned):
                # An audit of one of ours that is the model as it was would be the base's once more.
                if lock == self.lock or not fell_back(at.locked(lock).card):
                    rows += at.searched(other, lock)
        return [*rows, *at.curvatures()]

    def claims(self, rows: list[Row]) -> list[Claim]:
        columns = [
            claim
            for other in self.others
            for claim in trained_no_more(
                rows, other.column, self.our_rates, self.papers_steps.get(other.column)
            )
        ]
        return [*utility(rows), *curvature(rows), *tuning(rows), *columns]

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(2.6 * len(self.others) + 1.4, 3.4), layout="constrained")
        self.draw_in(figure, rows)
        return figure

    def draw_in(self, figure: FigureBase, rows: list[Row]) -> None:
        """For each other task, what base and locked model reach as printed and under the search, and the floor."""
        from speclock.report.plots import COLORS

        columns = [other.column for other in self.others]
        grid = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, column in zip(grid, columns, strict=True):
            found = [r for r in rows if r.get("column") == column]
            floor = next((r["floor"] for r in found if r["block"] == "searched"), None)
            names = []
            for r in found:
                if r["block"] == "as printed" and r["diverged"] < r["runs"]:
                    name = f"{r['optimizer']}, as printed"
                elif r["block"] == "searched" and r["target"] in ("base", "locked") and r["scored"]:
                    name = "searched" if r["lock"] in ("", self.lock) else f"{name_of(r['lock'])}, searched"
                else:
                    continue
                if name not in names:
                    names.append(name)
                low, high = r["ci"] or (r["measured"], r["measured"])
                x = names.index(name) + (0.12 if r["target"] == "locked" else -0.12)
                axes.errorbar(
                    [x],
                    [r["measured"]],
                    [[max(0.0, r["measured"] - low)], [max(0.0, high - r["measured"])]],
                    fmt="o" if r["target"] == "locked" else "s",
                    mfc="none" if _ruined(r) else None,
                    color=COLORS[r["target"]],
                    ms=5,
                    lw=1,
                )
            if floor is not None:
                axes.axhline(floor, color=COLORS["muted"], lw=1, ls=(0, (4, 2)))
            axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
            axes.set_title(column, fontsize=10)
            axes.set_ylim(0, 1)
        grid[0].set_ylabel("score on the test split")
        for name, marker in (("base", "s"), ("locked", "o")):
            grid[-1].plot([], [], marker, color=COLORS[name], label=name)
        if any(map(_ruined, rows)):
            grid[-1].plot([], [], "o", color=COLORS["muted"], mfc="none", label="every run collapsed")
        grid[-1].plot([], [], color=COLORS["muted"], ls=(0, (4, 2)), label="floor")
        grid[-1].legend(frameon=False, fontsize=8)


@dataclass(frozen=True, kw_only=True)
class SeveralModels(Experiment):
    """The same for each of several models; every row says which is its, and on what it was made.

    A model's rows are kept as soon as there are all of them: the models may be run on different machines.
    """

    models: tuple[Locking, ...]

    rules: ClassVar[str | None] = RULES_OF_AUDITS

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        *_, rows = self.growing(kept, jobs)
        return rows

    def growing(self, kept: Path, jobs: int = 1) -> Iterator[list[Row]]:
        rows: list[Row] = []
        for part in self.models:
            rows = [*rows, *self.rows_of(part, kept / part.model, jobs)]
            yield rows

    def unfinished(self, rows: list[Row]) -> list[str]:
        there = {row["model"] for row in rows}
        return [part.model for part in self.models if part.model not in there]

    @staticmethod
    def rows_of(part: Locking, kept: Path, jobs: int = 1) -> list[Row]:
        """Those of one model."""
        kept.mkdir(exist_ok=True)

        def made() -> list[Row]:
            where = made_on(environment())
            return [{"model": part.model, "made_on": where, **found} for found in part.rows(kept, jobs)]

        rows: list[Row] = once(kept / "rows.json", made)
        return rows

    def _there(self, rows: list[Row]) -> list[Locking]:
        """The models that have rows."""
        missing = self.unfinished(rows)
        return [part for part in self.models if part.model not in missing]

    def claims(self, rows: list[Row]) -> list[Claim]:
        return [
            replace(claim, claim=f"{part.model}: {claim.claim}")
            for part in self._there(rows)
            for claim in part.claims([found for found in rows if found["model"] == part.model])
        ]

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas

        models = self._there(rows)
        widest = max(len(part.others) for part in models)
        figure = Canvas(figsize=(2.6 * widest + 1.4, 3.6 * len(models)), layout="constrained")
        parts = figure.subfigures(len(models), squeeze=False)[:, 0]
        for part, place in zip(models, parts, strict=True):
            part.draw_in(place, [found for found in rows if found["model"] == part.model])
            place.suptitle(part.model, fontsize=10)
        return figure


def _ruined(r: Row) -> bool:
    """Whether every run of a printed attack that came to its end collapsed: its score is then no success."""
    return bool(r.get("collapsed")) and r["collapsed"] == r["runs"] - r["diverged"]
