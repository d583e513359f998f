"""`speclock train`: make a base that does a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from speclock.cli.options import OUT, TASK_HELP, Command, field_options, given, reading_of, reading_options
from speclock.recipe import TrainingRecipe

_FEW = 12
"""Labels that are said: what a prefix stood for is among them."""


@click.command("train", cls=Command)
@click.argument("model")
@click.option("--task", required=True, help=TASK_HELP)
@click.option("--out", required=True, type=OUT, help="Folder for the base.")
@field_options(TrainingRecipe)
@reading_options
@click.option("--device", help="cpu, cuda, … [default: the accelerator where there is one]")
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.pass_context
def command(
    ctx: click.Context, model: str, task: str, out: Path, device: str | None, resume: bool, **options: Any
) -> None:
    """Train MODEL (a built-in name, a Hugging Face folder or a hub id) on a task and save it.

    A model whose head does not fit the task's labels gets a fresh one.

    Example: speclock train minilm --task newsgroups:sci.space,rec.autos --out base
    """
    from speclock import models, tasks
    from speclock.training import Checkpoint, train
    from speclock.workspace import Workspace

    reading = reading_of(ctx, options)
    recipe = TrainingRecipe(**given(ctx, TrainingRecipe, options, "train"))
    learned = tasks.load(task, reading)
    request = {
        **{"command": "train", "model": model, "task": task, "data": learned.digest()},
        **{**vars(reading), **vars(recipe)},
    }
    work = Workspace(out, request, record="train.json", resume=resume)
    record = work.finished
    if record is None:
        with work:
            learned.check_kind(models.load(model, device="cpu", kind=learned.kind))
            head = {"labels": learned.head} if learned.head else {}
            base = models.load(model, seed=recipe.seed, device=device, kind=learned.kind, **head)
            record = {
                **train(base, learned, recipe, checkpoint=Checkpoint(work.folder)),
                "request": work.request,
            }
            models.save(base, out, extra={"train.json": json.dumps(record, indent=1)})
    work.close()
    learned_task = record["task"]
    click.echo(
        f"{out}: {learned_task['name']} {learned_task['metric']} {record['score']:.1%} after {record['steps']} steps "
        f"(chance {learned_task['chance']:.1%}, {learned_task['test']} test examples"
        + (f" of {', '.join(labels)}" if 0 < len(labels := learned_task["labels"]) <= _FEW else "")
        + ")."
    )
