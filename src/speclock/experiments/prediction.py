"""Rates and slowdowns foretold from curvature, against those found on locks of different strength."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, ClassVar

from scipy.stats import spearmanr
from tqdm import tqdm

from speclock import models
from speclock.curvature import largest_stable_rate
from speclock.experiments.base import Experiment, Row, row
from speclock.experiments.families import DIGITS, POSTS, SMOKE, Family
from speclock.forecast.effort import Effort, best_score, fewest_steps
from speclock.forecast.measurement import sharpness
from speclock.forecast.slowdown import OPTIMIZERS, Calibration, Range, fit_law, to_json
from speclock.forecast.stability import Found, largest_rate_found
from speclock.locks import LOCKS
from speclock.locks.base import lock
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.training import train
from speclock.workspace import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RATE, SLOWDOWN = "largest stable rate", "slowdown"
"""What is foretold, as the record's rows call it."""

_MARKERS = {"cnn-mlp": "o", "minilm": "s", "smoke": "o"}
_UNFINISHED = "^"


@dataclass(frozen=True, kw_only=True)
class Prediction(Experiment):
    """For every lock: curvature, the largest stable rate by bisection, and the slowdown by a race of rates.

    Laws are fitted on half of each family's locks, all families together, and held against the others.
    """

    families: tuple[Family, ...] = (DIGITS, POSTS)
    seed: int = 0

    name: ClassVar[str] = "prediction"
    title: ClassVar[str] = "Rates and slowdowns foretold from curvature"
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"families": (SMOKE,)},
        "small": {"families": (DIGITS,)},
        "paper": {},
    }

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        measured = [point for family in self.families for point in self._points(family, kept)]
        rows: list[Row] = []
        for optimizer in OPTIMIZERS:
            calibration = calibrate([p for p in measured if not p["held_out"]], optimizer)
            rows += _rows_of(measured, optimizer, calibration)
        return rows

    def _points(self, family: Family, kept: Path) -> list[dict[str, Any]]:
        """What was measured on the base and on every lock of a family; the base is the first."""
        held_out = family.held_out(self.seed)
        base: Model | None = None
        points: list[dict[str, Any]] = []
        for number in tqdm(
            range(len(family.all_locks) + 1), desc=f"prediction: {family.name}", unit="lock", disable=None
        ):
            file = kept / f"{family.name}-{number}.json"
            if not file.exists():
                base = base or self._base(family)
                model = base if number == 0 else self._locked(family, base, number)
                point = {
                    "family": family.name,
                    "lock": "none" if number == 0 else family.label(number),
                    "held_out": number in held_out,
                    "fresh": number in family.numbers_of_fresh,
                    **self._measured(family, model, points[0] if points else None),
                }
                write_text(file, json.dumps(point))
            points.append(json.loads(file.read_text()))
        for point in points:
            _compare_(point, points[0], family)
        return points

    def _base(self, family: Family) -> Model:
        model = models.load(family.model, labels=family.retain_task.labels)
        train(model, family.retain_task, TrainingRecipe(seed=self.seed, **family.training))
        return model

    def _locked(self, family: Family, base: Model, number: int) -> Model:
        name, settings = family.all_locks[number - 1]
        return lock(base, family.retain_task, LOCKS[name](seed=self.seed, **settings)).model

    def _measured(self, family: Family, model: Model, base: dict[str, Any] | None) -> dict[str, Any]:
        """One model's share; ``base`` is what was measured on the base, None for the base itself."""
        task = family.attack_task
        sharp = sharpness(model, task, samples=family.samples, seed=self.seed)
        trial = {"steps": family.stable_for, "samples": family.samples, "seed": self.seed}
        begin = sharp.rates | {"sgd": largest_stable_rate(sharp.start.value)}
        found: dict[str, Any] = {}
        targets: dict[str, list[float]] = {}
        efforts: dict[str, list[Effort]] = {}
        for optimizer in OPTIMIZERS:
            found[optimizer] = largest_rate_found(model, task, optimizer, begin[optimizer], **trial)._asdict()
            unit = begin["sgd"] if optimizer == "sgd" else 1.0
            rates = [unit * rate for rate in family.rates[optimizer]]
            targets[optimizer], efforts[optimizer] = [], []
            for repeat in range(family.repeats):
                race: dict[str, Any] = {"every": family.every, "seed": self.seed + repeat}
                if base is None:
                    best = best_score(model, task, optimizer, rates, family.steps, **race)
                    target, budget = task.chance + 0.9 * (best - task.chance), family.steps
                else:
                    target = base["targets"][optimizer][repeat]
                    budget = round(family.patience * base["efforts"][optimizer][repeat][0])
                targets[optimizer].append(target)
                efforts[optimizer].append(fewest_steps(model, task, optimizer, rates, target, budget, **race))
        return {
            "utility": family.retain_task.score(model),
            "theory": sharp.rates,
            "lambda": {name: largest.value for name, largest in sharp._asdict().items()},
            "found": found,
            "targets": targets,
            "efforts": efforts,
        }

    def beside(self, rows: list[Row]) -> Mapping[str, str]:
        return {"calibration.json": to_json(calibrations_in(rows))}

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas

        from speclock.report.plots import COLORS

        figure = Canvas(figsize=(6.6, 5.4), layout="constrained")
        grid = figure.subplots(2, 2)
        for line, quantity in enumerate((RATE, SLOWDOWN)):
            for axes, optimizer in zip(grid[line], OPTIMIZERS, strict=True):
                found = [r for r in rows if r["quantity"] == quantity and r["optimizer"] == optimizer]
                ends = [value for r in found for value in (r["predicted"], r["measured"])]
                low, high = min(ends) / 1.3, max(ends) * 1.3
                axes.plot([low, high], [low, high], color=COLORS["ink"], lw=1)
                axes.fill_between(
                    [low, high],
                    [low / 2, high / 2],
                    [low * 2, high * 2],
                    color=COLORS["rule"],
                    alpha=0.5,
                    lw=0,
                )
                for r in found:
                    color = COLORS["locked"] if r["held_out"] else COLORS["base"]
                    marker = _UNFINISHED if r.get("censored") else _MARKERS[r["family"]]
                    axes.plot(r["predicted"], r["measured"], marker, color=color, ms=5, mew=0, alpha=0.85)
                axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
                axes.set_title(
                    f"{quantity}, {optimizer.upper() if optimizer == 'sgd' else optimizer.capitalize()}",
                    fontsize=10,
                )
                axes.set_xlabel("predicted")
                axes.set_ylabel("measured")
        for label, color in (("calibration", "base"), ("held out", "locked")):
            grid[0, 0].plot([], [], "o", color=COLORS[color], ms=5, mew=0, label=label)
        grid[0, 0].legend(frameon=False, handletextpad=0.2)
        shapes = {family.name: _MARKERS[family.name] for family in self.families} | {
            "not there in time": _UNFINISHED
        }
        for label, marker in shapes.items():
            grid[1, 0].plot([], [], marker, color=COLORS["muted"], ms=5, mew=0, label=label)
        grid[1, 0].legend(frameon=False, handletextpad=0.2, loc="lower right")
        return figure


def calibrate(points: list[dict[str, Any]], optimizer: str) -> Calibration:
    """The laws of one optimizer."""
    families = Counter(p["family"] for p in points)
    return Calibration(
        rate=fit_law(
            [p["theory"][optimizer] for p in points], [_middle(p["found"][optimizer]) for p in points]
        ),
        slowdown=fit_law(
            [p["ratio"] for p in points],
            [geometric_mean(p["slowdown"][optimizer]["seeds"]) for p in points],
            censored=[p["slowdown"][optimizer]["censored"] for p in points],
        ),
        made_from=", ".join(f"{count} models of {family}" for family, count in families.items()),
    )


def calibrations_in(rows: list[Row]) -> dict[str, Calibration]:
    """The calibrations that a record's rows hold."""
    return {r["optimizer"]: Calibration.from_dict(r["laws"]) for r in rows if r["quantity"] == "calibration"}


def _rows_of(points: list[dict[str, Any]], optimizer: str, calibration: Calibration) -> list[Row]:
    rows: list[Row] = []
    for p in points:
        what = {name: p[name] for name in ("family", "lock", "held_out", "fresh", "utility")}
        what["optimizer"] = optimizer
        theory, found, slowdown = p["theory"][optimizer], p["found"][optimizer], p["slowdown"][optimizer]
        bracket = [found["stable"], found["unstable"]]
        rows.append(
            row(
                [_middle(found)], quantity=RATE, theory=theory, bracket=bracket, sharpness=p["lambda"], **what
            )
            | _foretold(calibration.rate(theory))
        )
        if p["lock"] != "none":
            steps, rates = zip(*p["efforts"][optimizer], strict=True)
            more = {
                "curvature_ratio": p["ratio"],
                "censored": slowdown["censored"],
                "steps": steps,
                "rates": rates,
            }
            rows.append(
                row(slowdown["seeds"], quantity=SLOWDOWN, **more, **what)
                | _foretold(calibration.slowdown(p["ratio"]))
            )
    rows += [
        row([value], quantity=quantity, optimizer=optimizer, family=family, locks=len(of))
        for family in ("all", *dict.fromkeys(p["family"] for p in points))
        for quantity, (value, of) in _verdicts([r for r in rows if family in ("all", r["family"])]).items()
    ]
    laws = dataclasses.asdict(calibration)
    rows.append(row([calibration.slowdown.slope], quantity="calibration", optimizer=optimizer, laws=laws))
    return rows


def _foretold(found: Range) -> dict[str, Any]:
    return {"predicted": found.value, "predicted_interval": [found.low, found.high]}


def _verdicts(rows: list[Row]) -> dict[str, tuple[float, list[Row]]]:
    """How well what was foretold held: a number, and the rows that it was taken over."""
    rates, slowdowns = ([r for r in rows if r["quantity"] == quantity] for quantity in (RATE, SLOWDOWN))

    def near(some: list[Row]) -> float:
        return fmean(0.5 <= r["measured"] / r["predicted"] <= 2 for r in some)

    def covered(some: list[Row]) -> float:
        return fmean(_within(r["measured"], r["predicted_interval"], r.get("censored", False)) for r in some)

    def ordered(some: list[Row]) -> float:
        pairs = [(r["predicted"], r["measured"]) for r in some]
        # Where one side is constant there is no order to speak of.
        varied = all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
        return float(spearmanr(*zip(*pairs, strict=True)).statistic) if varied else 0.0

    verdicts = {f"{RATE}: within a factor of 2": (near(rates), rates)}
    for group in ("held out", "fresh"):
        of_rates, of_slowdowns = (
            [r for r in some if r[group.replace(" ", "_")]] for some in (rates, slowdowns)
        )
        verdicts |= {
            f"{RATE}: within a factor of 2, {group}": (near(of_rates), of_rates),
            f"{RATE}: within the interval, {group}": (covered(of_rates), of_rates),
            f"{SLOWDOWN}: within the interval, {group}": (covered(of_slowdowns), of_slowdowns),
            f"{SLOWDOWN}: rank correlation, {group}": (ordered(of_slowdowns), of_slowdowns),
        }
    return verdicts


def _within(measured: float, interval: list[float], censored: bool) -> bool:
    low, high = interval
    return measured <= high and (censored or low <= measured)  # censored: the truth is that or more


def _compare_(point: dict[str, Any], base: dict[str, Any], family: Family) -> None:
    """Add the ratio of settled sharpnesses, and the slowdown under each seed.

    Both optimizers' slowdowns are held against the plain Hessian's ratio: what Adam's preconditioner leaves of it
    says nothing of where training goes after the first steps.
    """
    point["ratio"] = point["lambda"]["settled"] / base["lambda"]["settled"]
    point["slowdown"] = {}
    for optimizer in OPTIMIZERS:
        seeds = []
        for (needed, _), (steps, _) in zip(
            base["efforts"][optimizer], point["efforts"][optimizer], strict=True
        ):
            seeds.append(family.patience if steps is None else steps / needed)
        censored = any(steps is None for steps, _ in point["efforts"][optimizer])
        point["slowdown"][optimizer] = {"seeds": seeds, "censored": censored}


def _middle(found: dict[str, Any]) -> float:
    return Found(**found).rate
