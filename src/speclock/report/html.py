"""The page: an audit's record in, one HTML file out that asks nothing of a network."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import ChainableUndefined, Environment, PackageLoader

from speclock import numbers
from speclock.audits.compare import Comparison
from speclock.audits.record import Record
from speclock.report import plots
from speclock.report.view import view
from speclock.workspace import write_text

if TYPE_CHECKING:
    from speclock.audits.tune import Frontier


def render(record: Record) -> str:
    """The page for an audit's record, as HTML.

    The same record gives the same bytes, read back from `audit.json` or not. Whatever the record lacks is named as
    lacking, never shown as 0.
    """
    return _environment().get_template("report.html.j2").render(view(record))


def write(record: Record, path: str | os.PathLike[str]) -> None:
    """Render the record to ``path``; a reader sees the old file or the whole new one.

    Raises :class:`InputError` for a file that cannot be written.
    """
    _write(render(record), path)


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Render a comparison to ``path``, whole or not at all.

    Raises :class:`InputError` for a file that cannot be written.
    """
    page = (
        _environment()
        .get_template("compare.html.j2")
        .render(
            record=comparison,
            figure={
                "wide": plots.trade_off(comparison),
                "narrow": plots.trade_off(comparison, narrow=True),
            },
            with_student=any(row.excess is not None for row in comparison.locks),
            extended=[row.name for row in comparison.locks if row.budget != comparison.suite.get("steps")],
        )
    )
    _write(page, path)


def write_frontier(frontier: Frontier, path: str | os.PathLike[str]) -> None:
    """Draw what a search over locks found to ``path``, as SVG.

    Raises :class:`InputError` for a file that cannot be written.
    """
    _write(plots.search_frontier(frontier), path)


def _write(page: str, path: str | os.PathLike[str]) -> None:
    # A lone surrogate in a name must not cost the reader the page.
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
    for name in (
        "percent", "points", "interval", "ratio", "between", "significant", "times", "duration", "plain", "rate",
    ):  # fmt: skip
        environment.filters[name] = getattr(numbers, name)
    environment.globals |= {
        "setting": numbers.setting,
        "times": numbers.times,
        "points": numbers.points,
        "more_or_less": numbers.more_or_less,
    }
    return environment
