"""`speclock audit`: say what a lock is worth, or several side by side."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speclock.audits import SUITES
from speclock.audits.compare import compare
from speclock.cli.options import OUT, TASK_HELP, reading_of, reading_options
from speclock.errors import InputError

if TYPE_CHECKING:
    from speclock.audits.record import Record
    from speclock.models import Model
    from speclock.tasks.reading import Reading
    from speclock.workspace import Workspace


@click.command("audit")
@click.argument("locked", type=click.Path(path_type=Path), nargs=-1, required=True)
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
@reading_options
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    locked: tuple[Path, ...],
    base: str,
    out: Path,
    resume: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Attack LOCKED, its base, its control and a freshly initialised model alike, and write the verdict.

    Several LOCKED of one base are audited one after the other, each into a folder of its own under --out, and
    compared in compare.json and compare.html.

    Example: speclock audit locked --base base --retain-task newsgroups:sci.space,rec.autos
    --attack-task newsgroups:sci.med,rec.sport.hockey@480/400 --seeds 3 --out audit
    """
    from speclock import models
    from speclock.report import write, write_comparison
    from speclock.workspace import Workspace, new_folder

    names = _names(locked)
    before = models.load(base)
    jobs, reading = asked.pop("jobs"), reading_of(ctx, asked)
    request = {
        "command": "audit",
        "locked": {name: models.fingerprint(models.load(str(path))) for name, path in names.items()},
        "base": models.fingerprint(before),
        **vars(reading),
        **{**asked, "suite": SUITES[asked["suite"]].label},
    }
    alone = len(names) == 1
    work = Workspace(out, request, record="audit.json" if alone else "compare.json", resume=resume)
    found = work.finished
    if found is None:
        with work:
            records = {
                name: _audited(path, before, asked, reading, jobs, work, alone)
                for name, path in names.items()
            }
            with new_folder(out) as folder:
                saved = {}
                for name, record in records.items():
                    place = folder if alone else folder / name
                    place.mkdir(exist_ok=True)
                    record.save(place)
                    saved[name] = record.to_dict()
                    write(saved[name], place / "report.html")
                if alone:
                    (found,) = saved.values()
                else:
                    comparison = compare(saved, work.request)
                    comparison.command = shlex.join(["speclock", *sys.argv[1:]])
                    comparison.save(folder)
                    found = vars(comparison)
                    write_comparison(found, folder / "compare.html")
    work.close()
    _say(found, out, alone, as_json)


def _audited(
    path: Path,
    before: Model,
    asked: dict[str, Any],
    reading: Reading,
    jobs: int,
    work: Workspace,
    alone: bool,
) -> Record:
    from speclock import models, tasks
    from speclock.audits.run import audit
    from speclock.locks.base import Locked, read_card

    after, card = models.load(str(path)), read_card(path)
    retain, attack = tasks.load(asked["retain_task"], reading), tasks.load(asked["attack_task"], reading)
    retain.check_head(before)
    attack.check_kind(before)
    kept = work.folder if alone else work.folder / path.name
    kept.mkdir(exist_ok=True)
    record = audit(
        base=before,
        locked=after if card is None else Locked(after, card),
        retain=retain,
        attack=attack,
        suite=asked["suite"],
        steps=asked["steps"],
        seeds=asked["seeds"],
        jobs=jobs,
        public=None if asked["public_base"] is None else models.load(asked["public_base"]),
        folder=kept,
        # What the base and scratch give is the same for every lock.
        shared=None if alone else work.folder,
    )
    record.command = shlex.join(["speclock", *sys.argv[1:]])
    record.request = work.request
    return record


def _names(locked: tuple[Path, ...]) -> dict[str, Path]:
    """What each lock is called in a comparison: its folder's name."""
    names = {path.name: path for path in locked}
    if len(names) < len(locked):
        raise InputError(
            "two of the LOCKED folders have the same name, and a comparison goes by it. Rename one."
        )
    return names


def _say(found: dict[str, Any], out: Path, alone: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found["summary"] if alone else found["locks"], indent=1))
        return
    if alone:
        click.echo(found["verdict"])
        for flag in found["flags"]:
            click.echo(f"flag {flag['name']}: {flag['why']}.")
        click.echo(f"{out / 'report.html'}")
        return
    for row in found["locks"]:
        uplift = "none to speak of" if row["uplift"] is None else f"{row['uplift']:.2f}"
        click.echo(
            f"{row['name']}: utility {row['utility_locked']:.1%}, uplift {uplift}, {row['strongest_attack']}"
        )
    click.echo(f"{out / 'compare.html'}")
