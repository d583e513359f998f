"""What the lock card says of the lock's own training."""

from __future__ import annotations

import math
from typing import Any

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


def _curves(part: dict[str, Any]) -> list[tuple[str, list[tuple[float, float]]]]:
    """What the card says of a lock's path: (step, utility) and (step, strength), where there are any."""
    rows = [[finite(value) for value in row[:3]] for row in part.get("curve") or []]
    found = []
    for column, title in ((1, "utility"), (2, "strength")):
        points = [(row[0], row[column]) for row in rows if len(row) > column]
        found.append((title, [(x, y) for x, y in points if x is not None and y is not None]))
    return [(title, points) for title, points in found if points]


@to_svg
def lock_curve(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Utility and strength while each part of the lock ran, with the step whose weights were kept."""
    card = record.locked.get("card") or {}
    parts = card.get("parts") or [card]
    panels = [(part, title, points) for part in parts for title, points in _curves(part)]
    if not panels:
        return None
    across = 1 if narrow else min(2, len(panels))
    block, gutter, left = (220 if narrow else 270), 56, 42
    figure = blank(narrow, block * math.ceil(len(panels) / across))
    width = (WIDTH[narrow] - gutter * (across - 1)) / across
    for i, (part, title, points) in enumerate(panels):
        chosen = finite(part.get("chosen_step"))
        x, y = (i % across) * (width + gutter), (i // across) * block
        axes = axes_at(figure, x + left, y + 30, width - left - 12, block - 76)
        axes.set_xlim(0, max(step for step, _ in points) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("steps", loc="right")
        said = title if len(parts) == 1 else f"{part.get('lock')}: {title}"
        axes.set_title(said, loc="left", fontsize=12.5, fontweight="bold", color=COLORS["locked"], pad=10)
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
    steps = [finite(part.get("chosen_step")) for part in parts]
    steps = [step for step in steps if step is not None]
    kept = f"; the weights of step {', then '.join(map(plain, steps))} were kept" if steps else ""
    return Drawing(figure, named("lock", narrow), f"Utility and strength while the lock ran{kept}.")
