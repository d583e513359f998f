"""`speclock audit`: say what a lock is worth."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from speclock.audit import SUITES
from speclock.cli.options import OUT, TASK_HELP, task_options


@click.command("audit")
@click.argument("locked", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The model before locking.")
@click.option("--retain-task", required=True, help=f"What the model must keep doing. {TASK_HELP}")
@click.option("--attack-task", required=True, help="What the attacker wants; named as the retain task is.")
@click.option("--suite", default="quick", show_default=True, help=f"One of: {', '.join(SUITES)}.")
@click.option(
    "--steps", type=click.IntRange(1), help="Budget of each run in optimizer steps [default: the suite's]."
)
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1), help="Seeds; quote nothing below 3."
)
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Targets attacked at once."
)
@click.option("--public-base", help="A public model that the attacker knows LOCKED to be made from.")
@click.option("--out", required=True, type=OUT, help="Folder for audit.json and report.html.")
@task_options
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    locked: Path,
    base: str,
    retain_task: str,
    attack_task: str,
    suite: str,
    steps: int | None,
    seeds: int,
    jobs: int,
    public_base: str | None,
    out: Path,
    resume: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Attack LOCKED, its base, its control and a freshly initialised model alike, and write the verdict.

    Example: speclock audit locked --base base --retain-task newsgroups:sci.space,rec.autos
    --attack-task newsgroups:sci.med,rec.sport.hockey@480/400 --seeds 3 --out audit
    """
    from speclock import models, tasks
    from speclock.audit.run import audit
    from speclock.locks.base import Locked, read_card
    from speclock.report import write
    from speclock.workspace import Workspace, new_folder

    chosen = SUITES[suite]
    before, after = models.load(base), models.load(str(locked))
    card = read_card(locked)
    request = {
        "command": "audit",
        "locked": models.fingerprint(after),
        "base": models.fingerprint(before),
        "retain_task": retain_task,
        "attack_task": attack_task,
        "suite": chosen.label,
        "steps": steps,
        "seeds": seeds,
        "public_base": public_base,
        **reading,
    }
    work = Workspace(out, request, record="audit.json", resume=resume)
    record = work.finished
    if record is None:
        with work:
            retain, attack = tasks.load(retain_task, **reading), tasks.load(attack_task, **reading)
            retain.check_head(before)
            attack.check_kind(before)
            found = audit(
                base=before,
                locked=after if card is None else Locked(after, card),
                retain=retain,
                attack=attack,
                suite=chosen,
                steps=steps,
                seeds=seeds,
                jobs=jobs,
                public=None if public_base is None else models.load(public_base),
                folder=work.folder,
            )
            found.command = shlex.join(["speclock", *sys.argv[1:]])
            found.request = work.request
            with new_folder(out) as folder:
                found.save(folder)
                record = found.to_dict()
                write(record, folder / "report.html")
    work.close()
    if as_json:
        click.echo(json.dumps(record["summary"], indent=1))
        return
    click.echo(record["verdict"])
    for flag in record["flags"]:
        click.echo(f"flag {flag['name']}: {flag['why']}.")
    click.echo(f"{out / 'report.html'}")
