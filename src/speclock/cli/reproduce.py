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
    "--scale",
    default="small",
    show_default=True,
    help="smoke (a minute), small (minutes to hours on two cores) or paper.",
)
@click.option("--out", required=True, type=OUT, help="Folder for NAME.json, NAME.svg and NAME.png.")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where `all` writes what the records say of the paper's claims.  [default: OUT/results.md]",
)
@click.option(
    "--present",
    is_flag=True,
    help="With `all`: make no record; draw the figures of those that there are again, and write the page.",
)
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes that share the runs."
)
@click.option("--resume", is_flag=True, help="Go on with a killed run; `all` always does.")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def command(
    name: str,
    scale: str,
    out: Path,
    page: Path | None,
    present: bool,
    jobs: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Run experiment NAME (speclock ls experiments), or all of them, and write its record and figure.

    `all` makes the records that are missing from --out or not finished, whatever the scale of those that are there,
    and a page that says which of the paper's claims hold.

    Example: speclock reproduce figure1 --scale paper --out results/figures
    """
    from speclock.errors import InputError
    from speclock.experiments.base import made_otherwise, reproduce, save_figure
    from speclock.experiments.page import page as page_of
    from speclock.workspace import write_text

    if name not in EXPERIMENTS and name != "all":
        raise InputError(unknown("experiment", name, [*EXPERIMENTS, "all"]))
    if present and name != "all":
        raise InputError("--present goes with `all`: it writes the page of the records that there are.")
    records = {}
    for each in EXPERIMENTS if name == "all" else [name]:
        there = out / f"{each}.json"
        if name == "all" and there.exists():
            record = json.loads(there.read_text(encoding="utf-8"))
            if record.get("unfinished") and not present:
                record = reproduce(each, scale, out, resume=True, jobs=jobs)
            elif made_otherwise(record):
                click.echo(
                    f"{there} was made with other settings or rules; delete it to have it made again.",
                    err=True,
                )
            elif present:
                save_figure(EXPERIMENTS[each].at(record["scale"]), record["rows"], out)
        elif present:
            continue
        else:
            record = reproduce(each, scale, out, resume=resume or name == "all", jobs=jobs)
        records[each] = record
        if as_json:
            click.echo(json.dumps(record, indent=1))
        else:
            click.echo(
                f"{out / each}.json, .svg and .png: {len(record['rows'])} rows in {record['seconds']:.0f} s"
            )
    if present and not records:
        raise InputError(f"{out} holds no record. Leave --present out to have them made.")
    if name == "all":
        place = page or out / "results.md"
        write_text(place, page_of(records, out, place))
        click.echo(str(place), err=as_json)
