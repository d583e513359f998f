"""The figures: a record in, an SVG string out; an empty string where the record has nothing to draw.

Each figure comes wide (for a desktop) and narrow (for a phone, so that its text need not shrink). Colours are
drawn as fixed hex values and then replaced by CSS variables, so that the page decides between light and dark.
"""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any, Concatenate, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from speclock.audits.record import TARGETS
from speclock.numbers import finite, percent, plain, rate, significant
from speclock.report import runs as _runs
from speclock.report.runs import Cell, Curve, Sweep

Record = dict[str, Any]
P = ParamSpec("P")

# Stand-ins for CSS variables: any value would do, as long as no two are alike.
COLORS = {
    "ink": "#1b1d22",
    "muted": "#5d6470",
    "rule": "#dcdad5",
    "paper": "#fcfbf9",
    "heat": "#1d3a5c",
    "on-heat": "#fdfdfe",
    "base": "#1f5fa8",
    "scratch": "#6a6e75",
    "control": "#946200",
    "locked": "#a3134f",
}

# A second cue beside colour.
DASHES: dict[str, Any] = {"base": "-", "scratch": (0, (1.2, 1.8)), "control": (0, (5, 2)), "locked": "-"}

RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "speclock",
    "text.parse_math": False,  # a "$" in a name is a dollar
    "font.size": 11.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": COLORS["rule"],
    "axes.labelcolor": COLORS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": COLORS["rule"],
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "hatch.linewidth": 0.9,
}

WIDTH = {False: 900, True: 328}
"""Widths in CSS pixels, by ``narrow``: the page's column, and a 360 px screen less its margins."""


UPRIGHT = 31
"""Cells narrower than this many CSS pixels have their learning rate written upwards."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure, its name (for ids) and what it says in words."""

    figure: Figure
    name: str
    words: str


def _to_svg(draw: Callable[Concatenate[Record, P], Drawing | None]) -> Callable[Concatenate[Record, P], str]:
    """Run a drawing function under our style and turn its figure into markup for an HTML page."""

    @functools.wraps(draw)
    def plot(record: Record, *args: P.args, **kwargs: P.kwargs) -> str:
        # The reader's own matplotlibrc must not change the bytes; a letter that the measuring font lacks
        # is no matter, since the browser sets the text.
        with style.context(["default", RC]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawing = draw(record, *args, **kwargs)
            return "" if drawing is None else _markup(drawing)

    return plot


def _markup(drawing: Drawing) -> str:
    out = io.BytesIO()
    FigureCanvasSVG(drawing.figure)
    drawing.figure.savefig(
        out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=True
    )
    svg = out.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r"<[^>]*>", lambda tag: _tag(tag.group(), used, drawing.name), svg)
    svg = re.sub(r">\s+<", "><", svg).replace("<defs></defs>", "")
    width, height = (round(72 * inches) for inches in drawing.figure.get_size_inches())
    head = f'<svg role="img" aria-label="{escape(drawing.words)}" viewBox="0 0 {width} {height}">'
    return head + svg[svg.index(">") + 1 :].rstrip()


def _tag(tag: str, used: set[str], name: str) -> str:
    """One tag for an HTML page: unique ids, the page's colours and font, no needless digits."""
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", tag)
    tag = re.sub(r"font: (\d+) ([\d.]+)px [^;\"]*", r"font: \1 \2px var(--sans)", tag)
    for color, value in COLORS.items():
        tag = tag.replace(value, f"var(--{color})")
    tag = re.sub(r"-?\d+\.\d{2,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag)
    return re.sub(r"\s+", " ", tag)


def _figure(narrow: bool, height: float) -> Figure:
    """A figure whose points are CSS pixels."""
    return Figure(figsize=(WIDTH[narrow] / 72, height / 72))


def _axes(figure: Figure, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
    """Axes placed in CSS pixels from the figure's top left corner."""
    full_width, full_height = (72 * inches for inches in figure.get_size_inches())
    box = (
        left / full_width,
        1 - (top + height) / full_height,
        width / full_width,
        height / full_height,
    )
    return figure.add_axes(box, **options)


def _percent_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
    axes.grid(axis="y")


def _step_axis(axes: Axes, last: float) -> None:
    axes.set_xlim(0, last or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("steps", loc="right")


def _note(axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **options: Any) -> None:
    """Text at a place in axes fractions, moved by CSS pixels."""
    axes.annotate(text, at, xycoords="axes fraction", xytext=shift, textcoords="offset points", **options)


def _floor(values: list[float]) -> float:
    """The lower end of a score axis: 0, unless everything lies in its upper part."""
    low = min(values, default=0.0)
    return 0.0 if low < 0.4 else math.floor(10 * low - 0.5) / 10


def apart(places: list[float], gap: float) -> list[float]:
    """Places moved as little as possible (least squares) until neighbours are ``gap`` apart; order is kept.

    >>> apart([0.0, 10.0, 10.0], 4.0)
    [0.0, 8.0, 12.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []  # [mean of place − rank·gap, size]: isotonic regression by pooling
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (m, n), (k, size) = blocks[-2], blocks.pop()
            blocks[-1] = [(m * n + k * size) / (n + size), n + size]
    pooled = [value for value, size in blocks for _ in range(int(size))]
    moved = [0.0] * len(places)
    for rank, i in enumerate(order):
        moved[i] = pooled[rank] + rank * gap
    return moved


# -- score against steps -------------------------------------------------------------------------------


@_to_svg
def score_curves(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Score against steps: of each target the strongest configuration, its mean thick and its seeds thin."""
    runs = record.get("runs") or []
    drawn = {target: _runs.strongest(runs, target) for target in TARGETS}
    curves: dict[str, list[Curve]] = {}
    for target, picked in drawn.items():
        if found := [points for run in picked if (points := _runs.curve(run))]:
            curves[target] = found
    if not curves:
        return None

    right, height = (106, 300) if narrow else (128, 400)
    figure = _figure(narrow, height)
    axes = _axes(figure, 36, 12, WIDTH[narrow] - 36 - right, height - 58)
    every = [score for group in curves.values() for points in group for _, score in points]
    # Labels need not sit at a line's end: most scores flatten out, and neighbours make room.
    ends: list[tuple[float, str, str, bool]] = []
    for name in ("target", "chance"):
        level = finite((record.get("summary") or {}).get(name))
        if level is not None:
            every.append(level)
            axes.axhline(
                level, color=COLORS["muted"], lw=1, ls=(0, (1, 3)) if name == "chance" else (0, (6, 3))
            )
            ends.append((level, f"{name} {percent(level)}", "muted", False))
    for target, group in curves.items():
        color, middle = COLORS[target], _runs.mean(group)
        if len(group) > 1:
            for points in group:
                axes.plot(*zip(*points, strict=True), color=color, lw=0.9, alpha=0.4)
        if not middle:  # the seeds share no step
            continue
        axes.plot(*zip(*middle, strict=True), color=color, lw=2.4, ls=DASHES[target], solid_joinstyle="round")
        axes.plot(*middle[-1], "o", color=color, ms=5, clip_on=False)
        ends.append((middle[-1][1], f"{target} {percent(_runs.mean_best(drawn[target]))}", target, True))
    _step_axis(axes, max(step for group in curves.values() for points in group for step, _ in points))
    _percent_axis(axes, _floor(every) - 0.02, max(1.0, *every) + 0.02)
    _label_ends(axes, ends, gap=15)
    words = "; ".join(f"{target} reaches {percent(_runs.mean_best(drawn[target]))}" for target in curves)
    return Drawing(
        figure, _name("curves", narrow), f"Score against steps of each target's strongest attack: {words}."
    )


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


# -- learning rate × optimizer -------------------------------------------------------------------------


@_to_svg
def sweep_map(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Best score at each learning rate and optimizer, one panel per target, all on one scale."""
    sweep = _runs.sweep(record.get("runs") or [])
    targets = [target for target in TARGETS if target in sweep.cells]
    if not targets:
        return None
    low, high = heat_range(record)
    across = 1 if narrow or len(targets) == 1 else 2
    left, row_height, gutter = 14 + 7.2 * max(len(_short(row, narrow)) for row in sweep.rows), 28, 26
    panel = (WIDTH[narrow] - gutter * (across - 1)) / across
    cell = min(64.0, (panel - left - 2) / len(sweep.columns))
    foot = 46 if cell < UPRIGHT else 34
    block = 26 + row_height * len(sweep.rows) + foot
    figure = _figure(narrow, block * math.ceil(len(targets) / across))
    tops = {}
    for i, target in enumerate(targets):
        x, y = (i % across) * (panel + gutter) + left, (i // across) * block + 26
        axes = _axes(figure, x, y, cell * len(sweep.columns), row_height * len(sweep.rows))
        _frame_map(axes, target, sweep, cell, narrow)
        if i >= len(targets) - across:
            grouped = f", {sweep.grouped}" if sweep.grouped else ""
            if sweep.left_out:
                grouped += f"; the {len(sweep.rows)} strongest of {len(sweep.rows) + sweep.left_out} attacks"
            _note(axes, f"learning rate{grouped}", (0, 0), (1, 5 - foot), color=COLORS["muted"], fontsize=10)
        cells = sweep.cells[target]
        scores = [found.score for found in cells.values() if found.score is not None]
        tops[target] = max(scores, default=None)
        for row, name in enumerate(sweep.rows):
            for column, lr in enumerate(sweep.columns):
                found = cells.get((name, lr), Cell())
                heat = 0.0 if found.score is None else (found.score - low) / (high - low)
                is_best = found.score is not None and found.score == tops[target]
                _draw_cell(axes, row, column, found, heat, is_best, cell)
    words = ", ".join(f"{target} {percent(top)}" for target, top in tops.items())
    return Drawing(figure, _name("sweep", narrow), f"Best score by learning rate and optimizer: {words}.")


def _frame_map(axes: Axes, target: str, sweep: Sweep, cell: float, narrow: bool) -> None:
    """The target's name over the panel, learning rates under it, optimizers beside it."""
    columns, rows = len(sweep.columns), len(sweep.rows)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.set_xticks(
        [column + 0.5 for column in range(columns)],
        [rate(lr) if lr is not None else "none" for lr in sweep.columns],
        rotation=90 if cell < UPRIGHT else 0,
        fontsize=10,
    )
    axes.set_yticks([row + 0.5 for row in range(rows)], [_short(row, narrow) for row in sweep.rows])
    _note(axes, target, (0, 1), (1, 8), color=COLORS[target], weight="bold", fontsize=12.5)


def heat_range(record: Record) -> tuple[float, float]:
    """The scores at the pale and the dark end of the map: chance, and the best of all."""
    scores = [score for run in record.get("runs") or [] if (score := _runs.best(run)) is not None]
    chance = finite((record.get("summary") or {}).get("chance"))
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
    if cell.diverged or cell.failed:
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


# -- spectra -------------------------------------------------------------------------------------------


@_to_svg
def spectra(record: Record, *, narrow: bool = False) -> Drawing | None:
    """σ₁ of every weight matrix before and after, in the model's order."""
    pairs = sigma_pairs(record)
    if not pairs:
        return None
    height = 270 if narrow else 340
    figure = _figure(narrow, height)
    axes = _axes(figure, 40, 12, WIDTH[narrow] - 52, height - 58)
    axes.set_yscale("log")
    dot = 5.5 if len(pairs) <= 60 else 4.2
    dot *= 0.66 if narrow else 1
    places = range(1, len(pairs) + 1)
    before, after = [pair[2] for pair in pairs], [pair[3] for pair in pairs]
    axes.vlines(places, before, after, color=COLORS["locked"], alpha=0.45, lw=1.4 if len(pairs) <= 60 else 1)
    axes.plot(places, before, "o", color=COLORS["base"], ms=dot, mew=0)
    axes.plot(places, after, "D", color=COLORS["locked"], ms=dot * 0.9, mew=0)
    values = before + after
    low, high = min(values) / 1.25, max(values) * 1.25
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}" if 1e-3 <= y < 1e6 else f"{y:.0e}"))
    axes.grid(axis="y")
    axes.set_xlim(0.2, len(pairs) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9, integer=True, min_n_ticks=1))
    axes.set_xlabel("weight matrix, in the model's order", loc="right")
    raised = sum(locked > 1.01 * base for *_, base, locked in pairs)
    words = (
        f"Largest singular value of {len(pairs)} weight matrices, base and locked; {raised} rose by over 1%."
    )
    return Drawing(figure, _name("spectra", narrow), words)


def sigma_pairs(record: Record) -> list[tuple[str, Any, float, float]]:
    """(name, shape, σ₁ of the base, σ₁ of the locked model) of each matrix that has both."""
    pairs = []
    for entry in record.get("spectra") or []:
        before, after = (finite(next(iter(entry.get(side) or []), None)) for side in ("base", "locked"))
        if before and after and before > 0 and after > 0:
            pairs.append((str(entry.get("name")), entry.get("shape"), before, after))
    return pairs


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, … where that is few enough, and powers of ten (or of more) where it is not."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in range(first, last + 1) for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 7)]


# -- the lock's own curve ------------------------------------------------------------------------------


@_to_svg
def lock_curve(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Utility and strength while the lock ran, with the step whose weights were kept."""
    card = (record.get("locked") or {}).get("card") or {}
    rows = [[finite(value) for value in row[:3]] for row in card.get("curve") or []]
    utility = [(r[0], r[1]) for r in rows if len(r) > 1 and r[0] is not None and r[1] is not None]
    strength = [(r[0], r[2]) for r in rows if len(r) > 2 and r[0] is not None and r[2] is not None]
    panels = [(title, points) for title, points in (("utility", utility), ("strength", strength)) if points]
    if not panels:
        return None
    across = 1 if narrow else len(panels)
    block, gutter, left = (220 if narrow else 270), 56, 42
    figure = _figure(narrow, block * (len(panels) if narrow else 1))
    width = (WIDTH[narrow] - gutter * (across - 1)) / across
    chosen = finite(card.get("chosen_step"))
    for i, (title, points) in enumerate(panels):
        x, y = (0, i * block) if narrow else (i * (width + gutter), 0)
        axes = _axes(figure, x + left, y + 30, width - left - 12, block - 76)
        _step_axis(axes, max(step for step, _ in points))
        axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=COLORS["locked"], pad=10)
        values = [value for _, value in points]
        if title == "utility":
            before = finite(card.get("utility_base"))
            levels = [*values, *([before] if before is not None else [])]
            _percent_axis(axes, _floor(levels) - 0.01, max(1.0, *levels) + 0.01)
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
    return Drawing(figure, _name("lock", narrow), f"Utility and strength while the lock ran{kept}.")


# -- several locks -------------------------------------------------------------------------------------


@_to_svg
def comparison(record: Record, *, narrow: bool = False) -> Drawing | None:
    """Utility against uplift, one point a lock, with 95% intervals: down and to the right is better."""
    rows = [row for row in record.get("locks") or [] if finite(row.get("uplift")) is not None]
    if not rows:
        return None
    height = 300 if narrow else 400
    figure = _figure(narrow, height)
    axes = _axes(figure, 46, 14, WIDTH[narrow] - 46 - 18, height - 14 - 52)
    for row in rows:
        x, y = row["utility_locked"], row["uplift"]
        axes.plot(x, y, "o", ms=8, color=COLORS["locked"], zorder=3)
        for low_high, across in ((row.get("utility_interval"), True), (row.get("uplift_interval"), False)):
            if low_high:
                ends = (low_high, (y, y)) if across else ((x, x), low_high)
                axes.plot(*ends, color=COLORS["locked"], lw=1.4, alpha=0.7)
        axes.annotate(
            _short(row["name"], narrow), (x, y), xytext=(8, 6), textcoords="offset points", weight="bold"
        )
    base = rows[0]["utility_base"]
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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.grid(axis="y")
    axes.margins(0.12)
    words = "; ".join(
        f"{row['name']}: utility {percent(row['utility_locked'])}, uplift {row['uplift']:.2f}" for row in rows
    )
    return Drawing(figure, _name("compare", narrow), f"Utility against uplift of each lock. {words}.")


# -- small ones ----------------------------------------------------------------------------------------


def sparkline(points: Curve, last_step: float, low: float, high: float) -> str:
    """A run's curve at the size of a word, in the text's colour; on the axes that all runs share."""
    if not points:
        return ""
    keep = max(1, math.ceil(len(points) / 40))
    thinned = [*points[:-1:keep], points[-1]]
    span = (high - low) or 1
    places = [(2 + 68 * x / (last_step or 1), 18 - 16 * (y - low) / span) for x, y in thinned]
    # A curve that broke at its first point is still there to be seen.
    places = places * 2 if len(places) == 1 else places
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<svg class="spark" viewBox="0 0 72 20" aria-hidden="true"><polyline points="{line}"/></svg>'


def _short(name: str, narrow: bool) -> str:
    """A row's name, cut to what fits beside the map; the table of runs has it in full."""
    name = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in name)).strip()
    most = 14 if narrow else 18
    return name if len(name) <= most else name[: most - 1] + "…"


def _name(figure: str, narrow: bool) -> str:
    return f"{figure}-narrow" if narrow else figure
