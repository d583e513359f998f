"""`speclock attack`: attack one model with one attack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speclock.attacks import ATTACKS
from speclock.cli.options import (
    OUT,
    TASK_HELP,
    Command,
    field_options,
    given,
    load_model,
    model_options,
    reading_of,
    reading_options,
)
from speclock.errors import InputError

if TYPE_CHECKING:
    from speclock.locks.card import Card


@click.command("attack", cls=Command)
@click.argument("model")
@click.option("--task", required=True, help=f"Attack task. {TASK_HELP}")
@click.option(
    "--attack", "attack_name", default="finetune", show_default=True, help=f"One of: {', '.join(ATTACKS)}."
)
@click.option(
    "--steps", default=32, show_default=True, type=click.IntRange(1), help="Budget in optimizer steps."
)
@click.option("--lr", "rates", multiple=True, help="Learning rate; several, or a comma list, for a sweep.")
@click.option(
    "--search",
    is_flag=True,
    help="Go on from --lr until the best rate lies between two others, as an audit does.",
)
@click.option("--public-base", help="A public model that the attacker knows MODEL to be made from.")
@click.option("--out", required=True, type=OUT, help="Folder for attack.json.")
@field_options(*ATTACKS.values(), leave_out=["lr"])
@reading_options
@model_options
@click.option(
    "--retain-task", help=f"Of the kind that MODEL was made for, for attacks that heal. {TASK_HELP}"
)
@click.option(
    "--sibling", "siblings", multiple=True, help="Another release of MODEL's base; several may be given."
)
@click.option("--save", is_flag=True, help="Also save the model that the best run leaves.")
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    task: str,
    attack_name: str,
    steps: int,
    rates: tuple[str, ...],
    search: bool,
    public_base: str | None,
    retain_task: str | None,
    siblings: tuple[str, ...],
    out: Path,
    device: str | None,
    labels: str | None,
    save: bool,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train MODEL for the attack task within a budget, at one or several learning rates.

    Runs are scored on the validation split; the best of them is carried out again and scored on the test split.

    Example: speclock attack locked --task newsgroups:sci.med,rec.sport.hockey@480 --lr 1e-4,1e-3 --out attacked
    """
    from speclock import models, tasks
    from speclock.audits.search import at
    from speclock.audits.suite import Family
    from speclock.audits.sweep import concluded, tried
    from speclock.workspace import Workspace, new_folder, write_text

    reading = reading_of(ctx, options)
    cls = ATTACKS[attack_name]
    fields = given(ctx, cls, options, f"--attack {attack_name}")
    if (rates or search) and not hasattr(cls, "lr"):
        option = "--lr" if rates else "--search"
        raise InputError(f"{option}: {attack_name} trains nothing, so it has no learning rate. Leave it out.")
    attacks = [cls(**fields, lr=lr) for lr in _numbers(rates)] or [cls(**fields)]
    if search and len(attacks) == 1:
        # Three digits: 3.2e-4 / 10 is 3.2e-5 to whoever reads the record.
        attacks += [at(attacks[0], float(f"{rate:.3g}")) for rate in (attacks[0].lr / 10, attacks[0].lr * 10)]
    family = Family(tuple(attacks), searched=search)
    attacks[0].requires()
    asked = {
        "model": model,
        "task": task,
        "public_base": public_base,
        "retain_task": retain_task,
        "labels": labels,
    }
    request = {
        "command": "attack",
        **asked,
        "siblings": list(siblings),
        "steps": steps,
        "search": search,
        "attacks": [{"attack": attack.name, "seed": attack.seed, **attack.config()} for attack in attacks],
        **vars(reading),
    }
    work = Workspace(out, request, record="attack.json", resume=resume)
    record = work.finished
    if record is None:
        with work:
            wanted = tasks.load(task, reading)
            target = load_model(model, device, labels, kind=wanted.kind)
            wanted.check_kind(target)
            scene: dict[str, Any] = {
                "public": None if public_base is None else load_model(public_base, device, kind=wanted.kind),
                "siblings": tuple(load_model(each, device, labels, kind=wanted.kind) for each in siblings),
                "card": _card(Path(model)),
                "retain": None if retain_task is None else tasks.load(retain_task, reading).fitted_to(target),
            }
            runs = []
            for run in tried(target, wanted, family, steps, work.folder / "runs", **scene):
                runs.append(run)
                said = f"best {run.best:.1%}" if run.best is not None else f"{run.status} {run.reason}"
                click.echo(f"{run.title}: {said} ({run.passes} passes, {run.seconds:.0f} s)", err=as_json)
            sweep = concluded(target, wanted, family, runs, steps, **scene)
            record = {**sweep.to_dict(), "request": work.request}
            with new_folder(out) as folder:
                if save and sweep.attacked is not None:
                    models.save(sweep.attacked, folder / "model")
                write_text(folder / "attack.json", json.dumps(record, indent=1))
    work.close()
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    best, chance = record["best"], record["task"]["chance"]
    beside = "".join(f", {name} {score:.1%}" for name, score in best["beside"].items()) if best else ""
    found = (
        f"{best['title']} reaches {best['test']:.1%} on the test split{beside}"
        if best
        else "no run has a score"
    )
    click.echo(f"{out / 'attack.json'}: {found}; chance is {chance:.1%}.")


def _card(folder: Path) -> Card | None:
    """What a locked folder says of itself; what cannot be read says nothing."""
    from speclock.locks.card import CardError, read_card

    try:
        return read_card(folder)
    except CardError:
        return None


def _numbers(texts: tuple[str, ...]) -> list[float]:
    try:
        return [float(part) for text in texts for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--lr {' '.join(texts)}: not a number. Write it as 1e-4 or 1e-4,1e-3.") from None
