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
from typing import TYPE_CHECKING, Any, ClassVar

from torch.nn.modules.batchnorm import _BatchNorm

import speclock
from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.attacks.heal import Heal
from speclock.attacks.probe import Probe
from speclock.attacks.repair import Clip
from speclock.audits.intervals import change_interval
from speclock.audits.metrics import Pick, pick
from speclock.audits.record import Record, RunRecord, read
from speclock.audits.run import CURVE_EXAMPLES
from speclock.audits.suite import SCRATCH, Family, Suite, around, listed
from speclock.audits.tune import Trial, chosen, tune
from speclock.curvature import spectral_ends
from speclock.environment import environment
from speclock.experiments.base import Experiment, Row, made_on, once, row
from speclock.experiments.claims import (
    KEPT,
    Claim,
    curvature,
    name_of,
    trained_no_more,
    tuning,
    utility,
)
from speclock.forecast.objective import Objective
from speclock.locks.base import Locked
from speclock.locks.card import read_card
from speclock.locks.composition import lock_named
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.spectra import singular_values, weight_matrices
from speclock.tasks import parse
from speclock.tasks.base import Metric, Task, is_proportion
from speclock.training import Checkpoint, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase


UNGUARDED = ",max_utility_drop=1,evaluations=1"
"""Of a lock as the paper has it: nothing watches its utility, and its last state is taken."""
_POINT = 0.01
"""Utility that a tuned lock may lose."""


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


def fell_back(card: Mapping[str, Any]) -> bool:
    """Whether a lock, in all of its parts, left the model as it was before."""
    return all(part["chosen_step"] == 0 for part in card.get("parts", [card]))


def audited_in(place: Path, **asked: Any) -> Record:
    """The audit's record, kept in ``place``."""
    if not (place / "audit.json").exists():
        # Its lock was made by this very run: there is no card to be checked by making it once more.
        record = speclock.audit(**asked, repeat=False)
        place.mkdir(exist_ok=True)
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
            found["fell_back"] = fell_back(record.locked["card"])
            found["uplift_ci"] = summary["intervals"]["uplift"]
            # A probe trains nothing, and reads an untrained network too.
            trained = picked(record, lambda run: run.kind != "probe")
            found["best_trained"] = trained and trained.score
            found["best_trained_by"] = trained and trained.runs[0].title
            strongest = picked(record)
            found["strongest_steps"] = (
                strongest and strongest.runs[0].kind != "probe" and strongest.runs[0].steps
            )
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


def picked(record: Record, counts: Callable[[RunRecord], bool] = lambda run: True) -> Pick | None:
    """The attacker's pick on the locked model among the finalists that ``counts`` admits."""
    anyway = (record.summary["floor"], record.summary["floor_validation"])
    return pick(record.runs, "locked", anyway, counts)


def rows_by_optimizer(record: Record, lock: str, attacks: Sequence[Printed], **what: Any) -> Iterator[Row]:
    """Each optimizer at the best rate that its search found, on base and locked model.

    Of those that came to the finals the test scores of every seed; of the others the search's own best, on validation
    under one seed, and said to be."""
    for attack in {attack.optimizer: attack for attack in attacks}.values():
        for target in ("base", "locked"):
            runs = [
                run
                for run in record.runs
                if (run.target, run.attack) == (target, FineTune.name)
                and run.config["optimizer"] == attack.optimizer
            ]
            tried = [run for run in runs if run.stage == "search" and run.best is not None]
            if not tried:
                continue
            best = max(tried, key=lambda run: run.best or 0.0)
            finals = [run for run in runs if run.stage == "final" and run.config == best.config]
            scores = [run.test for run in finals if run.test is not None]
            yield row(
                scores or [best.best or 0.0],
                runs=len(finals) or 1,
                diverged=len(finals) - len(scores) if scores else 0,
                **what,
                block="at its best",
                target=target,
                lock=lock if target == "locked" else "",
                optimizer=attack.optimizer,
                lr=best.config["lr"],
                split="test" if scores else "validation",
                rates=len({run.config["lr"] for run in runs}),
            )


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
    """The paper's lock, as `speclock lock --lock` has it, :data:`UNGUARDED`."""
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
    """Settings of the lock that are tried, the printed ones first."""
    tuned_from: tuple[str, ...] = ()
    """The paper's lock with what is not searched of its settings, once for each optimizer."""
    finalists: int = 2
    """Families of an audit that are run again under every seed."""
    from_scratch: bool = True
    """Whether training a fresh network, eight times as long, is part of the floor beside the classical models. Without
    it the floor can only be lower, and a lock look worse."""
    seeds: int = 3

    draws_curves: ClassVar[bool] = False
    """Whether the figure shows the printed runs on their way, which must be scored there then."""

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

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        at = _Place(self, kept, jobs)
        rows = [*at.search_for_a_lock(), *at.utilities(), *at.spectra(), *at.curvatures()]
        for other in self.others:
            rows += [*at.before(other), *at.printed(other)]
            seen = self.proxy and parse(other.task).base == parse(self.proxy).base
            for lock in (*self.all_locks, *(() if seen else at.tuned)):
                rows += at.searched(other, lock)
        return rows

    def claims(self, rows: list[Row]) -> list[Claim]:
        columns = [trained_no_more(rows, other.column) for other in self.others]
        return [*utility(rows), *curvature(rows), *tuning(rows), *columns]

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
    """The same for each of several models; every row says which is its, and on what it was made.

    A model's rows are kept as soon as there are all of them: the models may be run on different machines.
    """

    models: tuple[Locking, ...]

    def rows(self, kept: Path, jobs: int = 1) -> list[Row]:
        return [row for part in self.models for row in self.rows_of(part, kept / part.model, jobs)]

    @staticmethod
    def rows_of(part: Locking, kept: Path, jobs: int = 1) -> list[Row]:
        """Those of one model."""
        kept.mkdir(exist_ok=True)

        def made() -> list[Row]:
            where = made_on(environment())
            return [{"model": part.model, "made_on": where, **found} for found in part.rows(kept, jobs)]

        rows: list[Row] = once(kept / "rows.json", made)
        return rows

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
    jobs: int = 1

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
        return self.every_lock.index(lock)

    @cached_property
    def trials(self) -> list[Trial]:
        """The search over the settings of the paper's lock, which begins with the printed ones."""
        if not self.of.trials:
            return []
        place = self.kept / "tune"
        place.mkdir(exist_ok=True)
        return tune(
            self.base,
            self.retain,
            self.task(self.of.proxy),
            max_utility_drop=0.01,
            locks=self.of.tuned_from,
            first=(self.of.lock.removesuffix(UNGUARDED),),
            trials=self.of.trials,
            objective="score",
            suite=self.tuning_suite(self.task(self.of.proxy)),
            jobs=self.jobs,
            folder=place,
            floors=self.kept,
        )

    @cached_property
    def tuned(self) -> tuple[str, ...]:
        """The strongest that it found for a point of utility."""
        best = chosen(self.trials, _POINT, "score")
        return () if best is None else (f"{best.lock},max_utility_drop={_POINT}",)

    # -- rows ----------------------------------------------------------------------------------------------

    def search_for_a_lock(self) -> Iterator[Row]:
        """How many settings of the paper's lock were tried, and what the best of them left on the task that they were
        tried on."""
        if not self.trials:
            return
        best = chosen(self.trials, _POINT, "score")
        yield row(
            [1.0 if best is None else best.score],
            block="tuning",
            target="locked",
            lock="" if best is None else best.lock,
            task=self.of.proxy,
            trials=len(self.trials),
            audited=sum(trial.status == "audited" for trial in self.trials),
            strongest_attack=best and best.strongest_attack,
            max_utility_drop=_POINT,
        )

    @property
    def every_lock(self) -> tuple[str, ...]:
        """The paper's, ours, and the paper's as tuned."""
        return (*self.of.all_locks, *self.tuned)

    def utilities(self) -> Iterator[Row]:
        paper = {"": self.of.utility[0], self.of.lock: self.of.utility[1]}
        truth, before = self.retain.test.labels, self.retain.answers(self.base)
        for lock in ("", *self.every_lock):
            card: Mapping[str, Any] = self.locked(lock).card if lock else {}
            after = self.retain.answers(self.locked(lock).model) if lock else before
            yield row(
                [card["utility_locked"] if lock else self.retain.measured(before)],
                examples=len(truth),
                change_ci=change_interval(
                    before, after, truth, self.retain.measure, proportion=is_proportion(self.retain.metric)
                )
                if lock
                else None,
                status=card.get("status"),
                fell_back=bool(card) and fell_back(card),
                paper=paper.get(lock),
                instead=self.instead(self.retain),
                block="utility",
                target="locked" if lock else "base",
                lock=lock,
                tuned_on=self.of.proxy if lock in self.tuned else None,
                task=self.of.retain,
            )

    def spectra(self) -> Iterator[Row]:
        """The mean over all weight matrices of σ₁."""
        for lock in ("", *self.every_lock):
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
        """σ_max(H) of base and locked model on the same examples of the first other task, each under the same head:
        one sample and one head for each seed."""
        task = self.task(self.of.others[0].task)
        for lock in ("", *self.every_lock):
            number = self.number(lock) if lock else "base"

            def measured(lock: str = lock) -> list[list[float]]:
                model = self.locked(lock).model if lock else self.base
                ends = [
                    spectral_ends(Objective.of(model, task, seed=seed).hessian(), "LM", seed=seed).by_modulus
                    for seed in range(self.of.seeds)
                ]
                return [[abs(end.value), end.residual] for end in ends]

            found = once(self.kept / f"curvature-{number}.json", measured)
            yield row(
                [value for value, _ in found],
                residuals=[residual for _, residual in found],
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
        # Nothing is chosen on the way: what is scored there is drawn, or is one look at the end.
        due = None if self.of.draws_curves else (steps,)
        seen = task.limit(validation=CURVE_EXAMPLES)
        attacked, outcome = how(model, seen, steps, due=due, utility=False)
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
            jobs=self.jobs,
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
        if number == 0:
            what = {"instead": self.instead(task), "column": other.column, "task": other.task}
            yield from rows_by_optimizer(record, lock, self.of.attacks, chance=task.chance, **what)

    def tuning_suite(self, task: Task) -> Suite:
        """What a trial is audited by: AdamW, and clipping first. The lock that is chosen meets the whole suite."""
        whole = self.suite(task)
        few = tuple(family for family in whole.families if family.searched)
        named = [family for family in few if family.attacks[0].config().get("optimizer") == "adamw"]
        return replace(whole, families=tuple(named), finalists=2)

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
            finalists=self.of.finalists,
            extended=False,
            # As in `quick`: AdamW, which trains any network from scratch.
            scratch=SCRATCH[:1] if self.of.from_scratch else (),
        )
