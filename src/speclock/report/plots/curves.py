"""Score against steps: the strongest finalist of each target, and a run's curve at the size of a word."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from speclock.audits.record import Record
from speclock.numbers import finite, percent
from speclock.report import runs as _runs
from speclock.report.plots.drawing import (
    COLORS,
    DASHES,
    WIDTH,
    Drawing,
    apart,
    axes_at,
    blank,
    lower_end,
    named,
    percent_axis,
    to_svg,
)
from speclock.report.runs import ORDER, Curve

LABELS = {False: 132, True: 112}
"""Room for the names at the right, in CSS pixels, by ``narrow``."""


@to_svg
def score_curves(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Validation score against steps of each target's strongest finalist: its mean thick and its seeds thin."""
    drawn = {target: _runs.strongest(record, target) for target in ORDER}
    curves: dict[str, list[Curve]] = {}
    for target, picked in drawn.items():
        if found := [points for run in picked if (points := _runs.curve(run))]:
            curves[target] = found
    if not curves:
        return None

    figure = blank(narrow, height := 330 if narrow else 420)
    axes = axes_at(figure, 36, 12, WIDTH[narrow] - 36 - LABELS[narrow], height - 58)
    every = [score for group in curves.values() for points in group for _, score in points]
    # Labels need not sit at a line's end: most scores flatten out, and neighbours make room.
    ends: list[tuple[float, str, str, bool]] = []
    for name, key, dash in (("target", "target", (6, 3)), ("chance", "chance", (1, 3))):
        level = finite(record.summary.get(key))
        if level is not None:
            every.append(level)
            axes.axhline(level, color=COLORS["muted"], lw=1, ls=(0, dash))
            ends.append((level, f"{name} {percent(level)}", "muted", False))
    for target, group in curves.items():
        color, middle = COLORS[target], _runs.mean(group)
        score = percent(_runs.mean_best(record, drawn[target]))
        if all(len(points) == 1 for points in group):
            # What takes no steps (a linear model, a probe) has its score from the start.
            level = sum(points[0][1] for points in group) / len(group)
            axes.axhline(level, color=color, lw=1.6, ls=DASHES[target])
            ends.append((level, f"{target} {score}", target, True))
            continue
        if len(group) > 1:
            for points in group:
                axes.plot(*zip(*points, strict=True), color=color, lw=0.9, alpha=0.4)
        if not middle:  # the seeds share no step
            continue
        axes.plot(*zip(*middle, strict=True), color=color, lw=2.4, ls=DASHES[target], solid_joinstyle="round")
        axes.plot(*middle[-1], "o", color=color, ms=5, clip_on=False)
        ends.append((middle[-1][1], f"{target} {score}", target, True))
    _step_axis(
        axes,
        [step for group in curves.values() for points in group if len(points) > 1 for step, _ in points],
    )
    percent_axis(axes, lower_end(every) - 0.02, max(1.0, *every) + 0.02)
    _label_ends(axes, ends, gap=15)
    words = "; ".join(
        f"{target} reaches {percent(_runs.mean_best(record, drawn[target]))}" for target in curves
    )
    return Drawing(
        figure,
        named("curves", narrow),
        f"Validation score against steps of each target's strongest finalist: {words}.",
    )


def _step_axis(axes: Axes, steps: list[float]) -> None:
    """Steps from the first label on, logarithmic from the first of them on: 0, 1, 2, 4, …"""
    last = max([2.0, *steps])
    first = 0.0 if min(steps, default=1.0) <= 0 else 1.0
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(first, last)
    doublings = [2.0**power for power in range(math.ceil(math.log2(last)) + 1) if 2.0**power <= last]
    axes.set_xticks([*([0.0] if first == 0 else []), *doublings[:: math.ceil(len(doublings) / 8)]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("steps after the first label", loc="right")


def _label_ends(axes: Axes, ends: list[tuple[float, str, str, bool]], gap: float) -> None:
    """Name each line at the right of the axes; (level, text, colour, bold)."""
    pixels = axes.get_window_extent().height / axes.figure.dpi * 72
    low, high = axes.get_ylim()
    scale = pixels / (high - low)
    for place, (level, text, color, bold) in zip(
        apart([level * scale for level, *_ in ends], gap), ends, strict=True
    ):
        axes.annotate(
            text,
            xy=(1, level),
            xycoords=("axes fraction", "data"),
            xytext=(9, place - level * scale),
            textcoords="offset points",
            va="center_baseline",
            color=COLORS[color],
            weight="bold" if bold else "normal",
            annotation_clip=False,
        )


def sparkline(points: Curve, last_step: float, low: float, high: float) -> str:
    """A run's curve at the size of a word, in the text's colour."""
    if not points:
        return ""
    keep = max(1, math.ceil(len(points) / 40))
    thinned = [*points[:-1:keep], points[-1]]
    span = (high - low) or 1
    places = [(2 + 68 * max(0.0, x) / (last_step or 1), 18 - 16 * (y - low) / span) for x, y in thinned]
    # A curve that broke at its first point is still there to be seen.
    places = places * 2 if len(places) == 1 else places
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<svg class="spark" viewBox="0 0 72 20" aria-hidden="true"><polyline points="{line}"/></svg>'
