"""`speclock curvature`: the Hessian's spectrum and what bounds it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from speclock.cli.options import TASK_HELP, Command, load_model, model_options, reading_of, reading_options

if TYPE_CHECKING:
    from rich.console import Console

    from speclock.forecast.measurement import Curvature
    from speclock.forecast.slowdown import Forecast, Range


@click.command("curvature", cls=Command)
@click.argument("model")
@click.option("--task", required=True, help=f"What would be trained. {TASK_HELP}")
@click.option("--against", metavar="BASE", help="A base, measured alike on the same examples.")
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Training examples.")
@click.option(
    "--batch-size",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Of these at once; bounds memory.",
)
@click.option(
    "--per-matrix", is_flag=True, help="Also the block of every weight matrix; slow on large models."
)
@click.option("--seed", default=0, show_default=True, help="Which examples, and the fresh head.")
@reading_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    task: str,
    against: str | None,
    as_json: bool,
    samples: int,
    batch_size: int,
    per_matrix: bool,
    seed: int,
    device: str | None,
    labels: str | None,
    **options: Any,
) -> None:
    """Print how curved the loss of MODEL is on a task: σ_max, κ, trace, bounds, the largest stable learning rates.

    The loss is the task's on a fixed sample, without dropout; a task with other labels gets a fresh head. Every
    eigenvalue comes with its residual, within which a true one lies. With a base, also how the two compare, and
    what slowdown and rates that foretells.

    Example: speclock curvature locked --against base --task newsgroups:sci.med,rec.sport.hockey
    """
    from speclock import tasks
    from speclock.forecast.measurement import measure
    from speclock.forecast.slowdown import forecast

    objective = tasks.load(task, reading_of(ctx, options))
    named = {
        name: load_model(name, device, labels, kind=objective.kind)
        for name in (model, against)
        if name is not None
    }
    for loaded in named.values():
        objective.check_kind(loaded)
    found = {
        name: measure(
            loaded, objective, samples=samples, batch_size=batch_size, per_matrix=per_matrix, seed=seed
        )
        for name, loaded in named.items()
    }
    if as_json:
        said = {
            **found[model].to_dict(),
            "against": None if against is None else found[against].to_dict(),
            "forecast": None if against is None else forecast(found[model], found[against]).to_dict(),
        }
        click.echo(json.dumps(said, indent=1))
        return
    _print(found)
    if against is not None:
        _foretell(forecast(found[model], found[against]))


def _console() -> Console:
    from rich.console import Console

    terminal = Console()
    return Console(width=terminal.width if terminal.is_terminal else 200)


def _foretell(found: Forecast) -> None:
    from rich.table import Table

    table = Table(
        "forecast, 90% interval", "largest stable rate", "slowdown", box=None, pad_edge=False, header_style="bold"
    )  # fmt: skip
    for name in found.rate:
        table.add_row(name, _span(found.rate[name]), _span(found.slowdown[name]))
    console = _console()
    console.print()
    console.print(table)
    beyond = ", outside what the laws were fitted on: an extrapolation" if found.extrapolated else ""
    console.print(
        f"From curvature ×{found.curvature_ratio:.3g}{beyond}. Laws fitted on {found.made_from}; they know nothing "
        f"of attackers who repair the spectrum first, for which run speclock audit."
    )


def _span(found: Range) -> str:
    return f"{found.value:.2g} ({found.low:.2g} to {found.high:.2g})"


def _print(found: dict[str, Curvature]) -> None:
    from rich.table import Table

    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    for label, cell in _LINES.items():
        table.add_row(label, *(cell(curvature) for curvature in found.values()))
    console.print(table)
    for name, curvature in found.items():
        if curvature.matrices:
            blocks = Table(
                "weight matrix", "σ₁", "σ_max of its block", "residual", box=None, pad_edge=False, header_style="bold",
                title=f"blocks of {name}", title_justify="left",
            )  # fmt: skip
            for row in curvature.matrices:
                numbers = (row["sigma_1"], row["block_sigma_max"], row["residual"])
                blocks.add_row(row["name"], *(f"{number:.4g}" for number in numbers))
            console.print(blocks)


def _eigenvalue(value: float, residual: float) -> str:
    return f"{value:.5g} ± {residual:.1g}" if residual else f"{value:.5g}"


def _best_bound(curvature: Curvature) -> str:
    bounds = curvature.bounds
    if not bounds:
        return "no two fully connected layers at the end"
    best = max(bounds, key=lambda bound: bound.value)
    if best.vacuous:
        return f"vacuous: {best.vacuous}"
    return f"≥ {best.value:.4g} ({best.statement}, σ of {best.matrix})"


def _smallest(curvature: Curvature) -> str:
    spectrum = curvature.spectrum
    if spectrum.smallest is None:
        return f"none found above {spectrum.floor:.2g}"
    return _eigenvalue(*spectrum.smallest) + f" (floor {spectrum.floor:.2g})"


def _kappa(curvature: Curvature) -> str:
    kappa = curvature.spectrum.kappa
    return "–" if kappa is None else f"{'' if curvature.spectrum.exact else '≥ '}{kappa:.4g}"


_LINES = {
    "weights trained": lambda c: f"{c.weights:,}",
    "σ_max(H)": lambda c: _eigenvalue(abs(c.spectrum.sigma_max.value), c.spectrum.sigma_max.residual),
    "largest eigenvalue": lambda c: _eigenvalue(*c.spectrum.lambda_max),
    "smallest eigenvalue": lambda c: _eigenvalue(*c.spectrum.lambda_min),
    "smallest above the floor": _smallest,
    "κ": _kappa,
    "trace": lambda c: _eigenvalue(*c.spectrum.trace),
    "σ_max(H) by the theorems": _best_bound,
    "largest, once settled": lambda c: _eigenvalue(*c.sharpness.settled),
    "largest, as Adam sees it": lambda c: _eigenvalue(*c.sharpness.adam),
    "stable on a quadratic, SGD": lambda c: f"{c.sharpness.rates['sgd']:.3g}",
    "stable on a quadratic, Adam": lambda c: f"{c.sharpness.rates['adam']:.3g}",
}
"""What the table shows of a model, line by line."""
