"""`speclock verify`: whether a folder is what was released, and whether it still carries its lock."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    type=click.Path(path_type=Path),
    help="The publisher's; without it no signature is checked.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="The release's manifest, its signature beside it, where FOLDER is a copy without them. "
    "[default: FOLDER/manifest.json]",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The folder that was locked, for who has it: how much of the lock other weights carry is then said.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def command(
    folder: Path, public_key: Path | None, manifest: Path | None, base: Path | None, as_json: bool
) -> int:
    """Say whether FOLDER is what its publisher released and, where it is not, whether it still carries the lock.

    Exit 0: all of it is as released with nothing beside it that could be loaded, and signed by that key where one is
    given; 1: it is not; 2: there is nothing to compare.

    Example: speclock verify download --public-key publisher.pub.pem
    """
    import json
    from dataclasses import asdict

    from speclock.release.verify import verify

    verdict = verify(folder, public_key, manifest, base)
    click.echo(json.dumps({"holds": verdict.holds, **asdict(verdict)}, indent=1) if as_json else str(verdict))
    return 0 if verdict.holds else 1
