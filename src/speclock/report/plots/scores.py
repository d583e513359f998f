"""The one picture: how well the attacker does on each target, and what the attacker has anyway."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from speclock.audits.record import FLOOR, Record
from speclock.numbers import finite, interval, percent
from speclock.report.plots.drawing import COLORS, WIDTH, Drawing, axes_at, blank, named, printable, to_svg
from speclock.report.runs import ORDER

WORDS = {
    "base": "the model before locking",
    "control": "the lock's training, its term off",
    "locked": "the model under audit",
    "student": "fresh, taught the base's answers",
    "released": "what it does before any attack",
    "scratch": "the architecture, freshly initialised",
    "classical": "no network at all",
    "public": "the public model it was made from",
}
"""What each target is, in a few words."""

NAMES = 218
"""Room for the names at the left, in CSS pixels; on a phone they stand over their lines."""


@to_svg
def best_scores(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Best test score of each target with its 95% interval, the floor as a line across all of them."""
    summary = record.summary
    scores = {target: finite(summary.get(f"best_{target}")) for target in ORDER}
    if scores["released"] is None:
        del scores["released"]  # of most tasks there is nothing to see before an attack
    if all(score is None for score in scores.values()):
        return None
    intervals = summary.get("intervals") or {}
    left, right = (14, 18) if narrow else (NAMES, 176)
    row_height, head, foot, gap = (46, 24, 36, 14) if narrow else (42, 26, 40, 16)
    height = head + row_height * len(scores) + gap + foot
    figure = blank(narrow, height)
    axes = axes_at(figure, left, head, WIDTH[narrow] - left - right, height - head - foot)
    bottom = row_height * len(scores) + gap
    axes.set(xlim=(0, 1), ylim=(bottom, 0))
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f}%"))
    axes.set_xlabel("score on the test split", loc="right")
    axes.grid(axis="x")
    _levels(axes, record, narrow)
    for rank, (target, score) in enumerate(scores.items()):
        y = row_height * (rank + (0.74 if narrow else 0.5)) + (gap if target in FLOOR else 0)
        bounds = intervals.get(f"best_{target}")
        _row(axes, target, score, bounds, y, narrow, _why_not(record, target))
    words = "; ".join(
        f"{target} {percent(score)} {interval(intervals.get(f'best_{target}'))}".rstrip()
        for target, score in scores.items()
        if score is not None
    )
    return Drawing(
        figure,
        named("scores", narrow),
        f"Best test score of the attacker on each target: {words}. {floor_words(record)}",
    )


def floor_words(record: Record) -> str:
    """The floor, and who sets it."""
    floor = percent(record.summary.get("floor"))
    return f"The floor is {floor}, set by {record.summary.get('floor_by') or 'chance'}."


def _levels(axes: Axes, record: Record, narrow: bool) -> None:
    """The floor, named over the chart, and chance."""
    chance, floor = (finite(record.summary.get(key)) for key in ("chance", "floor"))
    if chance is not None:
        axes.axvline(chance, color=COLORS["muted"], lw=1, ls=(0, (1, 3)))
    if floor is None:
        return
    axes.axvline(floor, color=COLORS["ink"], lw=1.5, clip_on=False)
    if narrow:  # hardly longer than the chart is wide: kept within it
        place, shift, side = min(max(floor, 0.35), 0.65), 0, "center"
    else:
        place, shift, side = floor, (-6 if floor > 0.5 else 6), "right" if floor > 0.5 else "left"
    axes.annotate(
        f"floor {percent(floor)}, set by {printable(str(record.summary.get('floor_by') or 'chance'))}",
        (place, 1),
        xycoords=("data", "axes fraction"),
        xytext=(shift, 8),
        textcoords="offset points",
        ha=side,
        weight="bold",
    )


def _row(
    axes: Axes, target: str, score: float | None, bounds: object, y: float, narrow: bool, why_not: str
) -> None:
    color, muted, known = COLORS[target], COLORS["muted"], interval(bounds)
    if narrow:
        _beside(axes, target, 0, y, (0, 14), color=color, weight="bold", ha="left")
    else:
        _beside(axes, target, 0, y, (-NAMES, 7), color=color, weight="bold", ha="left")
        _beside(axes, WORDS[target], 0, y, (-NAMES, -8), color=muted, fontsize=10, ha="left")
    if score is None:
        _beside(
            axes, why_not, 1, y, (0, 14) if narrow else (14, 0), color=muted, ha="right" if narrow else "left"
        )
        return
    axes.plot([0, score], [y, y], color=color, lw=2, alpha=0.55, solid_capstyle="butt")
    if known and isinstance(bounds, list | tuple):
        axes.plot(bounds, [y, y], color=color, lw=8, alpha=0.35, solid_capstyle="butt")
    axes.plot(score, y, "o", color=color, ms=8, clip_on=False, zorder=3)
    number, beside = ((-92, 14), (0, 14)) if narrow else ((14, 0), (70, 0))
    side = "right" if narrow else "left"
    _beside(axes, percent(score), 1, y, number, ha=side, color=color, weight="bold", fontsize=13)
    _beside(axes, known or "no interval", 1, y, beside, ha=side, color=muted, fontsize=10.5)


def _beside(axes: Axes, text: str, x: float, y: float, shift: tuple[float, float], **how: object) -> None:
    """Text at a row, from an end of the axes by CSS pixels."""
    axes.annotate(
        text,
        (x, y),
        xycoords=("axes fraction", "data"),
        xytext=shift,
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        **how,  # type: ignore[arg-type]
    )


def _why_not(record: Record, target: str) -> str:
    """What stands where a target has no score."""
    runs = sum(run.target == target for run in record.runs)
    return "no score: every run was lost" if runs else "not attacked"
