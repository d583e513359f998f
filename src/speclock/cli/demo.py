"""`speclock demo`: the whole job on a real model and real data, offline."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import click

from speclock.cli.options import OUT

# A text classifier for four topics is released; somebody wants it for four others, and has 32 posts of those.
RETAIN = "newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns@1500/1000"
ATTACK = "newsgroups:comp.sys.mac.hardware,rec.sport.hockey,sci.space,soc.religion.christian@32/1000"
# Short texts and few steps, so that all of it takes minutes on two cores.
STAGES = {
    "Training a base": f"train minilm --task {RETAIN} --lr 2e-4 --schedule linear --steps 90 --max-length 16",
    "Locking it": (
        f"lock BASE --task {RETAIN} --alpha 0.05 --top-k 8 --lr 2e-4 --steps 80 --evaluations 4 --max-length 16"
    ),
    "Attacking it": (
        f"audit LOCKED --base BASE --retain-task {RETAIN} --attack-task {ATTACK} --jobs 2 --max-length 16"
    ),
}


@click.command("demo")
@click.option(
    "--out", default=Path("speclock-demo"), show_default=True, type=OUT, help="Folder for what is made."
)
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.pass_context
def command(ctx: click.Context, out: Path, resume: bool) -> None:
    """Make a base, lock it, attack it and report: MiniLM on newsgroups posts, some minutes on two cores.

    The folder gets the base, the locked model, audit.json and report.html.

    Example: speclock demo --out demo
    """
    from speclock.audits.record import read
    from speclock.report import write
    from speclock.workspace import Workspace, new_folder

    work = Workspace(out, {"command": "demo", "stages": STAGES}, record="audit.json", resume=resume)
    if work.finished is None:
        with work:
            # From where the command runs: cards and records hold these names, which are no one else's business.
            here = Path(os.path.relpath(work.folder))
            made = {name: here / name.lower() for name in ("BASE", "LOCKED", "AUDIT")}
            for i, ((title, stage), folder) in enumerate(zip(STAGES.items(), made.values(), strict=True), 1):
                click.echo(f"{i}/{len(STAGES)} {title}: speclock {stage}")
                words = [str(made.get(word, word)) for word in shlex.split(stage)]
                # Each stage is a command of its own, and resumes as that command does.
                assert isinstance(ctx.parent, click.Context)
                ctx.parent.command.main([*words, "--out", str(folder), "--resume"], standalone_mode=False)
            with new_folder(out) as folder:
                record = read(made["AUDIT"])
                record.request = work.request
                # The stages worked beside the folder; the record names the models where they will lie.
                record.base["name"], record.locked["name"] = str(out / "base"), str(out / "locked")
                record.save(folder)
                write(record, folder / "report.html")
                # Copied, not moved: a run killed here finds its stages as they were.
                shutil.copytree(made["BASE"], folder / "base")
                shutil.copytree(made["LOCKED"], folder / "locked")
    work.close()
    click.echo(f"The report: {out / 'report.html'}")
