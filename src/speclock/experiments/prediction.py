"""Rates and slowdowns foretold from curvature, against those found on locks of different strength."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scipy.stats import spearmanr
from tqdm import tqdm

from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.experiments.base import Experiment, Row, row
from speclock.forecast.curvature import sharpness
from speclock.forecast.slowdown import OPTIMIZERS, Calibration, fit_law, to_json
from speclock.forecast.stability import Found, largest_rate_found
from speclock.locks import LOCKS
from speclock.locks.base import lock
from speclock.models import Model
from speclock.recipe import Schooling, short
from speclock.tasks.base import Task
from speclock.training import school
from speclock.workspace import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and the locks of it that are measured."""

    model: str
    retain: str
    attack: str
    max_length: int = 128
    schooling: dict[str, Any]
    """How the base is made."""
    locks: tuple[tuple[str, dict[str, Any]], ...]
    """Every second one calibrates, the others are held out."""
    rates: dict[str, tuple[float, ...]]
    """Learning rates of the sweep that finds the slowdown, by optimizer."""
    steps: int
    evaluations: int
    stable_for: int
    """Steps that a stable rate must survive."""
    samples: int = 64

    @cached_property
    def retain_task(self) -> Task:
        return tasks.load(self.retain, max_length=self.max_length)

    @cached_property
    def attack_task(self) -> Task:
        return tasks.load(self.attack, max_length=self.max_length)


def _half_decades(low: float, high: float) -> tuple[float, ...]:
    """1 and 3 times every power of ten between.

    >>> _half_decades(0.01, 0.1)
    (0.01, 0.03, 0.1)
    """
    rates = [float(f"{digit}e{power}") for power in range(-8, 2) for digit in (1, 3)]
    return tuple(rate for rate in rates if low <= rate <= high)


def _specdef(alpha: float, top_k: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "specdef", {"alpha": alpha, "top_k": top_k, "max_utility_drop": 0.2, "evaluations": 4, **more}


_ON_DIGITS = {"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "retain": "task"}
_ON_POSTS = {"lr": 2e-4, "max_utility_drop": 0.1}
_TOPICS = "newsgroups:comp.graphics,rec.autos,sci.med,talk.politics.guns@2000/300"
_OTHERS = "newsgroups:comp.sys.mac.hardware,rec.sport.hockey,sci.space,soc.religion.christian@320/200"

FAMILIES = {
    "cnn-mlp": Family(
        model="cnn-mlp",
        retain="mnist:0,1,2,3,4@6000/1000",
        attack="mnist:5,6,7,8,9@400/400",
        schooling={"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "epochs": 3},
        locks=tuple(
            _specdef(alpha, top_k, epochs=epochs, **_ON_DIGITS)
            for epochs in (1, 4)
            for alpha in (0.99, 0.9, 0.5, 0.1)
            for top_k in (1, 8)
        ),
        rates={"sgd": _half_decades(1e-5, 1.0), "adam": _half_decades(1e-5, 1e-1)},
        steps=120,
        evaluations=30,
        stable_for=30,
    ),
    "minilm": Family(
        model="minilm",
        retain=_TOPICS,
        attack=_OTHERS,
        max_length=32,
        schooling={"optimizer": "adamw", "lr": 2e-4, "schedule": "linear", "steps": 90},
        locks=(
            _specdef(0.5, 8, steps=40, **_ON_POSTS),
            _specdef(0.02, 8, steps=40, **_ON_POSTS),
            _specdef(0.02, 2, steps=80, **_ON_POSTS),
            _specdef(0.02, 8, steps=80, **_ON_POSTS),
            _specdef(0.005, 8, steps=80, **_ON_POSTS),
            _specdef(0.001, 8, steps=80, **_ON_POSTS),
        ),
        rates={"sgd": _half_decades(1e-2, 1.0), "adam": _half_decades(3e-5, 1e-3)},
        steps=24,
        evaluations=12,
        stable_for=20,
    ),
}
FAMILIES["smoke"] = dataclasses.replace(
    FAMILIES["cnn-mlp"],
    retain="mnist:0,1,2,3,4@600/100",
    attack="mnist:5,6,7,8,9@100/100",
    locks=tuple(_specdef(alpha, 1, epochs=1, **_ON_DIGITS) for alpha in (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)),
    rates={"sgd": (1e-2, 1e-1), "adam": (1e-3, 1e-2)},
    steps=16,
    evaluations=8,
    stable_for=5,
    samples=16,
)


@dataclass(frozen=True, kw_only=True)
class Prediction(Experiment):
    """For every lock: curvature, the largest stable rate by bisection, and the slowdown by a sweep.

    Laws are fitted on every second lock of each family, all families together, and held against the others.
    """

    families: tuple[str, ...] = ("cnn-mlp", "minilm")
    seed: int = 0

    name: ClassVar[str] = "prediction"
    title: ClassVar[str] = "Rates and slowdowns foretold from curvature"
    scales: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"families": ("smoke",)},
        "small": {"families": ("cnn-mlp",)},
        "paper": {},
    }

    def rows(self, kept: Path) -> list[Row]:
        measured = [point for name in self.families for point in self._points(name, kept)]
        rows: list[Row] = []
        for optimizer in OPTIMIZERS:
            calibration = calibrate([p for p in measured if not p["held_out"]], optimizer)
            rows += _rows_of(measured, optimizer, calibration)
        return rows

    def _points(self, name: str, kept: Path) -> list[dict[str, Any]]:
        """What was measured on the base and on every lock of a family; the base is the first."""
        family = FAMILIES[name]
        base: Model | None = None
        points: list[dict[str, Any]] = []
        for number in tqdm(
            range(len(family.locks) + 1), desc=f"prediction: {name}", unit="lock", disable=None
        ):
            file = kept / f"{name}-{number}.json"
            if not file.exists():
                base = base or self._base(family)
                model = base if number == 0 else self._locked(family, base, number)
                point = {
                    "family": name,
                    "lock": "none" if number == 0 else _label(*family.locks[number - 1]),
                    "held_out": number > 0 and number % 2 == 0,
                    **self._measured(family, model),
                }
                write_text(file, json.dumps(point))
            points.append(json.loads(file.read_text()))
        for point in points:
            _compare_(point, points[0], family.steps)
        return points

    def _base(self, family: Family) -> Model:
        model = models.load(family.model, labels=family.retain_task.labels)
        school(model, family.retain_task, Schooling(seed=self.seed, **family.schooling))
        return model

    def _locked(self, family: Family, base: Model, number: int) -> Model:
        name, settings = family.locks[number - 1]
        return lock(base, family.retain_task, LOCKS[name](seed=self.seed, **settings)).model

    def _measured(self, family: Family, model: Model) -> dict[str, Any]:
        task = family.attack_task
        sharp = sharpness(model, task, samples=family.samples, seed=self.seed)
        trial = {"steps": family.stable_for, "samples": family.samples, "seed": self.seed}
        found, curves = {}, {}
        for optimizer in OPTIMIZERS:
            start = sharp.rates[optimizer]
            found[optimizer] = largest_rate_found(model, task, optimizer, start, **trial)._asdict()
            curves[optimizer] = {
                short(rate): FineTune(optimizer=optimizer, lr=rate, clip=None, dropout=False, seed=self.seed)(
                    model, task, family.steps, evaluations=family.evaluations
                ).outcome.curve
                for rate in family.rates[optimizer]
            }
        return {
            "utility": family.retain_task.score(model.module, model),
            "chance": task.chance,
            "theory": sharp.rates,
            "lambda": {name: found.value for name, found in sharp._asdict().items()},
            "found": found,
            "curves": curves,
        }

    def beside(self, rows: list[Row]) -> Mapping[str, str]:
        return {"calibration.json": to_json(calibrations_in(rows))}

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas

        from speclock.report.plots import COLORS

        figure = Canvas(figsize=(6.6, 5.4), layout="constrained")
        grid = figure.subplots(2, 2)
        for line, quantity in enumerate(("largest stable rate", "slowdown")):
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
                    marker = "^" if r.get("censored") else {"minilm": "s"}.get(r["family"], "o")
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
        grid[0, 0].legend(frameon=False)
        return figure


def calibrate(points: list[dict[str, Any]], optimizer: str) -> Calibration:
    """The laws of one optimizer; a slowdown that exceeds its budget is left out of the fit, which it would bend."""
    reached = [p for p in points if not p["slowdown"][optimizer]["censored"]]
    return Calibration(
        rate=fit_law(
            [p["theory"][optimizer] for p in points],
            [_middle(p["found"][optimizer]) for p in points],
            slope=1.0,
        ),
        slowdown=fit_law(
            [p["ratio"][optimizer] for p in reached], [p["slowdown"][optimizer]["value"] for p in reached]
        ),
        made_from=f"{len(points)} models of {', '.join(sorted({p['family'] for p in points}))}",
    )


def calibrations_in(rows: list[Row]) -> dict[str, Calibration]:
    """The calibrations that a record's rows hold."""
    return {r["optimizer"]: Calibration.from_dict(r["laws"]) for r in rows if r["quantity"] == "calibration"}


def _rows_of(points: list[dict[str, Any]], optimizer: str, calibration: Calibration) -> list[Row]:
    rows, held = [], []
    for p in points:
        what = {name: p[name] for name in ("family", "lock", "held_out", "utility")} | {
            "optimizer": optimizer
        }
        rate = calibration.rate(p["theory"][optimizer])
        rows.append(
            row(
                [_middle(p["found"][optimizer])],
                quantity="largest stable rate",
                theory=p["theory"][optimizer],
                predicted=rate.value,
                predicted_interval=[rate.low, rate.high],
                bracket=[p["found"][optimizer]["stable"], p["found"][optimizer]["unstable"]],
                **what,
            )
        )
        if p["lock"] == "none":
            continue
        slowdown = calibration.slowdown(p["ratio"][optimizer])
        rows.append(
            row(
                [p["slowdown"][optimizer]["value"]],
                quantity="slowdown",
                curvature_ratio=p["ratio"][optimizer],
                predicted=slowdown.value,
                predicted_interval=[slowdown.low, slowdown.high],
                censored=p["slowdown"][optimizer]["censored"],
                **what,
            )
        )
        held += [rows[-1]] if p["held_out"] else []
    for family in sorted({p["family"] for p in points}):
        near = [
            1.0 if 0.5 <= r["measured"] / r["predicted"] <= 2 else 0.0
            for r in rows
            if r["quantity"] == "largest stable rate" and r["family"] == family
        ]
        rows.append(
            row(
                [sum(near) / len(near)],
                quantity="rates within a factor of 2",
                family=family,
                optimizer=optimizer,
            )
        )
    pairs = [(r["predicted"], r["measured"]) for r in held]
    # Where one side is constant there is no order to speak of.
    ordered = all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
    order = float(spearmanr(pairs).statistic) if ordered else 0.0
    ranked = "rank correlation of slowdown, held out"
    rows.append(row([order], quantity=ranked, optimizer=optimizer, locks=len(held)))
    laws = dataclasses.asdict(calibration)
    rows.append(row([calibration.slowdown.slope], quantity="calibration", optimizer=optimizer, laws=laws))
    return rows


def _compare_(point: dict[str, Any], base: dict[str, Any], budget: int) -> None:
    """Add the curvature's ratio and the slowdown: steps to 90% of the base's best gain, the best rate of each."""
    point["ratio"], point["slowdown"] = {}, {}
    for optimizer in OPTIMIZERS:
        point["ratio"][optimizer] = point["lambda"][optimizer] / base["lambda"][optimizer]
        curves = base["curves"][optimizer].values()
        chance = base["chance"]
        target = chance + 0.9 * (max(score for curve in curves for _, score in curve) - chance)
        needed = {
            name: _steps_to(p["curves"][optimizer], target) for name, p in (("base", base), ("locked", point))
        }
        assert needed["base"] is not None, "the base's best curve reaches its own target"
        steps = needed["locked"]
        point["slowdown"][optimizer] = {
            "value": (budget if steps is None else steps) / needed["base"],
            "censored": steps is None,
        }


def _steps_to(curves: dict[str, list[tuple[int, float]]], target: float) -> int | None:
    reached = [step for curve in curves.values() for step, score in curve if score >= target]
    return min(reached, default=None)


def _middle(found: dict[str, Any]) -> float:
    return Found(**found).rate


def _label(name: str, settings: dict[str, Any]) -> str:
    """A lock in a few words.

    >>> _label("specdef", {"alpha": 0.5, "top_k": 8, "epochs": 4})
    'specdef, α 0.5, k 8, epochs 4'
    """
    length = next((f"{unit} {settings[unit]}" for unit in ("epochs", "steps") if unit in settings), "")
    return ", ".join(filter(None, [name, f"α {settings['alpha']:g}", f"k {settings['top_k']}", length]))
