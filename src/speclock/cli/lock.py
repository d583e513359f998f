"""`speclock lock`: lock a model against training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speclock.cli.options import (
    OUT,
    TASK_HELP,
    Command,
    field_options,
    load_model,
    model_options,
    reading_of,
    reading_options,
    typed,
)
from speclock.locks import LOCKS
from speclock.numbers import more_or_less, points, unit

if TYPE_CHECKING:
    from speclock.locks.base import Lock
    from speclock.locks.composition import Composition
    from speclock.models import Model
    from speclock.tasks.base import Task


@click.command("lock", cls=Command)
@click.argument("model")
@click.option("--task", required=True, help=f"Retain task. {TASK_HELP}")
@click.option("--out", required=True, type=OUT, help="Folder for the locked model and its lock card.")
@click.option(
    "--lock",
    "lock_name",
    default="specdef",
    show_default=True,
    help=f"One of {', '.join(LOCKS)}, or several joined by +; NAME:FIELD=VALUE,… sets a field of that one alone.",
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
    from speclock.locks.composition import lock_named
    from speclock.workspace import Workspace

    reading = reading_of(ctx, options)
    lock = lock_named(lock_name, typed(ctx, options))
    retain = tasks.load(task, reading)
    base = load_model(model, device, labels, kind=retain.kind)
    request = {
        **{"command": "lock", "model": model, "base": models.fingerprint(base)},
        **{"task": task, "data": retain.digest(), "labels": labels},
        **{"lock": lock.name, **vars(reading), **_fields(lock)},
    }
    if further := lock.digests_of_its_own(retain):
        request["further_data"] = further
    work = Workspace(out, request, record="speclock.json", resume=resume)
    card = work.finished
    if card is None:
        with work:
            locked = lock(base, retain, folder=work.folder)
            card = {**locked.card, "request": work.request}
            models.save(locked.model, out, extra={"speclock.json": json.dumps(card, indent=1)})
    work.close()
    if as_json:
        click.echo(json.dumps(card, indent=1))
        return
    parts = card.get("parts", [card])
    guarded = [
        parts[0]["curve"][0][1],
        {step: score for step, score, _ in parts[-1]["curve"]}[parts[-1]["chosen_step"]],
    ]
    allowed, utility = parts[-1]["config"]["max_utility_drop"], (card["utility_base"], card["utility_locked"])
    click.echo(
        f"{out}: utility {utility[0]:.1%} → {utility[1]:.1%}{_paid(retain, base, *utility)} on the test split "
        f"(validation, which is guarded to {100 * allowed:g}{unit(retain.metric)}: "
        f"{guarded[0]:.1%} → {guarded[1]:.1%}); "
        + "; ".join(
            f"{part['lock']}: {part['unit']} {part['strength_base']:.3g} → {part['strength_locked']:.3g} "
            f"(state after step {part['chosen_step']} of {part['steps']})"
            for part in parts
        )
        + "."
    )
    for part in parts:
        if part["chosen_step"] == 0:
            click.echo(
                f"No stronger state of {part['lock']} kept its utility, so it did nothing: allow more "
                f"--max-utility-drop, or lock more gently."
                f"{' The run diverged; lower --lr.' if part['status'] == 'diverged' else ''}",
                err=True,
            )


def _paid(retain: Task, model: Model, base: float, locked: float) -> str:
    """What of a language model's score is lost, in the words of those who use one; of others the two scores say it."""
    from speclock.tasks.base import is_proportion
    from speclock.tasks.causal_lm import CausalLM

    if not isinstance(retain, CausalLM) or is_proportion(retain.metric):
        return ""
    dearer = retain.perplexity(locked, model) / retain.perplexity(base, model) - 1
    return f", {points(locked - base, retain.metric)} (perplexity {more_or_less(dearer)})"


def _fields(lock: Lock | Composition) -> dict[str, Any]:
    """What a resumed run must ask for again."""
    parts = getattr(lock, "parts", None)
    return vars(lock) if parts is None else {"parts": [[part.name, vars(part)] for part in parts]}
