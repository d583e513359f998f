"""Figure 3: a locked encoder trained at learning rates over six decades."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.experiments.base import Row
from speclock.experiments.locking import Other, Printed
from speclock.experiments.table1_text import LEARNT, SMALL, SMOKE, TextModel, others

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = tuple(
    Printed(optimizer="adamw", lr=lr, middle=1e-4, weight_decay=0.01)
    for lr in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
)


def _column(name: str, size: str) -> tuple[Other, ...]:
    # The paper draws curves; Table 1 has the number that its locked model stays at.
    every = others(size, (0.69, 0.83, 0.85), (0.52, 0.42, 0.45))
    return tuple(other for other in every if other.column == name)


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
        # Of some hundreds of RTE's pairs nothing is learnt at any rate. Our locks meet the same task in Table 1.
        "small": {**SMALL, "our_locks": (), "others": _column(*LEARNT, "@400/731")},
        "paper": {},
    }

    def draw(self, rows: list[Row]) -> Figure:
        """The last step's score by learning rate, base and locked."""
        from matplotlib.figure import Figure as Canvas

        from speclock.report.plots import COLORS

        figure = Canvas(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for target, marker in (("base", "s"), ("locked", "o")):
            found = [r for r in rows if r["block"] == "as printed" and r["target"] == target]
            lows, highs = zip(*(r["ci"] or (r["measured"], r["measured"]) for r in found), strict=True)
            scores, rates = [r["measured"] for r in found], [r["lr"] for r in found]
            axes.plot(rates, scores, marker=marker, color=COLORS[target], lw=1, ms=5, label=target)
            axes.fill_between(rates, lows, highs, color=COLORS[target], alpha=0.15, lw=0)
        searched = {r["target"]: r for r in rows if r["block"] == "searched" and r["lock"] in ("", self.lock)}
        axes.axhline(
            searched["locked"]["measured"],
            color=COLORS["locked"],
            lw=0.8,
            ls=(0, (1, 2)),
            label="locked, searched",
        )
        axes.axhline(searched["base"]["floor"], color=COLORS["muted"], lw=0.8, ls=(0, (4, 2)), label="floor")
        metric = "F1" if self.others[0].column == "QQP" else "accuracy"
        axes.set(
            xscale="log", xlabel="learning rate", ylabel=f"{self.others[0].column}, {metric}", ylim=(0, 1)
        )
        axes.legend(frameon=False, fontsize=8)
        return figure
