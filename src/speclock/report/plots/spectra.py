"""Singular values of every weight matrix before and after the lock."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from speclock.audits.record import Record
from speclock.numbers import finite
from speclock.report.plots.drawing import COLORS, WIDTH, Drawing, axes_at, blank, named, to_svg


@to_svg
def sigmas(record: Record, *, narrow: bool = False) -> Drawing | None:
    """σ₁ of every weight matrix before and after, in the model's order."""
    pairs = sigma_pairs(record)
    if not pairs:
        return None
    height = 270 if narrow else 340
    figure = blank(narrow, height)
    axes = axes_at(figure, 40, 12, WIDTH[narrow] - 52, height - 58)
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
    return Drawing(figure, named("spectra", narrow), words)


def sigma_pairs(record: Record) -> list[tuple[str, Any, float, float]]:
    """(name, shape, σ₁ of the base, σ₁ of the locked model) of each matrix that has both."""
    pairs = []
    for entry in record.spectra:
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
