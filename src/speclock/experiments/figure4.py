"""Figure 4: preconditioned optimizers against a lock, on a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.experiments.base import Row
from speclock.experiments.settings import Other, Printed
from speclock.experiments.table1_image import ADAMW, SCHEDULED, UNDO, Table1Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SGD = Printed(optimizer="sgd", lr=0.1, middle=0.1, quoted=True)


def _cifar10(size: str) -> tuple[Other, ...]:
    # The figure has curves and no numbers; its locked ones stay at chance.
    return (Other(column="CIFAR10", task=f"cifar10{size}", locked=0.10),)


@dataclass(frozen=True, kw_only=True)
class Figure4(Table1Image):
    """Appendix C: a four-layer MLP on a two-layer CNN, Table 1's setting."""

    model: str = "cnn-mlp"
    others: tuple[Other, ...] = _cifar10("")
    attacks: tuple[Printed, ...] = (
        _SGD,
        ADAMW,
        Printed(optimizer="kron", lr=1e-3, middle=1e-3, quoted=True),
        Printed(optimizer="xmat", lr=1e-2, middle=1e-2, quoted=True),
        Printed(optimizer="lbfgs", lr=1.0, middle=1.0),
        Printed(optimizer="natural-gradient", lr=1e-2, middle=1e-2),
    )

    finalists: int = 16
    """Every optimizer at its best under every seed, and what repairs the model first."""

    draws_curves: ClassVar[bool] = True
    departures: ClassVar[tuple[str, ...]] = (
        "no rates of L-BFGS and of the natural gradient are given, which are called ineffective: ours are the first "
        "of their searches; L-BFGS takes four iterations a batch, and the natural gradient is FAdam's, under the "
        "diagonal of the empirical Fisher matrix",
        "Kron is heavyball's and XMat our own, from its authors' papers; Kron fits matrices to the gradient's second "
        "moment and vectors alone to Hessian-vector products",
        "it draws curves and gives no numbers; that its locked networks stay at chance (10%) is read off them",
        "no schedule is given for the attacks, and they have none; AdamW's weight decay is that of the text models",
        "neither the network's widths nor the size of its images are given: ours has 28×28, CIFAR10's shrunk to it",
        "of MNIST's training images 5,000 are held back for what is chosen",
        "the base is made once; each attack of another seed meets another lock, and the audit the first",
    )
    our_rates: ClassVar[tuple[str, ...]] = ("lbfgs", "natural-gradient")
    name: ClassVar[str] = "figure4"
    title: ClassVar[str] = "Preconditioners on a locked network: utility kept, and training for another task"
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {
            **Table1Image.scales["smoke"],
            "our_locks": (),
            "others": _cifar10("@40/40/40"),
            "attacks": (_SGD, ADAMW),
            "lock_seeds": 2,
        },
        "small": {
            **Table1Image.scales["small"],
            "our_locks": (f"{UNDO},steps=2000", f"{UNDO},steps=2000+{SCHEDULED}"),
            "others": _cifar10("@6000/1000"),
            "epochs": 2,
            "quoted_epochs": None,
            "trials": 14,
            "our_controls": False,
            "our_finalists": 4,
            "lock_seeds": 3,
        },
        "paper": {},
    }

    def draw(self, rows: list[Row]) -> Figure:
        """As the paper has it: the score over the steps for each optimizer at its printed rate, base and locked."""
        from matplotlib.figure import Figure as Canvas

        from speclock.report.plots import COLORS

        figure = Canvas(figsize=(2.4 * len(self.attacks) + 0.8, 2.8), layout="constrained")
        grid = figure.subplots(1, len(self.attacks), squeeze=False, sharey=True)[0]
        for axes, attack in zip(grid, self.attacks, strict=True):
            for r in rows:
                if r["block"] != "as printed" or r["optimizer"] != attack.optimizer:
                    continue
                for i, curve in enumerate(r["curves"]):
                    steps, scores = zip(*curve, strict=True) if curve else ((), ())
                    label = r["target"] if i == 0 else None
                    axes.plot(steps, scores, color=COLORS[r["target"]], lw=1, label=label)
                    if steps and steps[-1] < r["steps"]:
                        axes.plot(steps[-1:], scores[-1:], "x", color=COLORS[r["target"]], ms=4)
            for r in rows:
                if r["block"] == "searched" and r["target"] == "locked" and r["lock"] == self.lock:
                    axes.axhline(r["floor"], color=COLORS["muted"], lw=0.8, ls=(0, (4, 2)))
            for r in rows:
                if r["block"] == "at its best" and r["optimizer"] == attack.optimizer and r["scored"]:
                    axes.axhline(r["measured"], color=COLORS[r["target"]], lw=0.8, ls=(0, (1, 2)))
            ended = [r for r in rows if r["block"] == "as printed" and r["optimizer"] == attack.optimizer]
            for r in ended:
                if r["diverged"]:
                    note = f"{r['target']}: {r['diverged']} of {r['runs']} diverged (×)"
                    y = 0.95 if r["target"] == "base" else 0.88
                    axes.text(0.03, y, note, transform=axes.transAxes, fontsize=6, color=COLORS[r["target"]])
            rate = f"{'our ' if attack.optimizer in self.our_rates else ''}lr {attack.lr:g}"
            axes.set_title(f"{attack.optimizer}, {rate}", fontsize=9)
            axes.set_xscale("log")
            axes.set_xlabel("step")
            axes.set_ylim(0, 1)
        grid[0].set_ylabel("accuracy: curves on validation,\nlines on test", fontsize=8)
        for target in ("base", "control", "locked"):
            label = f"{target} at its best rate"
            grid[-1].plot([], [], color=COLORS[target], lw=0.8, ls=(0, (1, 2)), label=label)
        grid[-1].plot([], [], color=COLORS["muted"], lw=0.8, ls=(0, (4, 2)), label="without the weights")
        figure.legend(*grid[-1].get_legend_handles_labels(), loc="outside right", frameon=False, fontsize=7)
        instead = next((r["instead"] for r in rows if r["block"] == "as printed" and r["instead"]), None)
        if instead:
            figure.suptitle(f"{self.others[0].column}: {instead}", fontsize=8)
        return figure
