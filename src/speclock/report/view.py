"""The record as the page's template wants it: every number found, every figure drawn."""

from __future__ import annotations

from collections import Counter
from typing import Any

from speclock import numbers
from speclock.audits.metrics import at_target, perplexity_change
from speclock.audits.record import FLOOR, Record, RunRecord
from speclock.numbers import finite
from speclock.report import plots
from speclock.report import runs as _runs
from speclock.report.plots.scores import WORDS, floor_words
from speclock.report.runs import ORDER
from speclock.tasks.base import is_proportion

FIGURES = (plots.best_scores, plots.score_curves, plots.rate_map, plots.sigmas, plots.lock_curve)


def view(record: Record) -> dict[str, Any]:
    """Everything that the template shows."""
    summary, runs = record.summary, record.runs
    return {
        "record": record,
        "summary": summary,
        "intervals": summary.get("intervals") or {},
        "locked": record.locked,
        "card": record.locked.get("card") or {},
        "student": record.base.get("student") or {},
        "budget": _budget(record),
        "void": any(flag.name == "nothing_to_protect" for flag in record.flags),
        "floor_words": floor_words(record) if finite(summary.get("floor")) is not None else "",
        "utility_change": _utility_change(record),
        "worth_unit": numbers.unit(record.attack_task.get("metric")),
        "likelihood": record.retain_task.get("metric") == "likelihood",
        "slowdown": _slowdown(summary),
        "at_target": at_target(record),
        "lost": _lost(runs),
        "tasks": _tasks(record),
        "models": _models(record),
        "stand_ins": [key for key in ("retain_task", "attack_task") if _stand_in(getattr(record, key))],
        "figures": {
            draw.__name__: {"wide": draw(record), "narrow": draw(record, narrow=True)} for draw in FIGURES
        },
        "heat": plots.heat_range(record),
        "targets": _targets(record),
        "samples": _samples(record),
        "families": _families(record),
        "columns": [target for target in ORDER if any(target in _of(row) for row in record.families)],
        "changed": _most_changed(record),
        "matrices": len(record.spectra),
        "statuses": Counter("stopped early" if run.pruned_at is not None else run.status for run in runs),
        "collapsed": any(run.status == "collapsed" for run in runs),
        # Runs that were there already are not in its seconds; no more go at a time than there are cores.
        "some_kept": sum(run.seconds for run in runs)
        > 1.2 * record.environment.get("cores", 1) * record.seconds,
        "searches": sum(run.stage == "search" for run in runs),
        "finals": sum(run.stage == "final" for run in runs),
        "seeds": record.suite.get("seeds") or [],
        "beside": sorted({name for run in runs for name in run.beside}),
        "rows": _rows(runs),
        "long_verdict": len(record.verdict) > 140,
    }


def _budget(record: Record) -> dict[str, Any]:
    """Steps of a run, as asked for and as extended."""
    steps, budget = record.suite.get("steps"), record.suite.get("budget")
    return {"steps": steps, "budget": budget or steps, "extended": bool(budget and steps and budget != steps)}


def _utility_change(record: Record) -> str:
    before, after = (finite(record.summary.get(f"utility_{name}")) for name in ("base", "locked"))
    if before is None or after is None:
        return ""
    metric = record.retain_task.get("metric")
    return numbers.points(after - before, metric) + (
        "" if is_proportion(str(metric)) else perplexity_change(record)
    )


def _slowdown(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Slowdown by what is counted."""
    rows = []
    for key, of in (
        ("slowdown", "steps"),
        ("slowdown_examples", "examples"),
        ("slowdown_tflops", "operations"),
    ):
        value = summary.get(key)
        rows.append({"of": of, "value": numbers.times(value), "censored": isinstance(value, str)})
    return rows


def _lost(runs: list[RunRecord]) -> str:
    """What became of the runs on the locked model where none has a score; empty where one has."""
    found = [run for run in runs if run.target == "locked"]
    if not found or any(_runs.best(run) is not None for run in found):
        return ""
    counts = Counter(run.status for run in found)
    return f"all {len(found)} runs on it were lost: " + ", ".join(
        f"{count} {status}" for status, count in sorted(counts.items())
    )


def _stand_in(task: dict[str, Any]) -> str:
    """What the task's data stand in for; empty where they are the real ones."""
    named = (task.get("source") or {}).get("stand_in")
    if named is True:
        return "the paper's data"
    return str(named) if named else ""


def _tasks(record: Record) -> list[dict[str, Any]]:
    """Both tasks, each with its part in the audit."""
    parts = (("retain_task", "Retain task", "utility"), ("attack_task", "Attack task", "score"))
    return [
        {"key": key, "part": part, "measures": measures, "stand_in": _stand_in(task), **task}
        for key, part, measures in parts
        if (task := getattr(record, key))
    ]


def _models(record: Record) -> list[tuple[str, dict[str, Any]]]:
    """Every model that took part, as it was handed in."""
    others = [("Public model", record.suite.get("public_base") or {})]
    others += [("Sibling", sibling) for sibling in record.suite.get("siblings") or []]
    return [("Base", record.base), ("Locked", record.locked), *others]


def _targets(record: Record) -> list[dict[str, Any]]:
    """What was attacked: the strongest attack on each, its score, and how many runs went to the end."""
    summary = record.summary
    rows = []
    for target in ORDER:
        complete = (summary.get("complete") or {}).get(target) or {}
        picked = _runs.strongest(record, target)
        if not complete.get("runs") and not picked:
            continue
        rows.append(
            {
                "target": target,
                "words": WORDS[target],
                "floor": target in FLOOR,
                "attack": (summary.get("strongest_attacks") or {}).get(target),
                "test": summary.get(f"best_{target}"),
                "interval": numbers.interval((summary.get("intervals") or {}).get(f"best_{target}")),
                "validation": _runs.mean_best(record, picked),
                "seeds": len(picked),
                "without": sum(run.test is None for run in picked),
                "runs": complete.get("runs"),
                "to_the_end": complete.get("to_the_end"),
                "collapsed": sum(run.target == target and run.status == "collapsed" for run in record.runs),
            }
        )
    return rows


def _samples(record: Record) -> list[dict[str, Any]]:
    """What the models write, prompt by prompt: of the retain task base and locked model, of the attack task the
    attacked one too."""
    picked = _runs.strongest(record, "locked")
    attacked = next((run.samples for run in picked if run.samples), [])
    tables = []
    for name, by_model in record.samples.items():
        columns = [by_model["base"], by_model["locked"]] + [attacked] * (name == "attack" and bool(attacked))
        asked = [prompt for prompt, _ in by_model["base"]]
        written = [[text for _, text in column] for column in columns]
        tables.append(
            {
                "task": record.retain_task["name"] if name == "retain" else record.attack_task["name"],
                "columns": ["base", "locked", "locked, attacked"][: len(columns)],
                "rows": list(zip(asked, zip(*written, strict=True), strict=True)),
            }
        )
    return tables


def _of(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = row.get("targets") or {}
    return found


def _families(record: Record) -> list[dict[str, Any]]:
    """The families, those that count first, from the strongest on the locked model down."""
    collapsed = Counter(
        (run.family, run.target) for run in record.runs if run.stage == "search" and run.status == "collapsed"
    )
    rows = []
    for row in record.families:
        cells = {
            target: {
                **seen,
                "lost": ", ".join(
                    f"{count} {word}"
                    for word, count in (
                        ("failed", seen.get("failed")),
                        ("diverged", seen.get("diverged")),
                        ("collapsed*", collapsed[row.get("family", ""), target]),
                    )
                    if count
                ),
            }
            for target, seen in _of(row).items()
        }
        rows.append({**row, "cells": cells})

    def rank(row: dict[str, Any]) -> tuple[bool, float, str]:
        best = finite((row["cells"].get("locked") or {}).get("best"))
        return bool(row.get("inert")), -best if best is not None else 2.0, str(row.get("family"))

    return sorted(rows, key=rank)


def _most_changed(record: Record) -> list[dict[str, Any]]:
    """The ten matrices whose σ₁ changed by the largest factor, up or down."""
    pairs = sorted(plots.sigma_pairs(record), key=lambda pair: -max(pair[3] / pair[2], pair[2] / pair[3]))
    return [
        {
            "name": name,
            "shape": "×".join(map(str, shape)) if isinstance(shape, list | tuple) else numbers.plain(shape),
            "base": before,
            "locked": after,
            "ratio": f"{numbers.ratio(after / before)}×",
        }
        for name, shape, before, after in pairs[:10]
    ]


def _rows(runs: list[RunRecord]) -> list[dict[str, Any]]:
    """The table of runs: by target, the finalists first, then from the strongest down; the lost ones last."""
    curves = [_runs.curve(run) for run in runs]
    scores = [score for points in curves for _, score in points]
    low, high = min([0.0, *scores]), max([1.0, *scores])

    def rank(pair: tuple[RunRecord, _runs.Curve]) -> tuple[int, bool, float]:
        run, score = pair[0], _runs.best(pair[0])
        order = ORDER.index(run.target) if run.target in ORDER else len(ORDER)
        return order, run.stage != "final", -score if score is not None else 2.0

    return [
        {
            "run": run,
            "known": run.target in ORDER,
            "best": _runs.best(run),
            "ruined": _runs.ruined(run),
            # As wide as the run's own budget: scratch has several times that of the others.
            "spark": plots.sparkline(points, max([run.steps, *(step for step, _ in points)]), low, high),
        }
        for run, points in sorted(zip(runs, curves, strict=True), key=rank)
    ]
