"""One page from the records: every table and figure of the paper, claim by claim."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speclock.experiments import EXPERIMENTS
from speclock.experiments.base import Experiment
from speclock.numbers import percent

_HEAD = """# The paper, claim by claim

Written by `speclock reproduce all`, from the records beside the figures; verdicts follow from rules, and none is
typed. *As printed* is the paper's own setting; *under the search* an audit looks for each optimizer's best rate,
repairs the spectrum first, and counts from the floor that an attacker has without the weights.
"""


def page(records: Mapping[str, dict[str, Any]], folder: Path, at: Path) -> str:
    """The page that is to lie at ``at``, of the records and figures in ``folder``."""
    link = Path(os.path.relpath(folder, at.parent)).as_posix()
    parts = [_HEAD]
    for name, record in records.items():
        experiment: Experiment = EXPERIMENTS[name].at(record["scale"])
        environment = record["environment"]
        machine = environment["cpu"] if environment["device"] == "cpu" else environment["device"]
        stand_ins = any(row["stand_in"] for row in record["rows"])
        parts.append(
            f"## {experiment.title}\n\n"
            f"`speclock reproduce {name} --scale {record['scale']}`: {len(record['rows'])} rows, "
            f"{record['seconds']:.0f} s{' in its last part' if record.get('resumed') else ''}, "
            f"torch {environment['torch']}, {machine}."
            + (" Some data or models stand in for the paper's: the rows that say so." if stand_ins else "")
        )
        if claims := experiment.claims(record["rows"]):
            lines = ["| claim | as printed | under the search |", "| --- | --- | --- |"]
            lines += [f"| {c.claim} | {c.printed} | {c.searched} |" for c in claims]
            parts.append("\n".join(lines))
        parts.append(f"![{experiment.title}]({link}/{name}.png)")
        if rows := [row for row in record["rows"] if row["paper"] is not None and "block" in row]:
            parts.append(_beside_the_papers(rows))
    return "\n\n".join(parts) + "\n"


def _beside_the_papers(rows: list[dict[str, Any]]) -> str:
    """Every cell that the paper has a number for."""
    lines = ["| what | the paper's | ours | 95% interval | stand-in |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        names = ("block", "column", "model", "label", "target", "optimizer")
        what = ", ".join(str(row[name]) for name in names if row.get(name))
        ci = "–" if row["ci"] is None else f"{percent(row['ci'][0])} to {percent(row['ci'][1])}"
        stand_in = "yes" if row["stand_in"] else ""
        paper = percent(row["paper"]) if isinstance(row["paper"], float) else row["paper"]
        lines.append(f"| {what} | {paper} | {percent(row['measured'])} | {ci} | {stand_in} |")
    return "\n".join(lines)
