"""`speclock lock`: lock a model against training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from speclock.cli.options import (
    OUT,
    TASK_HELP,
    field_options,
    given,
    load_model,
    model_options,
    reading_of,
    reading_options,
)
from speclock.locks import LOCKS


@click.command("lock")
@click.argument("model")
@click.option("--task", required=True, help=f"Retain task. {TASK_HELP}")
@click.option("--out", required=True, type=OUT, help="Folder for the locked model and its lock card.")
@click.option(
    "--lock", "lock_name", default="specdef", show_default=True, help=f"One of: {', '.join(LOCKS)}."
)
@field_options(*LOCKS.values())
@reading_options
@model_options
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--json", "as_json", is_flag=True, help="Print the lock card.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    task: str,
    out: Path,
    device: str | None,
    labels: str | None,
    lock_name: str,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Lock MODEL (a Hugging Face folder, a hub id or a built-in name), keeping what it does on the retain task.

    The result is the strongest state on the way whose utility holds (--max-utility-drop); speclock.json, the
    lock card, says at which step that was.

    Example: speclock lock base --task newsgroups:sci.space,rec.autos --out locked --alpha 0.5 --top-k 8
    """
    from speclock import models, tasks
    from speclock.workspace import Workspace

    reading = reading_of(ctx, options)
    cls = LOCKS[lock_name]
    lock = cls(**given(ctx, cls, options, f"--lock {lock_name}"))
    retain = tasks.load(task, reading)
    request = {
        **{"command": "lock", "model": model, "task": task, "data": retain.digest(), "labels": labels},
        **{"lock": lock_name, **vars(reading), **vars(lock)},
    }
    work = Workspace(out, request, record="speclock.json", resume=resume)
    card = work.finished
    if card is None:
        with work:
            base = load_model(model, device, labels)
            locked, card = lock(base, retain, folder=work.folder)
            card = {**card, "request": work.request}
            models.save(locked, out, extra={"speclock.json": json.dumps(card, indent=1)})
    work.close()
    if as_json:
        click.echo(json.dumps(card, indent=1))
        return
    click.echo(
        f"{out}: utility {card['utility_base']:.1%} → {card['utility_locked']:.1%}, {lock.unit} "
        f"{card['strength_base']:.3g} → {card['strength_locked']:.3g} "
        f"(state after step {card['chosen_step']} of {card['steps']})."
    )
    if card["chosen_step"] == 0:
        click.echo(
            f"No stronger state kept its utility, so this is the base: allow more --max-utility-drop, or lock "
            f"more gently.{' The run diverged; lower --lr.' if card['status'] == 'diverged' else ''}",
            err=True,
        )
