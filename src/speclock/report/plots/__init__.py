"""The figures: a record in, an SVG string out; an empty string where the record has nothing to draw.

Each comes wide, for a desktop, and narrow, for a phone, so that its text need not shrink.
"""

from __future__ import annotations

from speclock.report.plots.curves import score_curves, sparkline
from speclock.report.plots.drawing import COLORS, RC
from speclock.report.plots.frontier import search_frontier, trade_off
from speclock.report.plots.lock import lock_curve
from speclock.report.plots.scores import best_scores
from speclock.report.plots.search import heat_range, rate_map
from speclock.report.plots.spectra import sigma_pairs, sigmas

__all__ = [
    "COLORS",
    "RC",
    "best_scores",
    "heat_range",
    "lock_curve",
    "rate_map",
    "score_curves",
    "search_frontier",
    "sigma_pairs",
    "sigmas",
    "sparkline",
    "trade_off",
]
