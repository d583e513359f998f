"""`speclock train`: make a base that does a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from speclock.errors import InputError
from speclock.cli.options import OUT, TASK_HELP, field_options, given, task_options
from speclock.recipe import Schooling


@click.command("train")
@click.argument("model")
@click.option("--task", required=True, help=TASK_HELP)
@click.option("--out", required=True, type=OUT, help="Folder for the base.")
@field_options(Schooling)
@task_options
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.pass_context
def command(ctx: click.Context, model: str, task: str, out: Path, resume: bool, **options: Any) -> None:
    """Train MODEL (a built-in name, a Hugging Face folder or a hub id) on a task and save it.

    A model whose head does not fit the task's labels gets a fresh one.

    Example: speclock train minilm --task newsgroups:sci.space,rec.autos --out base
    """
    from speclock import models, tasks
    from speclock.locks.base import Run
    from speclock.training import fit
    from speclock.workspace import Workspace

    reading = {name: options.pop(name) for name in ("max_length", "text_column", "label_column")}
    recipe = Schooling(**given(ctx, Schooling, options, "train"))
    learned = tasks.load(task, **reading)
    loaded = models.load(model, labels=learned.labels, seed=recipe.seed)
    learned.check_head(loaded)
    work = Workspace(out, {"command": "train", "model": model, "task": task, **reading, **vars(recipe)}, resume=resume)
    steps = recipe.total_steps(learned)
    run = Run.in_folder(work.folder)
    last = None
    for last in fit(loaded.module, learned, loaded, recipe, steps=steps, checkpoint=run.checkpoint, title="train"):
        if last.diverged:
            work.close()
            raise InputError(
                f"training diverged at step {last.index}: --lr {recipe.lr:g} is too high for {recipe.optimizer}. "
                f"Lower it, or set --clip 1."
            )
    score = learned.score(loaded.module, loaded)
    models.save(loaded, out)
    work.close()
    click.echo(
        f"{out}: {learned.name} {learned.metric} {score:.1%} after {steps} steps "
        f"(chance {learned.chance:.1%}, {len(learned.test)} test examples)."
    )
