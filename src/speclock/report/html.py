"""The page: an audit's record in, one HTML file out that asks nothing of a network."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from speclock import numbers
from speclock.audits.compare import FORMAT as COMPARE_FORMAT
from speclock.audits.record import FORMAT, TARGETS
from speclock.errors import InputError
from speclock.numbers import finite, percent
from speclock.report import plots
from speclock.report import runs as _runs
from speclock.report.plots import Record
from speclock.workspace import write_text

TARGET_WORDS = {
    "base": "the model before locking",
    "scratch": "the same architecture, freshly initialised: what an attacker has without the weights",
    "control": "the lock's training with its spectral term off: what mere further training does",
    "locked": "the model under audit",
}


def render(record: Record) -> str:
    """The page for an audit's record (the parsed ``audit.json``), as HTML.

    The same record gives the same bytes. Whatever the record lacks is named as lacking, never shown as 0.

    Raises:
        InputError: the record is not of the format that this version reads.
    """
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise InputError(
            f"not an audit record: format is {found!r}, expected {FORMAT!r}. Pass the audit.json that "
            "`speclock audit` wrote."
        )
    return _environment().get_template("report.html.j2").render(view(record))


def write(record: Record, path: str | os.PathLike[str]) -> None:
    """Render the record to ``path``; a reader sees the old file or the whole new one.

    Raises:
        InputError: the record is of another format, or the file cannot be written.
    """
    # A lone surrogate in a name must not cost the reader the page.
    page = render(record).encode("utf-8", errors="replace").decode()
    write_text(Path(path), page)


def write_comparison(comparison: Record, path: str | os.PathLike[str]) -> None:
    """Render a comparison (the parsed ``compare.json``) to ``path``, whole or not at all.

    Raises :class:`InputError` for a record of another format, or a file that cannot be written.
    """
    found = comparison.get("format") if isinstance(comparison, dict) else None
    if found != COMPARE_FORMAT:
        raise InputError(f"not a comparison: format is {found!r}, expected {COMPARE_FORMAT!r}.")
    page = (
        _environment()
        .get_template("compare.html.j2")
        .render(
            record=comparison,
            figure={
                "wide": plots.comparison(comparison),
                "narrow": plots.comparison(comparison, narrow=True),
            },
        )
    )
    write_text(Path(path), page.encode("utf-8", errors="replace").decode())


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("speclock.report"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "interval", "significant", "times", "duration", "plain"):
        environment.filters[name] = getattr(numbers, name)
    environment.globals["setting"] = numbers.setting
    return environment


def view(record: Record) -> dict[str, Any]:
    """The record as the template wants it: every number found, every figure drawn."""
    runs = [run for run in record.get("runs") or [] if isinstance(run, dict)]
    record = {**record, "runs": runs}
    summary = record.get("summary") or {}
    return {
        "record": record,
        "summary": summary,
        "card": (record.get("locked") or {}).get("card") or {},
        "flags": record.get("flags") or [],
        "scores": _scores(summary),
        "chance": finite(summary.get("chance")),
        "target": finite(summary.get("target")),
        "utility_change": _utility_change(summary),
        "uplift": finite(summary.get("uplift")),
        "slowdown": numbers.times(summary.get("slowdown")),
        "tasks": _tasks(record),
        "stand_ins": [name for name in ("retain_task", "attack_task") if _stand_in(record.get(name))],
        "figures": {
            draw.__name__: {"wide": draw(record), "narrow": draw(record, narrow=True)}
            for draw in (plots.score_curves, plots.sweep_map, plots.spectra, plots.lock_curve)
        },
        "heat": plots.heat_range(record),
        "changed": _most_changed(record),
        "matrices": len(record.get("spectra") or []),
        "statuses": Counter(str(run.get("status")) for run in runs),
        "seeds": sorted({str(run["seed"]) for run in runs if run.get("seed") is not None}),
        "rows": _rows(runs),
        "long_verdict": len(str(record.get("verdict"))) > 140,
        "environment": record.get("environment") or {},
    }


def _scores(summary: Record) -> list[dict[str, Any]]:
    """One line per target of the score panel, on an axis from 0 to 100%."""
    intervals = summary.get("intervals") or {}
    rows = []
    for target in TARGETS:
        score, bounds = finite(summary.get(f"best_{target}")), intervals.get(f"best_{target}") or []
        row: dict[str, Any] = {
            "target": target,
            "words": TARGET_WORDS[target],
            "score": score,
            "place": _place(score),
        }
        row["interval"] = numbers.interval(bounds)
        if row["interval"]:
            low, high = (_place(end) for end in bounds)
            row |= {"low": low, "width": round(max(0.0, high - low), 2)}
        rows.append(row)
    return rows


def _place(score: float | None) -> float:
    """Where a score stands on an axis, in percent of its length."""
    return round(100 * min(max(score or 0.0, 0.0), 1.0), 2)


def _utility_change(summary: Record) -> str:
    before, after = finite(summary.get("utility_base")), finite(summary.get("utility_locked"))
    return "" if before is None or after is None else numbers.points(after - before)


def _stand_in(task: Any) -> str:
    """What the task's data stand in for; empty where they are the real ones."""
    named = ((task or {}).get("source") or {}).get("stand_in")
    if named is True:
        return "the paper's data"
    return str(named) if named else ""


def _tasks(record: Record) -> list[dict[str, Any]]:
    """Both tasks, each with its part in the audit."""
    parts = (("retain_task", "Retain task", "utility"), ("attack_task", "Attack task", "score"))
    return [
        {"key": key, "part": part, "measures": measures, "stand_in": _stand_in(task), **task}
        for key, part, measures in parts
        if (task := record.get(key))
    ]


def _most_changed(record: Record) -> list[dict[str, Any]]:
    """The ten matrices whose σ₁ changed by the largest factor, up or down."""
    pairs = sorted(plots.sigma_pairs(record), key=lambda pair: -max(pair[3] / pair[2], pair[2] / pair[3]))
    return [
        {
            "name": name,
            "shape": "×".join(map(str, shape)) if isinstance(shape, list | tuple) else numbers.plain(shape),
            "base": before,
            "locked": after,
            "ratio": f"{after / before:.2f}×",
        }
        for name, shape, before, after in pairs[:10]
    ]


def _settings(run: Record) -> str:
    """What is not at its default, where the run says so, else everything that has no column of its own."""
    if run.get("label"):
        inside = re.search(r"\((.*)\)", str(run["label"]))
        return inside[1] if inside else ""
    return ", ".join(
        f"{name}={numbers.setting(name, value)}"
        for name, value in (run.get("config") or {}).items()
        if name not in ("optimizer", "lr", "clip", "seed") and value is not None
    )


def _rows(runs: list[Record]) -> list[dict[str, Any]]:
    """The table of runs: by target, then from the strongest down; runs without a score last."""
    curves = [_runs.curve(run) for run in runs]
    last = max((points[-1][0] for points in curves if points), default=1.0)
    scores = [score for points in curves for _, score in points]
    low, high = min([0.0, *scores]), max([1.0, *scores])

    rows = []
    for run, points in zip(runs, curves, strict=True):
        config = run.get("config") or {}
        rows.append(
            {
                **run,
                "target": run.get("target"),
                "known": run.get("target") in TARGETS,
                "optimizer": config.get("optimizer"),
                "lr": numbers.rate(config.get("lr")),
                "clip": config.get("clip"),
                "other": _settings(run),
                "score": percent(_runs.best(run)),
                "spark": plots.sparkline(points, last, low, high),
            }
        )

    def rank(row: Record) -> tuple[int, float]:
        score = _runs.best(row)
        order = TARGETS.index(row["target"]) if row["known"] else len(TARGETS)
        return order, -score if score is not None else 2.0

    return sorted(rows, key=rank)
