"""`speclock report`: write the report of an audit again."""

from __future__ import annotations

from pathlib import Path

import click

from speclock.cli.options import OUT


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=OUT, help="HTML file [default: FOLDER/report.html].")
def command(folder: Path, out: Path | None) -> None:
    """Write the self-contained HTML report of the audit in FOLDER from its audit.json.

    Example: speclock report audit --out verdict.html
    """
    from speclock.audits.record import read
    from speclock.report import write

    record = read(folder)
    path = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    write(record, path)
    click.echo(path)
