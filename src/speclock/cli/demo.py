"""`speclock demo`: the whole job on a real model and real data, offline."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from speclock.cli.options import OUT
from speclock.errors import InputError

# A text classifier for four topics is released; somebody wants it for four others, and has 32 posts of those.
RETAIN = "newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns@1500/1000"
ATTACK = "newsgroups:comp.sys.mac.hardware,rec.sport.hockey,sci.space,soc.religion.christian@32/500"
# Short texts and few steps, so that all of it takes minutes on two cores.
STAGES = {
    "base": (
        "Training a base",
        f"train minilm --task {RETAIN} --lr 2e-4 --schedule linear --steps 90 --max-length 16",
    ),
    "specdef": (
        "Locking it by raising its spectrum",
        f"lock BASE --task {RETAIN} --lock specdef --alpha 0.05 --top-k 8 --lr 2e-4 --steps 80 --evaluations 4 "
        "--max-length 16",
    ),
    "undo": (
        "Locking it by removing what the task does not need",
        f"lock BASE --task {RETAIN} --lock undo --steps 400 "
        "--max-utility-drop 0.02 --evaluations 4 --max-length 16",
    ),
    "audit": (
        "Attacking both",
        f"audit SPECDEF UNDO --base BASE --retain-task {RETAIN} --attack-task {ATTACK} --jobs 2 --own-lock "
        "--max-length 16",
    ),
}
"""What is made, each a folder: what is said of it, and the command, in which capitals stand for the folders."""


@click.command("demo")
@click.option(
    "--out", default=Path("speclock-demo"), show_default=True, type=OUT, help="Folder for what is made."
)
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.pass_context
def command(ctx: click.Context, out: Path, resume: bool) -> None:
    """Make a base, lock it in two ways, attack both and compare: MiniLM on newsgroups posts, minutes on two cores.

    The folder gets the base, the two locked models and the audit with compare.html.

    Example: speclock demo --out demo
    """
    from speclock.workspace import check_free

    if not resume:
        try:
            check_free(out)
        except InputError as error:
            raise InputError(f"{error} A killed demo goes on with --resume.") from error
    # From where the command runs: cards and records hold these names, which are no one else's business.
    made = {name.upper(): str(Path(os.path.relpath(out)) / name) for name in STAGES}
    for i, (name, (title, stage)) in enumerate(STAGES.items(), 1):
        click.echo(f"{i}/{len(STAGES)} {title}: speclock {stage}")
        words = [made.get(word, word) for word in shlex.split(stage)]
        # Each stage is a command of its own, and resumes as that command does.
        assert isinstance(ctx.parent, click.Context)
        arguments = [*words, "--out", made[name.upper()], "--resume"]
        ctx.parent.command.main(arguments, standalone_mode=False)
    click.echo(f"The comparison: {out / 'audit' / 'compare.html'}")
