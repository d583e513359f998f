"""One page from the records: every table and figure of the paper, claim by claim."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from speclock.experiments import EXPERIMENTS
from speclock.experiments.base import Experiment, made_on, made_otherwise, settings_of
from speclock.experiments.claims import Finding, learnt_from, name_of, spread
from speclock.numbers import NONE, interval, percent, short

_HEAD = """# The paper, claim by claim

Written by `speclock reproduce all`, from the records beside the figures; verdicts follow from rules, and none is
typed. *As printed* is the paper's own setting, but for what each part names as ours or as unlike it; *under the
search* an audit with as many steps looks for each optimizer's best rate, repairs the spectrum first, and counts from
the floor that an attacker has without the weights (training from scratch may take eight times as many steps). A score
is the mean over seeds of the runs that did not diverge, with the lowest and the highest in brackets; of *the best* it
is an audit's, a seed without a score at the floor, with its 95% interval. Intervals beside the paper's numbers are
Student's. Where the base is worth no more than the floor, a claim is about trainability alone, and is judged by
whether any training on the locked model works, a seed without a score at chance. A model has learnt where it comes
ten points above chance, or above what it scores as it is, and a fifth of the way from there to a perfect score where
that is less (an F1 of one label for all is chance, two thirds). Attacks and rates are chosen on validation examples
and quoted on test ones, where another may have done better. That a lock keeps the utility to within a point, or to
within what the paper's own costs where that is more, is said where the whole 95% interval of the change lies above
that: with a few hundred test examples it seldom can.

*Floor*: what the attacker has without the weights, by the best (on validation) of training from scratch, classical
models, and the public model where the base was made from one; of a task that the model's own head answers, the model
as released too. *Control*: the same training as the lock's, without the lock. *Probe*: a new head alone, which trains
nothing beneath it. *Clip*: large singular values cut down before training. *Heal*: some steps on what the model is
kept for before training. Printed attacks keep the model's own head where it has as many outputs as the task has
labels, and do not clip gradients; the search gives every model a fresh head, but for tasks that its own answers (a
class relearnt, a backdoor), and searches each optimizer's rate with gradients clipped, beside the printed attack
without (L-BFGS: without). Of several settings of a lock one *locks* where the best attack stays ten points below what
the base gives. *undo* draws most of the weights anew and teaches them the base's answers, *scheduled* raises singular
values by a schedule; both are ours ([docs/locks.md](locks.md)). A smaller scale has less data and shorter or fewer
attacks, locks and searches; what of the settings differs is named in each part. Flags are explained in
[docs/threat-model.md](threat-model.md).
"""


def page(records: Mapping[str, dict[str, Any]], folder: Path, at: Path) -> str:
    """The page that is to lie at ``at``, of the records and figures in ``folder``."""
    link = Path(os.path.relpath(folder, at.parent)).as_posix()
    parts = [_HEAD, _at_a_glance(records)]
    for name, record in records.items():
        experiment: Experiment = EXPERIMENTS[name].at(record["scale"])
        parts.append(
            f"## {experiment.title}\n\n"
            f"`speclock reproduce {name} --scale {record['scale']} --out {folder.as_posix()}`: "
            f"{len(record['rows'])} rows, "
            f"{record['seconds']:.0f} s{' in its last part' if record.get('resumed') else ''}, "
            f"{_made_on(record)}."
            + (
                " **Made with other settings or rules than the command's of today.**"
                if made_otherwise(record)
                else ""
            )
        )
        if unfinished := record.get("unfinished"):
            parts.append(f"**Not finished: {', '.join(unfinished)}.**")
        if experiment.departures:
            parts.append(f"Ours: {'; '.join(experiment.departures)}.")
        if unlike := list(_unlike_the_papers(record)):
            parts.append(f"Other than at `--scale paper`, in brackets: {'; '.join(unlike)}.")
        if instead := sorted({row["instead"] for row in record["rows"] if row.get("instead")}):
            parts.append(f"Stand-ins: {'; '.join(instead)}.")
        if claims := experiment.claims(record["rows"]):
            lines = ["| claim | as printed | under the search |", "| --- | --- | --- |"]
            lines += [f"| {c.claim} | {_told(c.as_printed)} | {_told(c.under_search)} |" for c in claims]
            parts.append("\n".join(lines))
        parts.append(f"![{experiment.title}]({link}/{name}.png)")
        parts += _blocks(record["rows"])
        parts += _audits(record["rows"])
        parts += _of_the_weights(record["rows"])
        if rows := [row for row in record["rows"] if row["paper"] is not None and "block" in row]:
            parts.append(_beside_the_papers(rows))
    return "\n\n".join(parts) + "\n"


def _at_a_glance(records: Mapping[str, dict[str, Any]]) -> str:
    """Every claim's verdicts, each once with what it is of; the evidence is further down."""
    missing = [name for name in EXPERIMENTS if name not in records]
    lines = [f"**Not run yet: {', '.join(missing)}.**\n"] if missing else []
    lines += ["| | claim | as printed | under the search |", "| --- | --- | --- | --- |"]
    for name, record in records.items():
        for claim in EXPERIMENTS[name].at(record["scale"]).claims(record["rows"]):
            said = [_verdicts(findings) for findings in (claim.as_printed, claim.under_search)]
            lines.append(f"| {name} | {claim.claim} | {' | '.join(said)} |")
    return "## At a glance\n\n" + "\n".join(lines)


def _verdicts(findings: Iterable[Finding]) -> str:
    of: dict[str, list[str]] = {}
    for finding in findings:
        of.setdefault(finding.verdict, []).append(finding.of)
    lines = [
        f"**{verdict}**" + (f" ({', '.join(names)})" if any(names) else "") for verdict, names in of.items()
    ]
    return "<br>".join(lines) or NONE


def _told(findings: Iterable[Finding]) -> str:
    return "<br>".join(finding.marked("**") for finding in findings) or NONE


def _made_on(record: Mapping[str, Any]) -> str:
    """torch and the processor or device; of several models, all that their rows were made on."""
    places = [row["made_on"] for row in record["rows"] if "made_on" in row] or [
        made_on(record["environment"])
    ]
    return " and ".join(dict.fromkeys(f"torch {place['torch']}, {place['device']}" for place in places))


def _unlike_the_papers(record: Mapping[str, Any]) -> Iterator[str]:
    """Settings that the scale has otherwise than the paper's own, whose values follow in brackets."""
    own, paper = record["settings"], settings_of(EXPERIMENTS[record["experiment"]].at("paper"))
    # A table of several models has their settings one by one.
    pairs = [(own, paper)] if "models" not in own else zip(own["models"], paper["models"], strict=False)
    for ours, papers in pairs:
        of = f"{ours['model']}: " if "models" in own else ""
        for name, value in ours.items():
            if name in _SHORTER and value != papers.get(name):
                yield f"{of}{_SHORTER[name]}: {_said(value)} ({_said(papers.get(name))})"


_SHORTER = {
    "retain": "kept task",
    "others": "tasks attacked for",
    "task": "task",
    "training": "training of the base",
    "unlearning": "unlearning",
    "epochs": "epochs of an attack",
    "max_length": "tokens of a text at most",
    "seeds": "seeds",
    "lock": "lock",
    "lock_seeds": "draws of the lock",
    "other_rates": "other rates of the lock",
    "proxy": "task that the lock is tuned on",
    "trials": "settings of the lock tried",
    "our_locks": "our locks",
    "ours_on": "our locks are audited on these columns alone",
    "our_controls": "our locks have a control",
    "informed": "repairs and probes in the search",
    "finalists": "finalists of an audit",
    "our_finalists": "finalists of our locks' audits, where not as many",
    "from_scratch": "a fresh network is trained for the floor",
    "curvature_samples": "samples of σ_max(H), where not one for each seed",
}
"""Settings of data, length and search, of which a smaller scale has less, in words."""


def _said(value: Any) -> str:
    """A setting in a word."""
    if value is None or isinstance(value, bool):
        return {None: NONE, True: "yes", False: "no"}[value]
    if isinstance(value, list):
        each = [found["task"] if isinstance(found, dict) else str(found) for found in value]
        return ", ".join(each) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)


def _blocks(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table for each column of the paper's: as printed, at the best rate, under the whole search, the floor."""
    found = [row for row in rows if row.get("column") and row.get("block") in _BLOCKS]
    for model, column in dict.fromkeys((row.get("model"), row["column"]) for row in found):
        cells: dict[tuple[str, str], dict[str, str]] = {}
        floors: dict[tuple[str, str], str] = {}
        of = [row for row in found if (row.get("model"), row["column"]) == (model, column)]
        for row in of:
            block, target = row["block"], row["target"]
            if block == "searched":
                # The base's own row stands first, and is that of every lock.
                names = (
                    [_lock(row)]
                    if row["lock"]
                    else list(
                        dict.fromkeys(
                            _lock(other) for other in of if other["block"] == block and other["lock"]
                        )
                    )
                )
                at = [(_BLOCKS[block], name) for name in names]
                floors |= dict.fromkeys(at, f"{percent(row['floor'])} ({row['floor_by'] or 'chance'})")
            else:
                # One optimizer may be printed at several rates.
                rate = f" at {short(row['lr'])}" if block == "as printed" else ""
                at = [(_BLOCKS[block], row["optimizer"] + rate)]
            for place in at:
                cells.setdefault(place, {})[target] = _cell(row)
        if not cells:
            continue
        steps = ", ".join(str(n) for n in dict.fromkeys(row["steps"] for row in of if "steps" in row))
        title = (
            f"**{column}**"
            + (f", {model}" if model else "")
            + (f", attacks of {steps} steps" if steps else "")
        )
        lines = ["| block | by | base | control | locked | floor |", "| --- | --- | --- | --- | --- | --- |"]
        for (block, name), by in cells.items():
            scores = " | ".join(by.get(target, NONE) for target in ("base", "control", "locked"))
            lines.append(f"| {block} | {name} | {scores} | {floors.get((block, name), NONE)} |")
        yield title + "\n\n" + "\n".join(lines)


_BLOCKS = {
    "as printed": "as printed",
    "at its best": "searched, each optimizer",
    "searched": "searched, the best, whether it trains or not",
}


def _lock(row: dict[str, Any]) -> str:
    return name_of(row["lock"]) + (" (tuned)" if row.get("tuned_on") else "")


def _audits(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The audits' own sentences, which tell what a lock costs on inputs a little off the test split too, and every flag
    that they raise."""
    found = [row for row in rows if row.get("block") == "searched" and row["target"] == "locked"]
    if not found:
        return
    lines = ["| lock | its audit | flags |", "| --- | --- | --- |"]
    for row in found:
        name = ", ".join(each for each in (_lock(row), row["column"], row.get("model")) if each)
        lines.append(f"| {name} | {row['verdict']} | {', '.join(row['flags']) or NONE} |")
    what = (
        "of the first draw of each lock, by what its weights are worth beyond the floor; where a verdict above says "
        "that this cannot be told from noise, or that training alone is judged, its shares mean nothing"
    )
    yield f"**What the audits say**, {what}\n\n" + "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    """A score with its rate and what qualifies it."""
    runs, diverged = row.get("runs", len(row["seeds"])), row.get("diverged", 0)
    if row.get("scored") is False:
        return "no score"
    if diverged and diverged == runs:
        return "diverged"
    said = percent(row["measured"])
    said += f" ({interval(row['ci'])})" if row["block"] == "searched" and row["ci"] else spread(row["seeds"])
    if row["block"] == "searched" and row.get("strongest_attack"):
        said += f" by {row['strongest_attack']}"
        said += "".join(f", {what} {percent(score)}" for what, score in row.get("beside", {}).items())
    if row["block"] == "at its best":
        low, high = (short(end) for end in row["rates"] or (row["lr"],) * 2)
        if max(row["seeds"]) <= learnt_from(row):
            said += f", near chance at every rate from {low} to {high}"
        else:
            said += f" at {short(row['lr'])} of {low} to {high}"
    if diverged:
        said += f", {diverged} of {runs} diverged"
    if row.get("collapsed"):
        said += f", {row['collapsed']} of {runs} collapsed"
    if row.get("split") == "validation":
        said += " (validation, one seed)"
    return said


def _of_the_weights(rows: list[dict[str, Any]]) -> Iterator[str]:
    """σ₁ and σ_max(H) of the base and of every lock, a value for each draw or sample."""
    found = [row for row in rows if row.get("block") in ("spectrum", "curvature")]
    for model in dict.fromkeys(row.get("model") for row in found):
        names = ("", "mean σ₁, by draw", "largest σ₁", "σ_max(H), by sample, head and draw")
        lines = [f"| {' | '.join(names)} |", "| --- | --- | --- | --- |"]
        by_lock: dict[str, dict[str, dict[str, Any]]] = {}
        for row in found:
            if row.get("model") == model:
                by_lock.setdefault(row["lock"], {})[row["block"]] = row
        for number, (lock, of) in enumerate(by_lock.items()):
            # The paper's lock may have been tuned: it is there twice.
            name = name_of(lock) + (" (tuned)" if number > 1 and name_of(lock) == "specdef" else "")
            name = name or next(iter(of.values())).get("called") or "base"
            spectrum, curvature = (of.get(block) for block in ("spectrum", "curvature"))
            cells = [
                _values(spectrum["seeds"]) if spectrum else NONE,
                f"{spectrum['largest']:.3g}" if spectrum else NONE,
                _values(curvature["seeds"]) if curvature else NONE,
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        yield "**Of the weights**" + (f", {model}" if model else "") + "\n\n" + "\n".join(lines)


def _values(values: list[float]) -> str:
    return ", ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values)


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
        # To the digits that the paper has.
        paper = f"{100 * row['paper']:.4g}%" if isinstance(row["paper"], float) else row["paper"]
        paper += f" ({row['remark']})" if row.get("remark") else ""
        runs, diverged = row.get("runs", len(row["seeds"])), row.get("diverged", 0)
        ended = f"{runs}" + (f", {diverged} diverged" if diverged else "")
        ended += f", {row['collapsed']} collapsed" if row.get("collapsed") else ""
        ours = NONE if diverged == runs else percent(row["measured"])
        ci = NONE if diverged == runs else interval(row["ci"]) or NONE
        lines.append(f"| {what} | {paper} | {ours} | {ci} | {ended} | {stand_in} |")
    return "\n".join(lines)
