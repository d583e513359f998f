"""What the lock card says of the lock's own training."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from speclock.audits.record import Record
from speclock.numbers import finite, percent, plain, significant
from speclock.report.plots.drawing import (
    COLORS,
    WIDTH,
    Drawing,
    axes_at,
    blank,
    lower_end,
    named,
    percent_axis,
    to_svg,
)


@to_svg
def lock_curve(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Utility and strength while the lock ran, with the step whose weights were kept."""
    card = record.locked.get("card") or {}
    rows = [[finite(value) for value in row[:3]] for row in card.get("curve") or []]
    utility = [(r[0], r[1]) for r in rows if len(r) > 1 and r[0] is not None and r[1] is not None]
    strength = [(r[0], r[2]) for r in rows if len(r) > 2 and r[0] is not None and r[2] is not None]
    panels = [(title, points) for title, points in (("utility", utility), ("strength", strength)) if points]
    if not panels:
        return None
    across = 1 if narrow else len(panels)
    block, gutter, left = (220 if narrow else 270), 56, 42
    figure = blank(narrow, block * (len(panels) if narrow else 1))
    width = (WIDTH[narrow] - gutter * (across - 1)) / across
    chosen = finite(card.get("chosen_step"))
    for i, (title, points) in enumerate(panels):
        x, y = (0, i * block) if narrow else (i * (width + gutter), 0)
        axes = axes_at(figure, x + left, y + 30, width - left - 12, block - 76)
        axes.set_xlim(0, max(step for step, _ in points) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("steps", loc="right")
        axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=COLORS["locked"], pad=10)
        values = [value for _, value in points]
        if title == "utility":
            before = finite(card.get("utility_base"))
            levels = [*values, *([before] if before is not None else [])]
            percent_axis(axes, lower_end(levels) - 0.01, max(1.0, *levels) + 0.01)
            if before is not None:
                axes.axhline(before, color=COLORS["base"], lw=1.2, ls=(0, (4, 3)))
                axes.annotate(
                    f"base {percent(before)}",
                    (1, before),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="right",
                    color=COLORS["base"],
                    weight="bold",
                )
        else:
            pad = 0.12 * (max(values) - min(values) or abs(values[0]) or 1)
            axes.set_ylim(min(values) - pad, max(values) + pad)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y")
        axes.plot(*zip(*points, strict=True), color=COLORS["locked"], lw=2.2)
        if chosen is not None:
            step, value = min(points, key=lambda point: abs(point[0] - chosen))
            last = axes.get_xlim()[1]
            axes.axvline(chosen, color=COLORS["muted"], lw=0.9, ls=(0, (1, 3)))
            axes.plot(step, value, "o", color=COLORS["locked"], ms=7, clip_on=False, zorder=4)
            label = percent(value) if title == "utility" else significant(value)
            axes.annotate(
                f"kept: step {plain(chosen)}, {label}",
                (chosen, 0),
                xycoords=("data", "axes fraction"),
                xytext=(-7 if chosen > last / 2 else 7, 8),
                textcoords="offset points",
                ha="right" if chosen > last / 2 else "left",
                color=COLORS["locked"],
                weight="bold",
            )
    kept = f"; the weights of step {plain(chosen)} were kept" if chosen is not None else ""
    return Drawing(figure, named("lock", narrow), f"Utility and strength while the lock ran{kept}.")
