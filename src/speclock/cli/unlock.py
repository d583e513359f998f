"""`speclock unlock`: the base from a locked model and its key."""

from __future__ import annotations

from pathlib import Path

import click

from speclock.cli.options import OUT


@click.command("unlock")
@click.argument("locked", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="What `speclock key` wrote.")
@click.option("--out", type=OUT, required=True, help="Folder for the base.")
def command(locked: Path, key: Path, out: Path) -> None:
    """Write the base that the model in LOCKED was made of, bit for bit, with its key.

    Example: speclock unlock locked --key model.key --out base
    """
    from speclock.release.key import unlock

    click.echo(f"{out}: the base, SHA-256 of its tensors {unlock(locked, key, out)[:16]}…")
