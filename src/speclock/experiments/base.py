"""What every experiment shares: scales, rows, and the files that it leaves."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tqdm.auto import tqdm

from speclock.audits.workers import workers
from speclock.environment import Meter, environment
from speclock.errors import InputError
from speclock.experiments import EXPERIMENTS
from speclock.workspace import Workspace, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from speclock.experiments.claims import Claim

SCALES = ("smoke", "small", "paper")
"""A minute, minutes to hours on two cores, and what the paper ran."""

Row = dict[str, Any]


def row(
    measured: Sequence[float], *, paper: float | str | None = None, instead: str | None = None, **what: Any
) -> Row:
    """One row of a record: what was measured, its mean over seeds, and the paper's value beside it.

    ``instead`` says which data or model stands in for which of the paper's.

    >>> row([1.0, 3.0], kappa=10.0)["measured"]
    2.0
    """
    return {
        **what,
        "paper": paper,
        "measured": fmean(measured),
        "ci": interval(measured),
        "seeds": list(measured),
        "stand_in": instead is not None,
        "instead": instead,
    }


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """One figure or table. Its fields are its settings; :meth:`at` has those of each scale."""

    name: ClassVar[str]
    title: ClassVar[str]
    scales: ClassVar[dict[str, dict[str, Any]]]
    """The settings that differ from the defaults, which are the paper's, by scale."""
    departures: ClassVar[tuple[str, ...]] = ()
    """What is ours at any scale, where the paper gives nothing or has what nobody else has."""
    rules: ClassVar[str | None] = None
    """Those by which its audits are carried out (:data:`speclock.audits.run.RULES_OF_AUDITS`), where there are any."""

    @classmethod
    def at(cls, scale: str) -> Self:
        """The experiment at ``smoke``, ``small`` or ``paper`` scale."""
        return cls(**cls.scales[scale])

    @abstractmethod
    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        """Run it in ``jobs`` processes. What takes minutes is kept in ``kept``, from which a killed run goes on."""

    def growing(self, kept: Path, jobs: int = 1) -> Iterator[list[Row]]:
        """The rows so far, whenever a part that can stand by itself is finished; all of them in the end."""
        yield self.rows(kept, jobs)

    def unfinished(self, rows: list[Row]) -> list[str]:
        """The parts that rows have not yet, by name."""
        return []

    @abstractmethod
    def draw(self, rows: list[Row]) -> Figure:
        """The figure, from the rows alone."""

    def claims(self, rows: list[Row]) -> list[Claim]:
        """What the record says of the paper's sentences; none by default."""
        return []

    def beside(self, rows: list[Row]) -> Mapping[str, str]:
        """Further files, name to content; none by default."""
        return {}


def reproduce(name: str, scale: str, out: Path, *, resume: bool = False, jobs: int = 1) -> dict[str, Any]:
    """Run an experiment and leave ``NAME.json``, ``NAME.svg`` and ``NAME.png`` in ``out``; returns the record.

    Of several models they are there as soon as one is finished, and the record says which are not; with ``resume`` such
    a run goes on. ``jobs`` processes share what runs and audits there are in it.

    Raises :class:`InputError` where ``out`` holds the record of another run.
    """
    if scale not in SCALES:
        raise InputError(f"scale is {scale!r}; use one of {', '.join(SCALES)}.")
    experiment: Experiment = EXPERIMENTS[name].at(scale)
    request = {
        "experiment": name,
        "scale": scale,
        "settings": settings_of(experiment),
        "rules": experiment.rules,
    }
    target = out / f"{name}.json"
    if target.exists():
        record: dict[str, Any] = json.loads(target.read_text())
        if not resume or _given({key: record.get(key) for key in request}) != _given(request):
            raise InputError(
                f"{target} is the record of {'another' if resume else 'an earlier'} run. "
                f"Choose another --out, or delete it."
            )
        if not record.get("unfinished"):
            return record
    out.mkdir(parents=True, exist_ok=True)
    # One row is not made of halves that other rules made.
    made_by = {**_given(request), "torch": environment()["torch"]}
    with Workspace(out / name, made_by, record=target.name, resume=resume) as work:
        growing, seconds, peak = experiment.growing(work.folder, jobs), 0.0, 0.0
        while True:
            with Meter() as meter:
                rows = next(growing, None)
            if rows is None:
                break
            seconds, peak = seconds + meter.seconds, max(peak, meter.peak_memory_mb)
            record = {
                "format": "speclock-experiment/1",
                **request,
                "title": experiment.title,
                "rows": rows,
                "unfinished": experiment.unfinished(rows),
                "seconds": round(seconds, 2),
                "resumed": work.resumed,  # then the seconds are those of its end
                "peak_memory_mb": peak,
                "environment": environment(),
            }
            save_figure(experiment, rows, out)
            for file, content in experiment.beside(rows).items():
                write_text(out / file, content)
            # Last: where it lies, everything does.
            write_text(target, json.dumps(record, indent=1))
    work.close()
    return record


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """As a record has them."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(experiment)))
    return settings


def made_on(machine: Mapping[str, Any]) -> dict[str, str]:
    """What a reader wants to know of an :func:`environment`."""
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    return {"device": device, "torch": machine["torch"]}


def made_otherwise(record: Mapping[str, Any]) -> bool:
    """Whether the experiment has other settings or rules today than when the record was made at its scale."""
    experiment: Experiment = EXPERIMENTS[record["experiment"]].at(record["scale"])
    there = _given(settings_of(experiment)) == _given(record["settings"])
    return not there or experiment.rules != record.get("rules")


def _given(settings: Any) -> Any:
    """What is set: a setting that came later and is None changes nothing."""
    if isinstance(settings, list):
        return [_given(each) for each in settings]
    if isinstance(settings, dict):
        return {name: _given(each) for name, each in settings.items() if each is not None}
    return settings


def once(file: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, JSON-able, in this run or in one before it that left it in ``file``."""
    if not file.exists():
        write_text(file, json.dumps(make()))
    return json.loads(file.read_text())


def each_once(made: Mapping[Path, Callable[[], Any]], jobs: int = 1, what: str = "runs") -> list[Any]:
    """What each gives, as :func:`once` has it; those that are missing are made in ``jobs`` processes, to which they
    must be sent."""
    missing = {file: make for file, make in made.items() if not file.exists()}
    with tqdm(desc=what, total=len(made), initial=len(made) - len(missing), unit="run", disable=None) as bar:
        if jobs == 1 or len(missing) < 2:
            for file, make in missing.items():
                once(file, make)
                bar.update()
        else:
            with workers(jobs) as pool:
                for found in as_completed([pool.submit(once, *each) for each in missing.items()]):
                    found.result()  # a failed one ends the experiment now
                    bar.update()
    return [once(file, make) for file, make in made.items()]


def save_figure(experiment: Experiment, rows: list[Row], out: Path) -> None:
    """Draw ``rows`` as SVG and PNG."""
    from matplotlib import style

    from speclock.report.plots import RC

    paper = {"figure.facecolor": "white", "svg.fonttype": "path", "text.parse_math": True, "font.size": 9}
    with style.context(["default", RC | paper]):
        figure = experiment.draw(rows)
        figure.savefig(out / f"{experiment.name}.svg", metadata={"Date": None})
        figure.savefig(out / f"{experiment.name}.png", dpi=200)


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t confidence interval of the mean; None for fewer than two values.

    >>> interval([0.8, 0.9, 1.0])
    (0.651..., 1.148...)
    """
    if len(values) < 2:
        return None
    from scipy.stats import sem, t

    middle, half = fmean(values), float(sem(values) * t.ppf((1 + level) / 2, len(values) - 1))
    return (middle - half, middle + half)
