"""Several locks side by side: what each costs in utility against what it leaves in uplift."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, MaxNLocator

from speclock.audits.compare import Comparison
from speclock.numbers import percent, ratio
from speclock.report.plots.drawing import COLORS, WIDTH, Drawing, axes_at, blank, named, shortened, to_svg

if TYPE_CHECKING:
    from speclock.audits.tune import Frontier


@to_svg
def trade_off(comparison: Comparison, *, narrow: bool = False) -> Drawing | None:
    """Utility against uplift, one point a lock, with 95% intervals: down and to the right is better."""
    rows = [row for row in comparison.locks if row.judged]
    if not rows:
        return None
    height = 300 if narrow else 400
    figure = blank(narrow, height)
    axes = axes_at(figure, 46, 14, WIDTH[narrow] - 46 - 18, height - 14 - 52)
    for row in rows:
        x, y = row.utility_locked, row.uplift or 0.0
        axes.plot(x, y, "o", ms=8, color=COLORS["locked"], zorder=3)
        if row.utility_interval:
            axes.plot(row.utility_interval, (y, y), color=COLORS["locked"], lw=1.4, alpha=0.7)
        if row.uplift_interval:
            axes.plot((x, x), row.uplift_interval, color=COLORS["locked"], lw=1.4, alpha=0.7)
        axes.annotate(
            shortened(row.name, narrow), (x, y), xytext=(8, 6), textcoords="offset points", weight="bold"
        )
    base = rows[0].utility_base
    axes.axvline(base, color=COLORS["base"], lw=1.2, ls=(0, (4, 3)))
    axes.axhline(1, color=COLORS["muted"], lw=1.0, ls=(0, (1, 3)))
    axes.axhline(0, color=COLORS["muted"], lw=1.0, ls=(0, (1, 3)))
    axes.annotate(
        "base's utility",
        (base, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 6),
        textcoords="offset points",
        ha="right",
        color=COLORS["base"],
    )
    axes.set_xlabel("utility")
    axes.set_ylabel("uplift")
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value) if value <= 1 else ""))
    axes.grid(axis="y")
    axes.margins(0.12)
    words = "; ".join(
        f"{row.name}: utility {percent(row.utility_locked)}, uplift {ratio(row.uplift)}" for row in rows
    )
    return Drawing(figure, named("compare", narrow), f"Utility against uplift of each lock. {words}.")


@to_svg
def search_frontier(found: Frontier, *, narrow: bool = False) -> Drawing | None:
    """Every trial of a search over locks, by utility lost and uplift, and the line of those that none beats in both."""
    if not found.trials:
        return None
    height = 300 if narrow else 400
    figure = blank(narrow, height)
    axes = axes_at(figure, 46, 14, WIDTH[narrow] - 46 - 18, height - 14 - 52)
    by_number = {trial.number: trial for trial in found.trials}
    for trial in found.trials:
        audited = trial.status == "audited"
        color = COLORS["locked"] if audited else COLORS["muted"]
        axes.plot(trial.drop, trial.uplift, "o" if audited else "x", ms=6, color=color, alpha=0.8, zorder=3)
    line = [by_number[number] for number in found.best]
    axes.step([t.drop for t in line], [t.uplift for t in line], where="post", color=COLORS["locked"], lw=1.4)
    if found.chosen is not None:
        best = by_number[found.chosen]
        axes.plot(best.drop, best.uplift, "o", ms=11, mfc="none", color=COLORS["base"], mew=2, zorder=4)
        axes.annotate(
            shortened(best.lock.replace(",", ", "), narrow),
            (best.drop, best.uplift),
            xytext=(10, 8),
            textcoords="offset points",
            weight="bold",
        )
    axes.axvline(found.max_utility_drop, color=COLORS["base"], lw=1.2, ls=(0, (4, 3)))
    # Uplift 0 is the floor, 1 what the unlocked base gives.
    for level in (0, 1):
        axes.axhline(level, color=COLORS["muted"], lw=1.0, ls=(0, (1, 3)))
    axes.set_xlabel("utility lost")
    axes.set_ylabel("uplift (0: the floor)")
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.2g}%"))
    axes.grid(axis="y")
    axes.margins(0.12)
    words = "; ".join(f"{t.lock}: lost {100 * t.drop:.1f}%, uplift {ratio(t.uplift)}" for t in line)
    return Drawing(
        figure, named("frontier", narrow), f"Utility lost against uplift of each lock tried. {words}."
    )
