"""Where does a lock stop mattering?  python benchmarks/budget_surface.py BASE LOCKED… --retain-task … --out DIR

Audits each locked folder under every pair of an attacker's labelled examples and optimizer steps, with AdamW alone and
after clipping, rates searched, and draws uplift over both: `surface.json` and `surface.svg`. The floor is that of the
classical models; training from scratch, whose long runs would take most of the time, is left out, and so is the public
model: uplift over the whole floor can only be lower. Nor is there a control: the lock card is not read, and what is
forgetting and what is the lock's own is for the audit of the suites. What was finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

import speclock
from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.attacks.repair import Clip
from speclock.audits.suite import Suite, around
from speclock.environment import environment
from speclock.numbers import ratio
from speclock.report.plots import RC
from speclock.workspace import write_text

SUITE = Suite(
    name="surface",
    version=1,
    steps=32,
    families=(around(FineTune, 1e-4), around(Clip, 1e-4)),
    scratch=(),
    extended=False,  # the next cell has more steps
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("locked", type=Path, nargs="+", help="locked folders, each with its lock card")
    parser.add_argument("--retain-task", required=True)
    parser.add_argument(
        "--attack-task", required=True, help="with @N/TEST, of which N is replaced by each of --examples"
    )
    parser.add_argument("--examples", type=int, nargs="+", default=[32, 128, 320])
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if len({folder.resolve().name for folder in given.locked}) < len(given.locked):
        parser.error("two locked folders have the same name, by which the picture tells them apart")
    reading = tasks.Reading(max_length=given.max_length)
    base, retain = models.load(str(given.base)), tasks.load(given.retain_task, reading)
    rows = []
    for examples in given.examples:
        name, _, size = given.attack_task.rpartition("@")
        attack = tasks.load(f"{name}@{examples}/{size.rpartition('/')[2]}", reading)
        for steps in given.steps:
            for folder in given.locked:
                rows.append(cell(given, base, folder, retain, attack, steps))
                print(
                    "{lock}: {examples} examples, {steps} steps: {locked:.1%}, uplift {uplift}".format(
                        **rows[-1]
                    )
                )
    record = {
        "format": "speclock-surface/1",
        "command": shlex.join(["python", *sys.argv]),
        "suite": [family.name for family in SUITE.families],
        "rows": rows,
        "environment": environment(base.device),
    }
    write_text(given.out / "surface.json", json.dumps(record, indent=1))
    draw(rows, given.out / "surface.svg")


def cell(
    given: argparse.Namespace, base: Any, folder: Path, retain: Any, attack: Any, steps: int
) -> dict[str, Any]:
    """What one budget gives on one locked model; the unlocked one's runs are shared by all of them."""
    kept = given.out / "runs"
    name = folder.resolve().name
    place = kept / f"{name}-{len(attack.train)}-{steps}"
    for each in (place, kept / name, kept / "shared"):
        each.mkdir(parents=True, exist_ok=True)
    # A finished run is found again by its data and weights, so a second call costs next to nothing.
    record = speclock.audit(
        base=base,
        locked=models.load(str(folder)),
        retain=retain,
        attack=attack,
        suite=SUITE,
        steps=steps,
        seeds=given.seeds,
        jobs=given.jobs,
        folder=kept / name,
        shared=kept / "shared",
        floors=kept / "shared",
    )
    record.save(place)
    summary = record.summary
    return {
        "lock": folder.resolve().name,
        "examples": len(attack.train),
        "steps": steps,
        "base": summary["best_base"],
        "floor": summary["floor"],
        "locked": summary["best_locked"],
        "uplift": summary["uplift"],
        "interval": summary["intervals"]["uplift"],
        "strongest_attack": summary["strongest_attack"],
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One map for each lock: what its weights still give, by the attacker's examples and steps."""
    locks = list(dict.fromkeys(row["lock"] for row in rows))
    across = sorted({row["steps"] for row in rows})
    up = sorted({row["examples"] for row in rows})
    with plt.style.context(["default", RC]):
        figure, axes = plt.subplots(
            1, len(locks), figsize=(4.6 * len(locks), 3.8), squeeze=False, sharey=True
        )
        for plot, lock in zip(axes[0], locks, strict=True):
            found = {(row["examples"], row["steps"]): row for row in rows if row["lock"] == lock}
            grid = [[found[n, s]["uplift"] for s in across] for n in up]
            shades = [[float("nan") if value is None else value for value in line] for line in grid]
            plot.imshow(shades, origin="lower", cmap="Reds", vmin=0, vmax=1, aspect="auto")
            for y, n in enumerate(up):
                for x, s in enumerate(across):
                    value, row = grid[y][x], found[n, s]
                    text = "no worth" if value is None else ratio(value)
                    beneath = f"{row['locked']:.0%} (base {row['base']:.0%},\nfloor {row['floor']:.0%})"
                    shade = "white" if value is not None and value > 0.6 else "black"
                    plot.text(x, y + 0.2, text, ha="center", va="center", color=shade, weight="bold")
                    plot.text(x, y - 0.15, beneath, ha="center", va="center", color=shade, fontsize=7.5)
            plot.set_xticks(range(len(across)), [str(s) for s in across])
            plot.set_yticks(range(len(up)), [str(n) for n in up])
            plot.set_xlabel("optimizer steps")
            plot.set_title(lock)
        axes[0][0].set_ylabel("labelled examples")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
