"""`speclock ls`: what can be named on the command line."""

from __future__ import annotations

import json

import click

from speclock.errors import InputError
from speclock.registry import unknown


@click.command("ls")
@click.argument("what")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, name to description.")
def command(what: str, as_json: bool) -> None:
    """List WHAT: locks, attacks, suites, tasks or models.

    Example: speclock ls tasks
    """
    from speclock.attacks import ATTACKS
    from speclock.audit import SUITES
    from speclock.locks import LOCKS
    from speclock.models import MODELS
    from speclock.tasks import TASKS

    registries = {"locks": LOCKS, "attacks": ATTACKS, "suites": SUITES, "tasks": TASKS, "models": MODELS}
    if what not in registries:
        raise InputError(unknown("list", what, registries))
    described = registries[what].descriptions
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    width = max(map(len, described))
    for name, text in described.items():
        click.echo(f"{name:<{width}}  {text}")
