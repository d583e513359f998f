"""A model is locked, and then trained for other tasks: what Table 1 and Figure 4 have in common.

Four blocks of rows. *As printed*: the paper's one setting of each optimizer, on base and locked model. *Searched*: an
audit, in which each optimizer's rate is searched on every target and the locked model is repaired too. *Floor*: what
the attacker has without the weights. *Our locks*: the same audit of locks that the paper does not have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.modules.batchnorm import _BatchNorm

import speclock
from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.attacks.heal import Heal
from speclock.attacks.probe import Probe
from speclock.attacks.repair import Clip
from speclock.audits.intervals import change_interval
from speclock.audits.record import Record, read
from speclock.audits.suite import SCRATCH, Family, Suite, around, listed
from speclock.audits.tune import chosen, tune
from speclock.experiments.base import Experiment, Row, once, row
from speclock.experiments.claims import KEPT, Claim, curvature, name_of, trained_no_more, utility
from speclock.forecast.measurement import sharpness
from speclock.locks.base import Locked
from speclock.locks.card import read_card
from speclock.locks.composition import lock_named
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.spectra import singular_values, weight_matrices
from speclock.tasks import parse
from speclock.tasks.base import Metric, Task
from speclock.training import Checkpoint, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase


def locked_in(
    folder: Path, lock: str, base: Callable[[], Model], retain: Task, options: Mapping[str, Any] | None = None
) -> Locked:
    """What ``lock`` makes of the base, kept in ``folder``; a killed run goes on from beside it."""
    if not folder.exists():
        states = folder.with_name(f"{folder.name}-states")
        states.mkdir(exist_ok=True)
        made = lock_named(lock, options)(base(), retain, folder=states)
        models.save(made.model, folder, extra={"speclock.json": json.dumps(made.card)})
    card = read_card(folder)
    assert card is not None
    return Locked(models.load(str(folder)), card)


def audited_in(place: Path, **asked: Any) -> Record:
    """The audit's record, kept in ``place``."""
    if not place.exists():
        record = speclock.audit(**asked)
        place.mkdir()
        record.save(place)
    return read(place)


def searched_rows(record: Record, lock: str, targets: Sequence[str], **what: Any) -> Iterator[Row]:
    """What an audit found on each of the targets that there are, and the floor beside it.

    A target on which no run came to a score stands at chance, as runs that diverged do, and is marked."""
    summary = record.summary
    met = {run.target for run in record.runs}
    for target in targets:
        if target not in met:
            continue
        best = summary[f"best_{target}"]
        found = row(
            [summary["chance"] if best is None else best],
            **what,
            block="searched",
            target=target,
            lock="" if target == "base" else lock,
            scored=best is not None,
            strongest_attack=summary["strongest_attacks"].get(target),
            floor=summary["floor"],
            floor_by=summary["floor_by"],
            steps=record.suite["budget"],
            chance=summary["chance"],
        )
        found["ci"] = summary["intervals"].get(f"best_{target}")
        if target == "locked":
            # Its own base's, which another audit may have given another budget.
            quoted = (
                "best_base",
                "best_control",
                "uplift",
                "uplift_uninformed",
                "worth",
                "slowdown",
                "utility_base",
                "utility_locked",
            )
            found |= {name: summary[name] for name in quoted}
            found |= {"verdict": record.verdict, "flags": [flag.name for flag in record.flags]}
        yield found


@dataclass(frozen=True, kw_only=True)
class Other:
    """A task that the model was not released for: one column of the table."""

    column: str
    task: str
    base: float | None = None
    """What the paper has for the base, as a fraction."""
    locked: float | None = None
    """And for the locked model."""
    before: tuple[float, float] | None = None
    """Of a task that the model's own head answers, the paper's scores of base and locked model before any attack."""
    beside: tuple[float, float] | None = None
    """Of a task with others beside it, the paper's scores of those afterwards: a backdoored model's clean score."""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One optimizer at the paper's rate, and where the search of its rate starts."""

    optimizer: str
    lr: float
    middle: float
    weight_decay: float = 0.0
    quoted: bool = False
    """Whether the paper's numbers are this one's."""


@dataclass(frozen=True, kw_only=True)
class Locking(Experiment):
    """The base is trained and locked once; seeds are those of the attacks, each with a fresh head and order of data."""

    model: str
    instead_of: str | None = None
    """The paper's model, where ``model`` is another."""
    retain: str
    utility: tuple[float, float]
    """The paper's utility of base and locked model."""
    training: dict[str, Any]
    """How the base is trained."""
    lock: str
    """The paper's lock, as `speclock lock --lock` has it; its utility is not guarded, and its last state is taken."""
    our_locks: tuple[str, ...]
    others: tuple[Other, ...]
    attacks: tuple[Printed, ...]
    schedule: str = "constant"
    batch_size: int = 32
    epochs: float = 10
    """Passes over the other task's training split, as printed."""
    informed: tuple[str, ...] = ("clip", "heal", "probe")
    """What the audits try beside the optimizers."""
    max_length: int = 128
    metric: Metric | None = None
    """How tasks are scored, where not in their own way."""
    proxy: str = ""
    """The attack task that the paper's lock is tuned on; on its own data the tuned lock is not quoted."""
    trials: int = 0
    """Settings of the lock that are tried."""
    tuned_from: tuple[str, ...] = ()
    """The paper's lock with what is not searched of its settings, once for each optimizer."""
    seeds: int = 3
    jobs: int = 2

    def steps(self, task: Task) -> int:
        """Of the printed attack; the search has as many."""
        return max(1, round(self.epochs * (len(task.train) // self.batch_size)))

    def as_printed(self, attack: Printed) -> FineTune:
        """The paper's attack."""
        return FineTune(
            optimizer=attack.optimizer,
            lr=attack.lr,
            weight_decay=attack.weight_decay,
            batch_size=self.batch_size,
            schedule=self.schedule,
            clip=None,
        )

    @property
    def all_locks(self) -> tuple[str, ...]:
        """The paper's lock first."""
        return (self.lock, *self.our_locks)

    def rows(self, kept: Path) -> list[Row]:
        at = _Place(self, kept)
        rows = [*at.utilities(), *at.spectra(), *at.curvatures()]
        for other in self.others:
            rows += [*at.before(other), *at.printed(other)]
            seen = self.proxy and parse(other.task).base == parse(self.proxy).base
            for lock in (*self.all_locks, *(() if seen else at.tuned)):
                rows += at.searched(other, lock)
        return rows

    def claims(self, rows: list[Row]) -> list[Claim]:
        columns = [trained_no_more(rows, other.column) for other in self.others]
        return [*utility(rows), *curvature(rows), *columns]

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(2.6 * len(self.others) + 1.4, 3.4), layout="constrained")
        self.draw_in(figure, rows)
        return figure

    def draw_in(self, figure: FigureBase, rows: list[Row]) -> None:
        """For each other task, what base and locked model reach as printed and under the search, and the floor."""
        from speclock.report.plots import COLORS

        columns = [other.column for other in self.others]
        grid = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, column in zip(grid, columns, strict=True):
            found = [r for r in rows if r.get("column") == column]
            floor = next((r["floor"] for r in found if r["block"] == "searched"), None)
            names = []
            for r in found:
                if r["block"] == "as printed":
                    name = f"{r['optimizer']}, as printed"
                elif r["target"] in ("base", "locked"):
                    name = "searched" if r["lock"] in ("", self.lock) else f"{name_of(r['lock'])}, searched"
                else:
                    continue
                if name not in names:
                    names.append(name)
                low, high = r["ci"] or (r["measured"], r["measured"])
                x = names.index(name) + (0.12 if r["target"] == "locked" else -0.12)
                axes.errorbar(
                    [x],
                    [r["measured"]],
                    [[max(0.0, r["measured"] - low)], [max(0.0, high - r["measured"])]],
                    fmt="o" if r["target"] == "locked" else "s",
                    color=COLORS[r["target"]],
                    ms=5,
                    lw=1,
                )
            if floor is not None:
                axes.axhline(floor, color=COLORS["muted"], lw=1, ls=(0, (4, 2)))
            axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
            axes.set_title(column, fontsize=10)
            axes.set_ylim(0, 1)
        grid[0].set_ylabel("score on the test split")
        for name, marker in (("base", "s"), ("locked", "o")):
            grid[-1].plot([], [], marker, color=COLORS[name], label=name)
        grid[-1].plot([], [], color=COLORS["muted"], ls=(0, (4, 2)), label="floor")
        grid[-1].legend(frameon=False, fontsize=8)


@dataclass(frozen=True, kw_only=True)
class SeveralModels(Experiment):
    """The same for each of several models; every row says which is its."""

    models: tuple[Locking, ...]

    def rows(self, kept: Path) -> list[Row]:
        return [row for part in self.models for row in self._rows_of(part, kept / part.model)]

    def _rows_of(self, part: Locking, kept: Path) -> Iterator[Row]:
        kept.mkdir(exist_ok=True)
        for found in part.rows(kept):
            yield {"model": part.model, **found}

    def claims(self, rows: list[Row]) -> list[Claim]:
        return [
            replace(claim, claim=f"{part.model}: {claim.claim}")
            for part in self.models
            for claim in part.claims([found for found in rows if found["model"] == part.model])
        ]

    def draw(self, rows: list[Row]) -> Figure:
        from matplotlib.figure import Figure as Canvas

        widest = max(len(part.others) for part in self.models)
        figure = Canvas(figsize=(2.6 * widest + 1.4, 3.6 * len(self.models)), layout="constrained")
        parts = figure.subfigures(len(self.models), squeeze=False)[:, 0]
        for part, place in zip(self.models, parts, strict=True):
            part.draw_in(place, [found for found in rows if found["model"] == part.model])
            place.suptitle(part.model, fontsize=10)
        return figure


@dataclass
class _Place:
    """One experiment in its folder: what was made is found again."""

    of: Locking
    kept: Path

    def task(self, name: str) -> Task:
        return tasks.load(name, tasks.Reading(max_length=self.of.max_length, metric=self.of.metric)).divided()

    # -- models --------------------------------------------------------------------------------------------

    @cached_property
    def retain(self) -> Task:
        return self.task(self.of.retain)

    @cached_property
    def untrained(self) -> Model:
        return models.load(self.of.model, labels=self.retain.labels, seed=self.recipe.seed)

    @property
    def recipe(self) -> TrainingRecipe:
        return TrainingRecipe(**self.of.training)

    def instead(self, task: Task) -> str | None:
        """What stands in for the paper's model and for its task."""
        model = self.of.instead_of and f"{self.of.model} for {self.of.instead_of}"
        found = [model, self.untrained.source.stand_in, task.source.stand_in]
        return "; ".join(each for each in found if each) or None

    @cached_property
    def base(self) -> Model:
        folder = self.kept / "base"
        if not folder.exists():
            base = self.untrained.copy()
            states = self.kept / "base-states"
            states.mkdir(exist_ok=True)
            train(base, self.retain, self.recipe, checkpoint=Checkpoint(states))
            models.save(base, folder)
        return models.load(str(folder))

    def locked(self, lock: str) -> Locked:
        return locked_in(self.kept / f"lock-{self.number(lock)}", lock, lambda: self.base, self.retain)

    def number(self, lock: str) -> int:
        """A lock's place among those that there are, by which its files are called."""
        return (*self.of.all_locks, *self.tuned).index(lock)

    @cached_property
    def tuned(self) -> tuple[str, ...]:
        """The strongest of the paper's lock under settings of the search's own, for a point of utility."""
        if not self.of.trials:
            return ()
        place = self.kept / "tune"
        place.mkdir(exist_ok=True)
        trials = tune(
            self.base,
            self.retain,
            self.task(self.of.proxy),
            max_utility_drop=0.01,
            locks=self.of.tuned_from,
            trials=self.of.trials,
            objective="score",
            suite=self.suite(self.task(self.of.proxy)),
            jobs=self.of.jobs,
            folder=place,
            floors=self.kept,
        )
        best = chosen(trials, 0.01, "score")
        return () if best is None else (f"{best.lock},max_utility_drop=0.01",)

    # -- rows ----------------------------------------------------------------------------------------------

    def utilities(self) -> Iterator[Row]:
        paper = {"": self.of.utility[0], self.of.lock: self.of.utility[1]}
        truth, before = self.retain.test.labels, self.retain.answers(self.base)
        for lock in ("", *self.of.all_locks):
            card: Mapping[str, Any] = self.locked(lock).card if lock else {}
            after = self.retain.answers(self.locked(lock).model) if lock else before
            yield row(
                [card["utility_locked"] if lock else self.retain.measured(before)],
                examples=len(truth),
                change_ci=change_interval(before, after, truth, self.retain.measure) if lock else None,
                status=card.get("status"),
                chosen_step=card.get("chosen_step"),
                paper=paper.get(lock),
                instead=self.instead(self.retain),
                block="utility",
                target="locked" if lock else "base",
                lock=lock,
                task=self.of.retain,
            )

    def spectra(self) -> Iterator[Row]:
        """The mean over all weight matrices of σ₁."""
        for lock in ("", *self.of.all_locks):
            model = self.locked(lock).model if lock else self.base
            tops = [float(singular_values(w.matrix.detach(), 1)[0]) for w in weight_matrices(model.module)]
            yield row(
                [sum(tops) / len(tops)],
                instead=self.instead(self.retain),
                block="spectrum",
                target="locked" if lock else "base",
                lock=lock,
                largest=max(tops),
            )

    def curvatures(self) -> Iterator[Row]:
        """λ_max(H) of base and locked model on the same examples of the first other task, each under the same head."""
        task = self.task(self.of.others[0].task)
        for lock in ("", *self.of.all_locks):
            number = self.number(lock) if lock else "base"

            def measured(lock: str = lock) -> list[float]:
                model = self.locked(lock).model if lock else self.base
                return [sharpness(model, task, seed=seed).start.value for seed in range(self.of.seeds)]

            yield row(
                once(self.kept / f"curvature-{number}.json", measured),
                instead=self.instead(task),
                batch_norm=any(isinstance(part, _BatchNorm) for part in self.base.module.modules()),
                block="curvature",
                target="locked" if lock else "base",
                lock=lock,
                task=task.name,
            )

    def before(self, other: Other) -> Iterator[Row]:
        """What base and locked model score on a task of their own labels as they are: a backdoor that nobody put in."""
        task = self.task(other.task)
        if not task.fits(self.base):
            return
        for i, (target, lock) in enumerate((("base", ""), ("locked", self.of.lock))):
            model = self.locked(lock).model if lock else self.base
            yield row(
                [task.fitted_to(model).score(model)],
                paper=other.before and other.before[i],
                instead=self.instead(task),
                block="before",
                column=other.column,
                task=other.task,
                target=target,
                lock=lock,
            )

    def printed(self, other: Other) -> Iterator[Row]:
        task = self.task(other.task)
        steps = self.of.steps(task)
        for attack in self.of.attacks:
            for i, target in enumerate(("base", "locked")):
                runs = [
                    once(
                        self.kept
                        / f"printed-{other.column}-{attack.optimizer}-{attack.lr:g}-{target}-{seed}.json",
                        partial(self._run, attack, target, task, steps, seed),
                    )
                    for seed in range(1, self.of.seeds + 1)
                ]
                what = {
                    "instead": self.instead(task),
                    "column": other.column,
                    "task": other.task,
                    "target": target,
                    "lock": self.of.lock if target == "locked" else "",
                    "optimizer": attack.optimizer,
                    "lr": attack.lr,
                    "steps": steps,
                    "chance": task.chance,
                    "runs": len(runs),
                    "diverged": sum(run["diverged"] for run in runs),
                }
                ended = [run for run in runs if not run["diverged"]]
                if task.collapses:
                    before = self.beside(task, target)
                    what["collapsed"] = sum(
                        any(run["beside"][name] < before[name] - KEPT for name in before) for run in ended
                    )
                yield row(
                    [run["score"] for run in ended] or [task.chance],
                    paper=getattr(other, target) if attack.quoted else None,
                    block="as printed",
                    curves=[run["curve"] for run in runs],
                    **what,
                )
                for name, of in task.beside.items():
                    yield row(
                        [run["beside"][name] for run in ended] or [of.chance],
                        paper=other.beside and other.beside[i] if attack.quoted else None,
                        block=f"as printed, {name}",
                        **what,
                    )

    def beside(self, task: Task, target: str) -> dict[str, float]:
        """What the model as it is scores on the tasks beside."""
        model = self.base if target == "base" else self.locked(self.of.lock).model
        return {name: of.fitted_to(model).score(model) for name, of in task.beside.items()}

    def _run(self, attack: Printed, target: str, task: Task, steps: int, seed: int) -> dict[str, Any]:
        """The scores that the last step leaves, as the paper takes them; of a run that diverged, chance.

        The head is the model's own where it has as many outputs as the task has labels, for which B.2 chose its tasks.
        """
        model = self.base if target == "base" else self.locked(self.of.lock).model
        if task.kind == "classification" and len(model.labels or ()) == len(task.labels):
            model = replace(model, labels=task.labels)
        how = replace(self.of.as_printed(attack), seed=seed)
        attacked, outcome = how(model, task, steps, utility=False)
        diverged = not outcome.stayed_finite
        return {
            "score": task.chance if diverged else task.score(attacked),
            "beside": {n: t.chance if diverged else t.score(attacked) for n, t in task.beside.items()},
            "diverged": diverged,
            "curve": outcome.curve,
            "seconds": outcome.seconds,
        }

    def searched(self, other: Other, lock: str) -> Iterator[Row]:
        number = self.number(lock)
        # The control of a lock is the same whatever task is attacked, and the base's runs whatever the lock.
        work = self.kept / f"work-{number}"
        work.mkdir(exist_ok=True)
        task = self.task(other.task)
        record = audited_in(
            self.kept / f"audit-{other.column}-{number}",
            base=self.base,
            locked=self.locked(lock),
            retain=self.retain,
            attack=task,
            suite=self.suite(task),
            seeds=self.of.seeds,
            jobs=self.of.jobs,
            folder=work,
            shared=self.kept,
            floors=self.kept,
        )
        targets = ("base", "control", "locked") if number == 0 else ("control", "locked")
        yield from searched_rows(
            record,
            lock,
            targets,
            instead=self.instead(task),
            column=other.column,
            task=other.task,
            tuned_on=self.of.proxy if lock in self.tuned else None,
        )

    def suite(self, task: Task) -> Suite:
        """Each of the table's optimizers with its rate searched, the printed attacks under a fresh head, and what
        repairs a locked model first; all with the printed attack's steps."""
        steps = self.of.steps(task)
        size: dict[str, Any] = {"batch_size": self.of.batch_size, "schedule": self.of.schedule}
        adamw = next((a.middle for a in self.of.attacks if a.optimizer == "adamw"), 1e-3)
        families = []
        for a in {a.optimizer: a for a in self.of.attacks}.values():
            # Its line search is what keeps L-BFGS from large steps.
            own = {**size, "clip": None} if a.optimizer == "lbfgs" else size
            families.append(around(FineTune, a.middle, optimizer=a.optimizer, **own))
        printed = [self.of.as_printed(attack) for attack in self.of.attacks]
        informed = {
            "clip": around(Clip, adamw, **size),
            "heal": around(Heal, adamw, healing=max(1, steps // 2), **size),
            "probe": Family((Probe(),)),
        }
        return Suite(
            name=self.of.name,
            version=1,
            steps=steps,
            families=(
                *families,
                *listed(*(attack for attack in printed if attack.label not in {f.name for f in families})),
                *(informed[name] for name in self.of.informed),
            ),
            extended=False,
            # SGD trains no transformer from scratch.
            scratch=SCRATCH[:1] if self.retain.modality == "text" else SCRATCH,
        )
