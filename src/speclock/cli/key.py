"""`speclock key`: what unlocks a locked model."""

from __future__ import annotations

from pathlib import Path

import click

from speclock.cli.options import OUT


@click.command("key")
@click.argument("locked", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="The folder that was locked.")
@click.option("--out", type=OUT, required=True, help="File for the key. Readable by you alone.")
@click.option("--json", "as_json", is_flag=True, help="Print what the key holds as JSON.")
def command(locked: Path, base: Path, out: Path, as_json: bool) -> None:
    """Write the key that turns the locked model in LOCKED back into its base, bit for bit.

    The key is as large as what the lock changed. Whoever has it and the released files has the base; what the lock
    brought into another shape or dtype lies in it as it was.

    Example: speclock key locked --base base --out model.key
    """
    import json

    from speclock.release.key import make_key

    held = make_key(base, locked, out)
    if as_json:
        click.echo(json.dumps({"key": str(out), **held}, indent=1))
        return
    kept = f"{held['changed']} changed tensors" + (
        f" and {held['whole']} of the base's own" if held["whole"] else ""
    )
    click.echo(f"{out}: {kept}, {held['bytes'] / 2**20:.1f} MiB. Keep it as you keep the base.")
    if held["left_out"]:
        click.echo(f"Left out, weights that are not loaded: {', '.join(held['left_out'])}.", err=True)
