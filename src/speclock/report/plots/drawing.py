"""How a figure is drawn: a matplotlib figure made into markup whose colours and font are the page's.

Colours are drawn as fixed hex values and then replaced by CSS variables, so that the page decides between light
and dark.
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
from typing import Any, Concatenate, ParamSpec, TypeVar

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

R = TypeVar("R")
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
    "released": "#54708f",
    "scratch": "#6a6e75",
    "classical": "#7a5c3e",
    "public": "#6b4fa0",
    "student": "#2c7a4b",
    "control": "#946200",
    "locked": "#a3134f",
}

# A second cue beside colour.
DASHES: dict[str, Any] = {
    "base": "-",
    "locked": "-",
    "control": (0, (5, 2)),
    "student": (0, (7, 2, 1.5, 2)),
    "released": (0, (1.2, 1.2)),
    "scratch": (0, (1.2, 1.8)),
    "classical": (0, (1.2, 3)),
    "public": (0, (3, 1.5)),
}

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


@dataclass(frozen=True)
class Drawing:
    """A finished figure, its name (for ids) and what it says in words."""

    figure: Figure
    name: str
    words: str


def to_svg(draw: Callable[Concatenate[R, P], Drawing | None]) -> Callable[Concatenate[R, P], str]:
    """Run a drawing function under our style and turn its figure into markup; none gives an empty string."""

    @functools.wraps(draw)
    def plot(record: R, *args: P.args, **kwargs: P.kwargs) -> str:
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


def blank(narrow: bool, height: float) -> Figure:
    """A figure whose points are CSS pixels."""
    return Figure(figsize=(WIDTH[narrow] / 72, height / 72))


def axes_at(figure: Figure, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
    """Axes placed in CSS pixels from the figure's top left corner."""
    full_width, full_height = (72 * inches for inches in figure.get_size_inches())
    box = (
        left / full_width,
        1 - (top + height) / full_height,
        width / full_width,
        height / full_height,
    )
    return figure.add_axes(box, **options)


def percent_axis(axes: Axes, low: float, high: float) -> None:
    """The vertical axis as one of scores."""
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
    axes.grid(axis="y")


def note(axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **options: Any) -> None:
    """Text at a place in axes fractions, moved by CSS pixels."""
    axes.annotate(text, at, xycoords="axes fraction", xytext=shift, textcoords="offset points", **options)


def lower_end(values: list[float]) -> float:
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


def printable(name: str) -> str:
    """A name without what no font can set, on one line."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in name)).strip()


def shortened(name: str, narrow: bool) -> str:
    """A row's name, cut to what fits beside a figure; the page's tables have it in full."""
    name = printable(name)
    most = 14 if narrow else 18
    return name if len(name) <= most else name[: most - 1] + "…"


def named(figure: str, narrow: bool) -> str:
    """What a figure's ids begin with."""
    return f"{figure}-narrow" if narrow else figure
