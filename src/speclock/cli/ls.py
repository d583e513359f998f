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
    """List WHAT: locks, attacks, suites, tasks, models, experiments or optimizers.

    Example: speclock ls tasks
    """
    from speclock.attacks import ATTACKS
    from speclock.audits import SUITES
    from speclock.experiments import EXPERIMENTS
    from speclock.locks import LOCKS
    from speclock.models import MODELS
    from speclock.optimizers import OPTIMIZERS
    from speclock.tasks import TASKS

    registries = {
        "locks": LOCKS,
        "attacks": ATTACKS,
        "suites": SUITES,
        "tasks": TASKS,
        "models": MODELS,
        "experiments": EXPERIMENTS,
    }
    lists = {kind: registry.descriptions for kind, registry in registries.items()}
    lists["optimizers"] = {name: optimizer.about for name, optimizer in OPTIMIZERS.items()}
    if what not in lists:
        raise InputError(unknown("list", what, lists))
    described = lists[what]
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    width = max(map(len, described))
    for name, text in described.items():
        click.echo(f"{name:<{width}}  {text}")
