"""Figure 2: iterations and the bound's ratio against the multiple of σ_max, three small architectures [B.1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from speclock.curvature import (
    Bound,
    Hessian,
    extreme_eigenvalues,
    mlp_bounds,
    mlp_layers,
    squared_error,
    transformer_bounds,
)
from speclock.curvature.transformer import Head, forward
from speclock.experiments.base import Experiment, Row, once, row
from speclock.experiments.claims import FALLS, HOLDS, Claim, judged
from speclock.spectra import top_part, weight_matrices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HIDDEN, SAMPLES = 4, 8, 64


def _mlp() -> nn.Sequential:
    """Four layers with ReLU between."""
    sizes = [(WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN)]
    hidden = [module for size in sizes for module in (nn.Linear(*size), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, WIDTH))


def _cnn() -> nn.Sequential:
    """Two 3×3 convolutions with padding 1, then two fully connected layers with tanh between."""
    convolutions = nn.Sequential(
        nn.Conv2d(1, HIDDEN, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    tail = nn.Sequential(nn.Linear(HIDDEN * WIDTH**2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH))
    return nn.Sequential(convolutions, tail)


class _Transformer(nn.Module):
    """One encoder block with one head, as A.2 defines it."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(WIDTH, WIDTH)] * 4 + [(HIDDEN, WIDTH), (WIDTH, HIDDEN)]
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(shape)) for name, shape in zip(Head._fields, shapes, strict=True)}
        )

    def forward(self, tokens: Float[Tensor, "n t D"]) -> Float[Tensor, "n t D"]:
        return forward([[self.head()]], tokens)

    def head(self) -> Head:
        return Head(**dict(self.weights.items()))


def _bounds_of_mlp(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Bound]:
    layers, outputs = mlp_layers(net, x)
    return mlp_bounds(layers, squared_error(outputs, y))


def _bounds_of_cnn(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Bound]:
    convolutions, tail = net
    assert isinstance(tail, nn.Sequential)
    return _bounds_of_mlp(tail, convolutions(x), y)


def _bounds_of_transformer(net: _Transformer, x: Tensor, y: Tensor) -> list[Bound]:
    return transformer_bounds([[net.head()]], x)


class Architecture(NamedTuple):
    """What is built, what goes in and comes out of it, and what is known of its curvature."""

    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    bounds: Callable[[Any, Tensor, Tensor], list[Bound]]


ARCHITECTURES = {
    "MLP": Architecture(_mlp, (WIDTH,), (WIDTH,), _bounds_of_mlp),
    "CNN": Architecture(_cnn, (1, WIDTH, WIDTH), (WIDTH,), _bounds_of_cnn),
    "Transformer": Architecture(_Transformer, (2, WIDTH), (2, WIDTH), _bounds_of_transformer),
}
"""B.1 gives widths, kernel, padding and activations. Ours, where it gives none: four outputs, ReLU between the
convolutions, 4×4 images of one channel, eight channels, one head of width four, and A.2's block, which has no norm."""


@dataclass(frozen=True, kw_only=True)
class Figure2(Experiment):
    """σ₁ of every weight matrix is multiplied, by the SVD; then Adam with rate 1e-3 on all 64 samples.

    An iteration count is that of the first step after which the mean squared error is at most ``reach`` of the
    targets' variance: of what a model that only knows their mean gets. The paper does not say what it calls converged.
    The ratio is σ_max(H) over the largest of the bounds, before training.
    """

    multiples: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    reach: float = 0.9
    lr: float = 1e-3
    most_steps: int = 120_000
    seeds: int = 3

    departures: ClassVar[tuple[str, ...]] = (
        "the paper does not say what it calls converged: here nine tenths of the targets' variance, the mean squared "
        "error of a model that only knows their mean",
        "four outputs, 4×4 images of one channel, eight channels with ReLU between, one head of width four",
        "that iterations grow is said where their rank correlation with σ_max is above 0.8 for every seed",
        "the bound is the largest of those that [theory.md](theory.md) restates and proves; of the paper's own it says "
        "why they are vacuous or not proved",
    )
    name: ClassVar[str] = "figure2"
    title: ClassVar[str] = (
        "The largest singular value of the weights controls iterations and bounds curvature"
    )
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"multiples": (1.0, 2.0), "lr": 1e-2, "most_steps": 400},
        "small": {"multiples": (1.0, 2.0, 3.0, 4.0), "most_steps": 20_000},
        "paper": {},
    }

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        rows = []
        for name, architecture in ARCHITECTURES.items():
            rows += once(kept / f"{name}.json", partial(self._rows_of, name, architecture))
        return rows

    def _rows_of(self, name: str, architecture: Architecture) -> list[Row]:
        problems = [
            [self._problem(architecture, multiple, seed) for seed in range(self.seeds)]
            for multiple in self.multiples
        ]
        steps = self._iterations(name, [problem for group in problems for problem in group])
        rows, means = [], []
        for i, (multiple, group) in enumerate(zip(self.multiples, problems, strict=True)):
            counts = steps[i * self.seeds : (i + 1) * self.seeds]
            means.append(fmean(counts))
            rows.append(
                row(
                    [float(count) for count in counts],
                    architecture=name,
                    quantity="iterations",
                    multiple=multiple,
                    unfinished=sum(count >= self.most_steps for count in counts),
                )
            )
            ratios, statements = zip(*(self._ratio(architecture, *problem) for problem in group), strict=True)
            rows.append(
                row(
                    ratios,
                    architecture=name,
                    quantity="σ_max(H) over the bound",
                    multiple=multiple,
                    statements=list(statements),
                    paper="≥ 1",
                )
            )
        rows.append(
            row(
                [_rank_correlation(self.multiples, means)],
                architecture=name,
                quantity="rank correlation of iterations",
                paper="increasing",
            )
        )
        return rows

    def _problem(
        self, architecture: Architecture, multiple: float, seed: int
    ) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(seed)
        x = torch.randn(SAMPLES, *architecture.inputs, dtype=torch.float64)
        y = torch.randn(SAMPLES, *architecture.targets, dtype=torch.float64)
        net = architecture.build().double()
        for parameter in net.parameters():
            nn.init.xavier_uniform_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        for weight in weight_matrices(net):
            W = weight.matrix.detach().clone()
            weight.assign_(W + (multiple - 1) * top_part(W, 1))
        return net, x, y

    def _iterations(self, name: str, problems: list[tuple[nn.Module, Tensor, Tensor]]) -> list[int]:
        """Steps of each, all trained side by side: Adam acts on every number alone, so stacking changes nothing."""
        nets, x, y = zip(*problems, strict=True)
        params, _ = stack_module_state(list(nets))
        inputs, targets = torch.stack(x), torch.stack(y)
        net = ARCHITECTURES[name].build().to("meta")
        losses = vmap(lambda p, x, y: nn.functional.mse_loss(functional_call(net, p, (x,)), y))
        goal = self.reach * targets.flatten(2).var(1, correction=0).mean(-1)
        steps = torch.full((len(problems),), self.most_steps)
        optimizer = torch.optim.Adam(params.values(), lr=self.lr)
        for step in tqdm(
            range(self.most_steps), desc=f"figure2: {name}", unit="step", disable=None, leave=False
        ):
            loss = losses(params, inputs, targets)
            steps = torch.where((steps == self.most_steps) & (loss.detach() <= goal), step, steps)
            if bool((steps < self.most_steps).all()):
                break
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
        return [int(count) for count in steps]

    def _ratio(self, architecture: Architecture, net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, str]:
        H = Hessian([lambda: nn.functional.mse_loss(net(x), y)], dict(net.named_parameters()))
        (sigma,) = extreme_eigenvalues(H, tol=1e-8, title="σ_max(H)")
        with torch.no_grad():
            best = max(architecture.bounds(net, x, y), key=lambda bound: bound.value)
        # A vacuous bound is held by any curvature.
        ratio = abs(sigma.value) / best.value if best.value else math.inf
        return ratio, f"{best.statement} ({best.matrix})" if best.value else f"vacuous: {best.vacuous}"

    def claims(self, rows: list[Row]) -> list[Claim]:
        found = []
        for name in ARCHITECTURES:
            of = [r for r in rows if r["architecture"] == name]
            mean = next(r["measured"] for r in of if r["quantity"] == "rank correlation of iterations")
            counts = [r for r in of if r["quantity"] == "iterations"]
            multiples = [r["multiple"] for r in counts]
            alone = [
                _rank_correlation(multiples, each) for each in zip(*(r["seeds"] for r in counts), strict=True)
            ]
            capped = sum(r["unfinished"] for r in counts)
            found.append(
                judged(
                    f"{name}: iterations grow with σ_max of the weights",
                    HOLDS if min(alone) > 0.8 else FALLS,
                    f"rank correlation {mean:.2f} of the means over seeds, {min(alone):.2f} to {max(alone):.2f} of "
                    f"single seeds"
                    + (f"; {capped} runs did not end and count as the limit" if capped else ""),
                )
            )
            ratios = [r for entry in of if entry["quantity"].startswith("σ_max") for r in entry["seeds"]]
            held = HOLDS if min(ratios) >= 1 else FALLS
            spread = f"σ_max(H) is {min(ratios):.3g} to {max(ratios):.3g} times the bound"
            claim = f"{name}: σ_max of the weights bounds σ_max(H), as [theory.md](theory.md) restates it"
            found.append(judged(claim, held, spread))
        return found

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

        from speclock.report.plots import COLORS

        figure = Canvas(figsize=(7.2, 4.2), layout="constrained")
        grid = figure.subplots(2, len(ARCHITECTURES), sharex=True)
        quantities = ("iterations", "σ_max(H) over the bound")
        for column, name in enumerate(ARCHITECTURES):
            for axes, quantity, color in zip(grid[:, column], quantities, ("locked", "base"), strict=True):
                found = [r for r in rows if r["architecture"] == name and r["quantity"] == quantity]
                multiples = [r["multiple"] for r in found]
                for r in found:
                    for value in r["seeds"]:
                        # An arrow: it would have gone on.
                        marker = "^" if quantity == "iterations" and value >= self.most_steps else "o"
                        axes.plot(r["multiple"], value, marker, ms=3, mew=0, color=COLORS[color], alpha=0.45)
                axes.plot(multiples, [r["measured"] for r in found], color=COLORS[color], lw=1.5)
                axes.set(xscale="log", yscale="log")
                axes.set_xticks([1, 2, 4, 8], labels=["1", "2", "4", "8"])
                axes.xaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_minor_formatter(NullFormatter())
                axes.grid(axis="y")
            grid[0, column].set_title(name, fontsize=10)
            ratio = grid[1, column]
            ratio.axhline(1, color=COLORS["ink"], lw=1, ls=(0, (4, 2)))
            ratio.set_ylim(bottom=0.9)
            ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ratio.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        figure.supxlabel("multiple of σ₁ of every weight matrix", fontsize=9, color=COLORS["muted"])
        grid[0, 0].set_ylabel("iterations to converge")
        grid[1, 0].set_ylabel(r"$\sigma_{\max}(H)$ over the bound")
        return figure


def _rank_correlation(multiples: Sequence[float], counts: Sequence[float]) -> float:
    """Spearman's; 0 where every count is the limit, and there is no order to speak of."""
    return float(spearmanr(multiples, counts).statistic) if len(set(counts)) > 1 else 0.0
