"""`speclock tune`: which lock, with which settings."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

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
from speclock.locks import LOCKS
from speclock.numbers import unit


@click.command("tune", cls=Command)
@click.argument("model")
@click.option("--task", required=True, help=f"Retain task. {TASK_HELP}")
@click.option(
    "--attack-task", required=True, help="A proxy for what an attacker wants; quote another one's numbers."
)
@click.option(
    "--max-utility-drop",
    required=True,
    type=click.FloatRange(0, 1),
    help="Utility that may be lost on the validation split, as a fraction.",
)
@click.option(
    "--locks",
    default="specdef,undo,undo+specdef",
    show_default=True,
    help=f"Which are tried, separated by commas: {', '.join(LOCKS)}, or several joined by +.",
)
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Locks that are tried.")
@click.option("--suite", default="quick", show_default=True, help=f"One of: {', '.join(SUITES)}.")
@click.option("--steps", type=click.IntRange(1), help="Budget of each attack [default: the suite's].")
@click.option("--seed", default=0, show_default=True, help="Of the search.")
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes that share an audit."
)
@click.option("--out", required=True, type=OUT, help="Folder for tune.json, frontier.svg and the lock.")
@reading_options
@model_options
@click.option("--resume", is_flag=True, help="Go on with a killed search.")
@click.option("--json", "as_json", is_flag=True, help="Print tune.json.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    task: str,
    attack_task: str,
    max_utility_drop: float,
    locks: str,
    out: Path,
    device: str | None,
    labels: str | None,
    jobs: int,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Lock MODEL in many ways, audit each on a proxy attack task, and name the lock of least uplift for its price.

    What was tuned on a task says little of it: quote an audit on another attack task.

    Example: speclock tune base --task newsgroups:sci.space,rec.autos --max-utility-drop 0.01
    --attack-task newsgroups:sci.med,rec.sport.hockey@32/1000 --out tuned
    """
    from speclock import models, tasks
    from speclock.audits.cost import cost
    from speclock.audits.tune import Frontier, chosen, frontier, tune
    from speclock.errors import InputError
    from speclock.report import write_frontier
    from speclock.sources.cache import cache_dir
    from speclock.workspace import Workspace, new_folder, write_text

    reading = reading_of(ctx, options)
    retain, proxy = tasks.load(task, reading), tasks.load(attack_task, reading)
    names = tuple(name.strip() for name in locks.split(","))
    base = load_model(model, device, labels, kind=retain.kind)
    request = {
        **{
            "command": "tune",
            "model": model,
            "base": models.fingerprint(base),
            "task": task,
            "attack_task": attack_task,
            "labels": labels,
            "locks": list(names),
        },
        **{"max_utility_drop": max_utility_drop, "data": [retain.digest(), proxy.digest()]},
        **{key: value for key, value in options.items() if key != "trials"},
        **vars(reading),
    }
    work = Workspace(out, request, record="tune.json", resume=resume)
    found = work.finished
    if found is not None and len(found["trials"]) < options["trials"]:
        raise InputError(
            f"{out / 'tune.json'} is of {len(found['trials'])} trials and ended. Choose another --out for more."
        )
    if found is None:
        with work:
            tried = tune(
                base,
                retain,
                proxy,
                max_utility_drop=max_utility_drop,
                locks=names,
                jobs=jobs,
                folder=work.folder,
                floors=cache_dir() / "floors",
                **options,
            )
            best = chosen(tried, max_utility_drop)
            kept = None if best is None else load_model(str(work.folder / "locked"), device, kind=retain.kind)
            result = Frontier(
                trials=tried,
                best=frontier(tried),
                chosen=None if best is None else best.number,
                max_utility_drop=max_utility_drop,
                retain_task=retain.describe(),
                proxy_task=proxy.describe(),
                base={"name": base.name, "fingerprint": models.fingerprint(base)},
                request=work.request,
                command="" if best is None else _command(model, task, best.lock, max_utility_drop, ctx),
                cost={} if kept is None else cost(base, kept, retain.divided()),
            )
            found = result.to_dict()
            with new_folder(out) as folder:
                write_text(folder / "tune.json", json.dumps(found, indent=1, allow_nan=False))
                write_frontier(result, folder / "frontier.svg")
                if best is not None:
                    shutil.copytree(work.folder / "locked", folder / "locked")
    work.close()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for trial in found["trials"]:
        mark = "*" if trial["number"] in found["best"] else " "
        found_of = trial.get("reason") or f"drop {trial['drop']:.1%}, uplift {trial['uplift']:.2f}"
        idle = (
            "" if trial.get("reason") else "".join(f", {part} did nothing" for part in trial.get("idle", ()))
        )
        click.echo(f"{mark} {found_of}{idle}: {trial['lock']}")
    click.echo(
        found["command"] or "No lock kept its utility within what is allowed: allow more --max-utility-drop."
    )
    if found["command"]:
        click.echo(f"{out / 'locked'} is that lock as it was audited; made again, its noise is another.")
        if found.get("cost"):  # a search of before does not say
            click.echo(_paid(found["cost"]["test split"], found["retain_task"]["metric"], max_utility_drop))
    click.echo(f"{out / 'frontier.svg'}")


def _paid(row: dict[str, Any], metric: str, allowed: float) -> str:
    """What the chosen lock costs, and whether that is more than was allowed."""
    base, locked = row["score_base"], row["score_locked"]
    said = f"On the test split, by which nothing was chosen: utility {base:.1%} → {locked:.1%}"
    if row["interval_change"] is None:
        return f"{said} (of a single example)."
    low, high = row["interval_change"]
    said += (
        f" (the change is {100 * low:+.1f} to {100 * high:+.1f}{unit(metric)} with 95% confidence, "
        f"{row['examples']} examples)"
    )
    if high < -allowed:
        return (
            f"{said}, more than was allowed: the best of many on validation does worse elsewhere. Give the task more "
            f"validation examples (@TRAIN/TEST/VALIDATION)."
        )
    return f"{said}."


def _command(model: str, task: str, lock: str, drop: float, ctx: click.Context) -> str:
    """What makes the chosen lock, with the reading that was asked for."""
    typed = click.core.ParameterSource.COMMANDLINE
    same = [
        word
        for name in ("max_length", "text_column", "label_column", "pair_column", "metric", "labels", "device")
        if ctx.get_parameter_source(name) is typed
        for word in (f"--{name.replace('_', '-')}", str(ctx.params[name]))
    ]
    words = [
        "speclock",
        "lock",
        model,
        "--task",
        task,
        "--lock",
        lock,
        "--max-utility-drop",
        f"{drop:g}",
        *same,
    ]
    return shlex.join([*words, "--out", "locked"])
