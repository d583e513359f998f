"""Figure 3: a locked encoder trained at learning rates over six decades."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.experiments.base import Row
from speclock.experiments.claims import Claim, curvature, trained_no_more, utility, window
from speclock.experiments.settings import Other, Printed
from speclock.experiments.table1_text import LEARNT, SMALL, SMOKE, TextModel, others

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNS = (1e-6, 1e-3)
"""Between these the paper's base learns."""
RATES = tuple(
    Printed(optimizer="adamw", lr=lr, middle=1e-4, weight_decay=0.01)
    for lr in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
)


def _column(name: str, size: str) -> tuple[Other, ...]:
    # The paper draws curves, and has no numbers.
    return tuple(other for other in others(size) if other.column == name)


@dataclass(frozen=True, kw_only=True)
class Figure3(TextModel):
    """Appendix B.2: Table 1's encoder and RTE, three epochs at each rate."""

    model: str = "minilm"
    instead_of: str | None = "DeBERTa-v3-xsmall"
    utility: tuple[float, float] = (0.90, 0.90)
    others: tuple[Other, ...] = _column("RTE", "@5000")
    attacks: tuple[Printed, ...] = RATES

    name: ClassVar[str] = "figure3"
    title: ClassVar[str] = "A locked encoder at every learning rate"
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {**SMOKE, "attacks": RATES[:2]},
        # RTE takes two thousand pairs to be learnt, hours at six rates. The same model is searched on the same task,
        # and meets our locks, in Table 1.
        "small": {
            **SMALL,
            "our_locks": (),
            "others": tuple(replace(other, searched=False) for other in _column(*LEARNT, "@400/731")),
        },
        "paper": {},
    }

    def claims(self, rows: list[Row]) -> list[Claim]:
        other = self.others[0]
        steps = self.papers_steps.get(other.column)
        learns = window(rows, other.column, LEARNS, steps)
        locked = trained_no_more(rows, other.column, papers_steps=steps)
        return [*utility(rows), *curvature(rows), learns, *locked]

    def draw(self, rows: list[Row]) -> Figure:
        """The last step's score by learning rate, base and locked."""
        from matplotlib.figure import Figure as Canvas

        from speclock.report.plots import COLORS

        figure = Canvas(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for target, marker in (("base", "s"), ("locked", "o")):
            every = [r for r in rows if r["block"] == "as printed" and r["target"] == target]
            found = [r for r in every if r["diverged"] < r["runs"]]
            if gone := [r["lr"] for r in every if r["diverged"] == r["runs"]]:
                axes.plot(
                    gone, [0.02] * len(gone), "x", color=COLORS[target], ms=5, label=f"{target}, diverged"
                )
            if not found:
                continue
            lows, highs = zip(*(r["ci"] or (r["measured"], r["measured"]) for r in found), strict=True)
            scores, rates = [r["measured"] for r in found], [r["lr"] for r in found]
            axes.plot(rates, scores, marker=marker, color=COLORS[target], lw=1, ms=5, label=target)
            axes.fill_between(rates, lows, highs, color=COLORS[target], alpha=0.15, lw=0)
        for r in rows:
            if r["block"] == "searched" and r["lock"] == self.lock and r["target"] == "locked":
                dotted, dashed = (0, (1, 2)), (0, (4, 2))
                axes.axhline(
                    r["measured"], color=COLORS["locked"], lw=0.8, ls=dotted, label="locked, searched"
                )
                axes.axhline(r["floor"], color=COLORS["muted"], lw=0.8, ls=dashed, label="floor")
        metric = "F1" if self.others[0].column == "QQP" else "accuracy"
        axes.set(
            xscale="log", xlabel="learning rate", ylabel=f"{self.others[0].column}, {metric}", ylim=(0, 1)
        )
        axes.legend(frameon=False, fontsize=8)
        return figure
