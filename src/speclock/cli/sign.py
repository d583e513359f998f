"""`speclock sign`: the manifest of a release, and its signature."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("sign")
@click.argument("locked", type=click.Path(path_type=Path))
@click.option(
    "--private-key",
    required=True,
    type=click.Path(path_type=Path),
    help="Ed25519 key in PEM; of one that has a password, SPECLOCK_KEY_PASSWORD has it.",
)
@click.option("--new-key", is_flag=True, help="Make the private key first, and the public one beside it.")
@click.option(
    "--audit", type=click.Path(path_type=Path), help="An audit of LOCKED, whose verdict goes with it."
)
def command(locked: Path, private_key: Path, new_key: bool, audit: Path | None) -> None:
    """Lay a manifest and its signature in the folder LOCKED: digests of its files, its spectra, what an audit found.

    Example: speclock sign locked --audit audit --private-key me.pem --new-key
    """
    from speclock.errors import InputError
    from speclock.release.manifest import describe
    from speclock.release.signature import new_private_key, sign

    # What may be wrong with the folder is said before a key lies there.
    manifest, password = describe(locked, audit), os.environ.get("SPECLOCK_KEY_PASSWORD")
    if private_key.resolve().is_relative_to(locked.resolve()):
        raise InputError(f"--private-key {private_key} lies in the release. Keep it elsewhere.")
    if new_key:
        click.echo(f"{new_private_key(private_key, password)}: the public key, for whoever is to verify.")
    sign(manifest, locked, private_key, password)
    found = f", {manifest['audit']['verdict']}" if "audit" in manifest else ""
    click.echo(
        f"{locked}: {len(manifest['files'])} files, {len(manifest['matrices'])} weight matrices, signed{found}"
    )
