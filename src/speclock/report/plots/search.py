"""The map of the search: what each family reached at each learning rate, target by target."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from speclock.audits.record import Record
from speclock.numbers import finite, percent, rate
from speclock.report import runs as _runs
from speclock.report.plots.drawing import (
    COLORS,
    WIDTH,
    Drawing,
    axes_at,
    blank,
    named,
    note,
    shortened,
    to_svg,
)
from speclock.report.runs import ORDER, Cell, SearchMap

UPRIGHT = 31
"""Cells narrower than this many CSS pixels have their learning rate written upwards."""


@to_svg
def rate_map(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Best validation score at each learning rate of each family, a panel per target, all on one scale."""
    found = _runs.search_map(record.runs)
    targets = [target for target in ORDER if target in found.cells]
    if not targets:
        return None
    low, high = heat_range(record)
    inert = {_runs.short_family(row["family"]) for row in record.families if row.get("inert")}
    names = [shortened(row, narrow) for rows in found.rows.values() for row in rows]
    across = 1 if narrow or len(targets) == 1 else 2
    left, row_height, gutter, head = 14 + 7.2 * max(map(len, names)), 28, 26, 26
    panel = (WIDTH[narrow] - gutter * (across - 1)) / across
    cell = min(64.0, (panel - left - 2) / len(found.columns))
    foot = 46 if cell < UPRIGHT else 34
    # Panels beside each other share a band, as tall as the taller of them.
    bands = [targets[i : i + across] for i in range(0, len(targets), across)]
    heights = [head + row_height * max(len(found.rows[target]) for target in band) + foot for band in bands]
    figure = blank(narrow, sum(heights))
    tops = {}
    for i, target in enumerate(targets):
        x, y = (i % across) * (panel + gutter) + left, sum(heights[: i // across]) + head
        rows = found.rows[target]
        axes = axes_at(figure, x, y, cell * len(found.columns), row_height * len(rows))
        _frame(axes, target, found, cell, narrow, inert)
        if i >= len(targets) - across:
            words = f", {found.grouped}" if found.grouped else ""
            if found.left_out and target != "scratch":
                words += f"; the {len(rows)} strongest of {len(rows) + found.left_out} families"
            note(axes, f"learning rate{words}", (0, 0), (1, 5 - foot), color=COLORS["muted"], fontsize=10)
        cells = found.cells[target]
        scores = [each.score for each in cells.values() if each.score is not None]
        tops[target] = max(scores, default=None)
        for row, name in enumerate(rows):
            for column, lr in enumerate(found.columns):
                held = cells.get((name, lr), Cell())
                heat = 0.0 if held.score is None else (held.score - low) / (high - low)
                is_best = held.score is not None and held.score == tops[target]
                _draw_cell(axes, row, column, held, heat, is_best, cell)
    words = ", ".join(f"{target} {percent(top)}" for target, top in tops.items())
    return Drawing(
        figure, named("search", narrow), f"Best validation score by learning rate and family: {words}."
    )


def _frame(axes: Axes, target: str, found: SearchMap, cell: float, narrow: bool, inert: set[str]) -> None:
    """The target's name over the panel, learning rates under it, families beside it, the inert ones pale."""
    columns, names = len(found.columns), found.rows[target]
    rows = len(names)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.set_xticks(
        [column + 0.5 for column in range(columns)],
        [rate(lr) if lr is not None else "none" for lr in found.columns],
        rotation=90 if cell < UPRIGHT else 0,
        fontsize=10,
    )
    axes.set_yticks([row + 0.5 for row in range(rows)], [shortened(name, narrow) for name in names])
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_color(COLORS["muted" if name in inert and target != "scratch" else "ink"])
    note(axes, target, (0, 1), (1, 8), color=COLORS[target], weight="bold", fontsize=12.5)


def heat_range(record: Record) -> tuple[float, float]:
    """The scores at the pale and the dark end of the map: chance, and the best of all."""
    scores = [
        score for run in record.runs if run.stage == "search" and (score := _runs.best(run)) is not None
    ]
    chance = finite(record.summary.get("chance"))
    low = min([*scores, *([chance] if chance is not None else [])], default=0.0)
    return low, max([*scores, low + 0.01])


def _draw_cell(
    axes: Axes, row: int, column: int, cell: Cell, heat: float, is_best: bool, width: float
) -> None:
    inset = 1.2 / width
    size = 1 - 2 * inset, 0.9
    corner = column + inset, row + 0.05
    size_of_text = 11 if width >= 30 else 9
    if not cell.runs:
        axes.text(column + 0.5, row + 0.5, "·", ha="center", va="center", color=COLORS["muted"])
        return
    if cell.score is None:
        axes.add_patch(
            Rectangle(corner, *size, facecolor="none", edgecolor=COLORS["rule"], hatch="////", lw=0.8)
        )
        word = "div" if cell.diverged else "fail" if cell.failed else "?"
        if cell.ruined is not None:
            word = f"{100 * cell.ruined:.0f}*"
        axes.add_patch(
            Rectangle((column + 0.5 - 11 / width, row + 0.26), 22 / width, 0.48, color=COLORS["paper"])
        )
        axes.text(
            column + 0.5,
            row + 0.52,
            word,
            ha="center",
            va="center_baseline",
            fontsize=min(size_of_text, 10),
            color=COLORS["muted"],
        )
        return
    opacity = 0.05 + 0.9 * min(max(heat, 0.0), 1.0)
    axes.add_patch(Rectangle(corner, *size, facecolor=COLORS["heat"], alpha=opacity, lw=0))
    ink = COLORS["on-heat" if opacity > 0.62 else "ink"]
    axes.text(
        column + 0.5,
        row + 0.53,
        f"{100 * cell.score:.0f}",
        ha="center",
        va="center_baseline",
        fontsize=size_of_text,
        color=ink,
        weight="bold" if is_best else "normal",
    )
    if cell.lost:
        # Some runs of the cell have no score: say so without hiding the one that has.
        strip = Rectangle(
            (corner[0], row + 0.79), size[0], 0.16, facecolor="none", edgecolor=ink, hatch="//////", lw=0
        )
        axes.add_patch(strip)
    if cell.pruned:
        x, y = column + 1 - inset, row + 0.05
        axes.add_patch(Polygon([(x - 8 / width, y), (x, y), (x, y + 0.27)], color=ink, lw=0))
    if is_best:
        axes.add_patch(Rectangle(corner, *size, facecolor="none", edgecolor=COLORS["ink"], lw=2, zorder=3))
