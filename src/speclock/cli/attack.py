"""`speclock attack`: attack one model with one attack."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from speclock.attacks import ATTACKS
from speclock.cli.options import OUT, TASK_HELP, field_options, given, reading_of, reading_options
from speclock.errors import InputError


@click.command("attack")
@click.argument("model")
@click.option("--task", required=True, help=f"Attack task. {TASK_HELP}")
@click.option(
    "--attack", "attack_name", default="finetune", show_default=True, help=f"One of: {', '.join(ATTACKS)}."
)
@click.option(
    "--steps", default=32, show_default=True, type=click.IntRange(1), help="Budget in optimizer steps."
)
@click.option("--lr", "rates", multiple=True, help="Learning rate; several, or a comma list, for a sweep.")
@click.option("--public-base", help="A public model that the attacker knows MODEL to be made from.")
@click.option("--out", required=True, type=OUT, help="Folder for attack.json.")
@field_options(*ATTACKS.values(), leave_out=["lr"])
@reading_options
@click.option("--save", is_flag=True, help="Also save the model that the best run leaves.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    task: str,
    attack_name: str,
    steps: int,
    rates: tuple[str, ...],
    public_base: str | None,
    out: Path,
    save: bool,
    **options: Any,
) -> None:
    """Train MODEL for the attack task within a budget, at one or several learning rates.

    Example: speclock attack locked --task newsgroups:sci.med,rec.sport.hockey@480 --lr 1e-4,1e-3 --out attacked
    """
    from speclock import models, tasks
    from speclock.attacks.base import InapplicableError, Status
    from speclock.environment import environment
    from speclock.workspace import check_free, new_folder, write_text

    reading = reading_of(ctx, options)
    cls = ATTACKS[attack_name]
    fields = given(ctx, cls, options, f"--attack {attack_name}")
    attacks = [cls(**fields, lr=lr) for lr in _numbers(rates)] or [cls(**fields)]
    check_free(out)
    wanted = tasks.load(task, reading)
    target = models.load(model)
    wanted.check_kind(target)
    public = None if public_base is None else models.load(public_base)
    runs, best = [], None
    for attack in attacks:
        try:
            attacked, outcome = attack(target, wanted, steps, public=public)
        except InapplicableError as error:
            raise InputError(f"{attack.name} does not fit {model}: {error}.") from error
        runs.append(
            {
                "attack": attack.name,
                "title": attack.title,
                "config": attack.config(),
                "seed": attack.seed,
                **vars(outcome),
            }
        )
        said = (
            f"best {outcome.best:.1%}" if outcome.best is not None else f"{outcome.status} {outcome.reason}"
        )
        beside = "".join(f", {name} {score:.1%}" for name, score in outcome.beside.items())
        click.echo(f"{attack.title}: {said}{beside} ({outcome.passes} passes, {outcome.seconds:.0f} s)")
        if outcome.status is Status.OK and (best is None or (outcome.best or 0) > best[0]):
            best = (outcome.best, attacked)
    record = {
        "model": {"name": target.name, "fingerprint": models.fingerprint(target)},
        "task": wanted.describe(),
        "steps": steps,
        "runs": runs,
        "environment": environment(),
    }
    with new_folder(out) as folder:
        if save and best is not None:
            models.save(best[1], folder / "model")
        write_text(folder / "attack.json", json.dumps(record, indent=1, default=dataclasses.asdict))
    click.echo(f"{out / 'attack.json'}: chance is {wanted.chance:.1%}.")


def _numbers(texts: tuple[str, ...]) -> list[float]:
    try:
        return [float(part) for text in texts for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--lr {' '.join(texts)}: not a number. Write it as 1e-4 or 1e-4,1e-3.") from None
