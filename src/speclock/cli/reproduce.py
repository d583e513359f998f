"""`speclock reproduce`: the paper's figures and tables."""

from __future__ import annotations

import json
from pathlib import Path

import click

from speclock.cli.options import OUT
from speclock.experiments import EXPERIMENTS
from speclock.registry import unknown


@click.command("reproduce")
@click.argument("name")
@click.option(
    "--scale", default="small", show_default=True, help="smoke (seconds), small (minutes) or paper."
)
@click.option("--out", required=True, type=OUT, help="Folder for NAME.json, NAME.svg and NAME.png.")
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def command(name: str, scale: str, out: Path, resume: bool, as_json: bool) -> None:
    """Run experiment NAME (speclock ls experiments), or all of them, and write its record and figure.

    Example: speclock reproduce figure1 --scale paper --out results/figures
    """
    from speclock.errors import InputError
    from speclock.experiments.base import reproduce

    if name not in EXPERIMENTS and name != "all":
        raise InputError(unknown("experiment", name, [*EXPERIMENTS, "all"]))
    for each in EXPERIMENTS if name == "all" else [name]:
        record = reproduce(each, scale, out, resume=resume)
        if as_json:
            click.echo(json.dumps(record, indent=1))
        else:
            click.echo(
                f"{out / each}.json, .svg and .png: {len(record['rows'])} rows in {record['seconds']:.0f} s"
            )
