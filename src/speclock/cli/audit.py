"""`speclock audit`: say what a lock is worth, or several side by side."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speclock.audits import SUITES
from speclock.cli.options import (
    OUT,
    TASK_HELP,
    Command,
    load_model,
    model_options,
    reading_of,
    reading_options,
)
from speclock.errors import InputError

if TYPE_CHECKING:
    from speclock.audits.record import Record
    from speclock.models import Model
    from speclock.tasks.base import Task
    from speclock.tasks.reading import Reading
    from speclock.workspace import Workspace


@click.command("audit", cls=Command)
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
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes that share the work."
)
@click.option("--public-base", help="A public model that the attacker knows LOCKED to be made from.")
@click.option(
    "--sibling", "siblings", multiple=True, help="Another release of the base; several may be given."
)
@click.option(
    "--student", is_flag=True, help="Attack a student of the base's answers too; standard does anyway."
)
@click.option(
    "--own-lock",
    is_flag=True,
    help="LOCKED was made here: its card is believed, and its lock not made once more.",
)
@click.option("--out", required=True, type=OUT, help="Folder for audit.json and report.html.")
@reading_options
@model_options
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--json", "as_json", is_flag=True, help="Print summary, verdict and flags as JSON.")
@click.pass_context
def command(
    ctx: click.Context, locked: tuple[Path, ...], out: Path, resume: bool, as_json: bool, **options: Any
) -> None:
    """Attack LOCKED, its base, its control and what the attacker has anyway alike, and write the verdict.

    Several LOCKED of one base are audited one after the other, each into a folder of its own under --out, and
    compared in compare.json and compare.html.

    Example: speclock audit locked --base base --retain-task newsgroups:sci.space,rec.autos
    --attack-task newsgroups:sci.med,rec.sport.hockey@32/1000 --seeds 3 --out audit
    """
    from speclock import models
    from speclock.audits.compare import compare
    from speclock.report import write, write_comparison
    from speclock.workspace import Workspace, new_folder

    reading = reading_of(ctx, options)
    asked = _Asked(**options)
    names = _names(locked)
    if any(Path(options["base"]).resolve() == path.resolve() for path in names.values()):
        raise InputError(
            f"--base {options['base']} is the LOCKED folder itself. Name the model before locking."
        )
    retain, attack = asked.tasks(reading)
    before = load_model(asked.base, asked.device, asked.labels, kind=retain.kind)
    request = {
        "command": "audit",
        "locked": {
            name: models.fingerprint(load_model(str(path), asked.device, asked.labels, kind=retain.kind))
            for name, path in names.items()
        },
        "base": models.fingerprint(before),
        "data": [retain.digest(), attack.digest()],
        **vars(reading),
        **asked.request(),
    }
    alone = len(names) == 1
    work = Workspace(out, request, record="audit.json" if alone else "compare.json", resume=resume)
    if work.finished is None:
        with work:
            records = {}
            for name, path in names.items():
                place = work.folder if alone else work.folder / name
                place.mkdir(exist_ok=True)
                records[name] = asked.audited(path, before, retain, attack, place, work)
            with new_folder(out) as folder:
                for name, record in records.items():
                    place = folder if alone else folder / name
                    place.mkdir(exist_ok=True)
                    record.save(place)
                    write(record, place / "report.html")
                if not alone:
                    comparison = compare(records, work.request)
                    comparison.command = shlex.join(["speclock", *sys.argv[1:]])
                    comparison.save(folder)
                    write_comparison(comparison, folder / "compare.html")
    work.close()
    _say(out, alone, as_json)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What an audit was asked for, beside the locked folders and how tasks are read."""

    base: str
    retain_task: str
    attack_task: str
    suite: str
    steps: int | None
    seeds: int
    jobs: int
    public_base: str | None
    siblings: tuple[str, ...]
    student: bool
    own_lock: bool
    device: str | None
    labels: str | None

    def request(self) -> dict[str, Any]:
        """What decides on the result; how many processes share the work does not."""
        asked = {name: value for name, value in vars(self).items() if name not in ("base", "jobs")}
        return {**asked, "suite": SUITES[self.suite].label}

    def tasks(self, reading: Reading) -> tuple[Task, Task]:
        """The retain task and the attack task."""
        from speclock import tasks

        return tasks.load(self.retain_task, reading), tasks.load(self.attack_task, reading)

    def audited(
        self, path: Path, before: Model, retain: Task, attack: Task, place: Path, work: Workspace
    ) -> Record:
        """The record of one locked folder."""
        from speclock.audits.run import audit
        from speclock.locks.base import Locked
        from speclock.locks.card import CardError, read_card
        from speclock.sources.cache import cache_dir

        attack.check_kind(before)
        after = load_model(str(path), self.device, self.labels, kind=retain.kind)
        card: Any
        try:
            card = read_card(path)
        except CardError as error:
            card = str(error)
        record = audit(
            base=before,
            locked=after if card is None else Locked(after, card),
            retain=retain,
            attack=attack,
            suite=self.suite,
            steps=self.steps,
            seeds=self.seeds,
            jobs=self.jobs,
            public=None
            if self.public_base is None
            else load_model(self.public_base, self.device, kind=retain.kind),
            siblings=tuple(
                load_model(sibling, self.device, self.labels, kind=retain.kind) for sibling in self.siblings
            ),
            student=self.student or None,
            repeat=not self.own_lock,
            folder=place,
            # What the base gives is the same for every lock of it; what needs no base, for every audit on the data.
            shared=work.folder,
            floors=cache_dir() / "floors",
        )
        record.command = shlex.join(["speclock", *sys.argv[1:]])
        record.request = work.request
        return record


def _names(locked: tuple[Path, ...]) -> dict[str, Path]:
    """What each lock is called in a comparison: its folder's name."""
    names = {path.resolve().name: path for path in locked}
    if len(names) < len(locked):
        raise InputError(
            "two of the LOCKED folders have the same name, and a comparison goes by it. Rename one."
        )
    return names


def _say(out: Path, alone: bool, as_json: bool) -> None:
    from speclock.audits.record import read

    if alone:
        record = read(out)
        if as_json:
            told = {
                "verdict": record.verdict,
                "flags": [{"name": flag.name, "why": flag.why} for flag in record.flags],
                "budget": record.suite["budget"],
            }
            click.echo(json.dumps(record.summary | told, indent=1))
            return
        click.echo(record.verdict)
        for flag in record.flags:
            click.echo(f"flag {flag.name}: {flag.why}.")
        click.echo(f"{out / 'report.html'}")
        return
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    if as_json:
        click.echo(json.dumps(found["locks"], indent=1))
        return
    for row in found["locks"]:
        uplift = "none to speak of" if row["uplift"] is None else f"{row['uplift']:.2f}"
        click.echo(
            f"{row['name']}: utility {row['utility_locked']:.1%}, uplift {uplift}, {row['strongest_attack']}"
        )
    click.echo(f"{out / 'compare.html'}")
