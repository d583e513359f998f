"""`speclock report`: write the report of an audit again."""

from __future__ import annotations

from pathlib import Path

import click

from speclock.cli.options import OUT


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=OUT, help="HTML file [default: FOLDER/report.html].")
@click.option(
    "--rejudge",
    is_flag=True,
    help="Have flags and verdict follow from the numbers by this version's rules, and keep them.",
)
def command(folder: Path, out: Path | None, rejudge: bool) -> None:
    """Write the self-contained HTML report of the audit in FOLDER from its audit.json.

    Example: speclock report audit --out verdict.html
    """
    from speclock.audits.record import read
    from speclock.audits.run import judged
    from speclock.errors import InputError
    from speclock.report import write

    record = read(folder)
    if rejudge:
        try:
            judged(record)
        except KeyError as error:
            raise InputError(
                f"{folder}: the record is of an earlier version and has no {error}, by which this one judges. "
                "Audit again."
            ) from error
        record.save(folder if folder.is_dir() else folder.parent)
    path = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    write(record, path)
    click.echo(path)
