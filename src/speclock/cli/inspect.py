"""`speclock inspect`: spectra of every weight matrix."""

from __future__ import annotations

import json
import warnings
from typing import Any

import click


@click.command("inspect")
@click.argument("model")
@click.option("--against", metavar="BASE", help="A base whose matrices to compare with.")
@click.option(
    "--top-k", default=2, show_default=True, type=click.IntRange(1), help="Singular values of each matrix."
)
@click.option("--include", multiple=True, help="Only parameters whose name matches this pattern.")
@click.option("--exclude", multiple=True, help="No parameters whose name matches this pattern.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    model: str,
    against: str | None,
    top_k: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the top singular values of every weight matrix of MODEL, and how they differ from a base's.

    Convolutions are unfolded to (out, in·kh·kw), which is what locks act on; their σ₁ as operators, on inputs
    of side 8, stands beside it. A fused or stacked parameter is one matrix; tied weights
    count once.

    Example: speclock inspect locked --against base --top-k 4
    """
    import torch
    from tqdm import tqdm

    from speclock import models
    from speclock.spectra import frobenius, operator_norm, singular_values, stable_rank, weight_matrices

    module = models.load(model).module
    matrices = weight_matrices(module, include, exclude)
    bases = {}
    if against is not None:
        bases = {weight.name: weight for weight in weight_matrices(models.load(against).module)}
    rows: list[dict[str, Any]] = []
    for weight in tqdm(matrices, desc="inspect", unit="matrix", disable=None, leave=False):
        W = weight.matrix.detach()
        if top_k > min(weight.shape):
            warnings.warn(
                f"--top-k {top_k} is above the rank of {weight.name} ({min(weight.shape)}); all its values are shown.",
                stacklevel=1,
            )
        row: dict[str, Any] = {
            "name": weight.name,
            "shape": list(weight.shape),
            "sigma": singular_values(W, top_k).tolist(),
            "frobenius": frobenius(W),
            "stable_rank": stable_rank(W),
        }
        owner = module.get_submodule(weight.name.rpartition(".")[0])
        if isinstance(owner, torch.nn.Conv2d):
            row["operator_sigma"] = operator_norm(owner, size=8, tol=1e-4)
        base = bases.get(weight.name)
        if base is not None and base.shape == weight.shape:
            row["base_sigma"] = singular_values(base.matrix.detach(), top_k).tolist()
        rows.append(row)
    if as_json:
        click.echo(json.dumps({"model": model, "against": against, "matrices": rows}, indent=1))
    else:
        _print(rows, top_k, against)


def _print(rows: list[dict[str, Any]], top_k: int, against: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("weight matrix", overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    for i in range(1, top_k + 1):
        table.add_column(f"σ{_subscript(i)}", justify="right", no_wrap=True)
    convolutions = any("operator_sigma" in row for row in rows)
    if convolutions:
        table.add_column("σ₁ operator", justify="right", no_wrap=True)
    table.add_column("stable rank", justify="right", no_wrap=True)
    if against is not None:
        table.add_column("σ₁ over base", justify="right", no_wrap=True)
    for row in rows:
        sigma = [f"{value:.4g}" for value in row["sigma"]]
        cells = [row["name"], "×".join(map(str, row["shape"])), *sigma, *[""] * (top_k - len(sigma))]
        if convolutions:
            cells.append(f"{row['operator_sigma']:.4g}" if "operator_sigma" in row else "")
        cells.append(f"{row['stable_rank']:.1f}")
        if against is not None:
            base = row.get("base_sigma")
            cells.append(f"×{row['sigma'][0] / base[0]:.3f}" if base and base[0] else "–")
        table.add_row(*cells)
    # A pipe has no width; cutting names there to 80 columns would spoil them for a reader program.
    console = Console()
    Console(width=console.width if console.is_terminal else 200).print(table)


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
