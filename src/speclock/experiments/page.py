"""One page from the records: every table and figure of the paper, claim by claim."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speclock.experiments import EXPERIMENTS
from speclock.experiments.base import Experiment, made_otherwise, settings_of
from speclock.numbers import NONE, interval, percent

_HEAD = """# The paper, claim by claim

Written by `speclock reproduce all`, from the records beside the figures; verdicts follow from rules, and none is
typed. *As printed* is the paper's own setting, but for what each part names as unlike it; *under the search* an audit
with as many steps looks for each optimizer's best rate, repairs the spectrum first, and counts from the floor that an
attacker has without the weights. Means are over the runs that did not diverge.
"""


def page(records: Mapping[str, dict[str, Any]], folder: Path, at: Path) -> str:
    """The page that is to lie at ``at``, of the records and figures in ``folder``."""
    link = Path(os.path.relpath(folder, at.parent)).as_posix()
    parts = [_HEAD]
    for name, record in records.items():
        experiment: Experiment = EXPERIMENTS[name].at(record["scale"])
        environment = record["environment"]
        machine = environment["cpu"] if environment["device"] == "cpu" else environment["device"]
        parts.append(
            f"## {experiment.title}\n\n"
            f"`speclock reproduce {name} --scale {record['scale']}`: {len(record['rows'])} rows, "
            f"{record['seconds']:.0f} s{' in its last part' if record.get('resumed') else ''}, "
            f"torch {environment['torch']}, {machine}."
            + (" **Made with other settings than the command's of today.**" if made_otherwise(record) else "")
        )
        if unlike := list(_unlike_the_papers(record)):
            parts.append(f"Unlike the paper's: {'; '.join(unlike)}.")
        if instead := sorted({row["instead"] for row in record["rows"] if row.get("instead")}):
            parts.append(f"Stand-ins: {'; '.join(instead)}.")
        if claims := experiment.claims(record["rows"]):
            lines = ["| claim | as printed | under the search |", "| --- | --- | --- |"]
            lines += [f"| {c.claim} | {c.printed} | {c.searched} |" for c in claims]
            parts.append("\n".join(lines))
        parts.append(f"![{experiment.title}]({link}/{name}.png)")
        if rows := [row for row in record["rows"] if row["paper"] is not None and "block" in row]:
            parts.append(_beside_the_papers(rows))
    return "\n\n".join(parts) + "\n"


def _unlike_the_papers(record: Mapping[str, Any]) -> Iterator[str]:
    """Settings that the scale has otherwise than the paper's own, whose values follow in brackets."""
    own, paper = record["settings"], settings_of(EXPERIMENTS[record["experiment"]].at("paper"))
    # A table of several models has their settings one by one.
    pairs = [(own, paper)] if "models" not in own else zip(own["models"], paper["models"], strict=False)
    for ours, papers in pairs:
        of = f"{ours['model']}: " if "models" in own else ""
        for name, value in ours.items():
            if name in _SHORTER and value != papers.get(name):
                yield f"{of}{name} {_said(value)} ({_said(papers.get(name))})"


_SHORTER = ("retain", "others", "training", "epochs", "max_length", "task", "seeds")
"""Settings of data and length: a smaller scale has less of them."""


def _said(value: Any) -> str:
    """A setting in a word."""
    if isinstance(value, list):
        return ", ".join(each["task"] for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)


def _beside_the_papers(rows: list[dict[str, Any]]) -> str:
    """Every cell that the paper has a number for."""
    lines = [
        "| what | the paper's | ours | 95% interval | runs | stand-in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        names = ("block", "column", "model", "label", "target", "optimizer", "lr")
        what = ", ".join(str(row[name]) for name in names if row.get(name))
        stand_in = "yes" if row["stand_in"] else ""
        paper = percent(row["paper"]) if isinstance(row["paper"], float) else row["paper"]
        runs, diverged = row.get("runs", len(row["seeds"])), row.get("diverged", 0)
        ended = f"{runs}" + (f", {diverged} diverged" if diverged else "")
        ended += f", {row['collapsed']} collapsed" if row.get("collapsed") else ""
        ours = NONE if diverged == runs else percent(row["measured"])
        ci = NONE if diverged == runs else interval(row["ci"]) or NONE
        lines.append(f"| {what} | {paper} | {ours} | {ci} | {ended} | {stand_in} |")
    return "\n".join(lines)
