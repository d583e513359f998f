"""An experiment in its folder: models, runs and audits are made once, found again, and told in rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.attacks.heal import Heal
from speclock.attacks.probe import Probe
from speclock.attacks.repair import Clip
from speclock.audits.intervals import change_interval
from speclock.audits.run import CURVE_EXAMPLES
from speclock.audits.suite import Family, Suite, around, listed
from speclock.audits.tune import Trial, chosen, tune
from speclock.experiments.audited import audited_in, fell_back, rows_by_optimizer, searched_rows
from speclock.experiments.base import Row, each_once, row
from speclock.experiments.claims import KEPT
from speclock.experiments.settings import UNGUARDED, Other, Printed, Settings
from speclock.experiments.spectra import curvature_row, spectrum_row
from speclock.locks.base import Locked
from speclock.locks.card import read_card
from speclock.locks.composition import lock_named
from speclock.models import Model
from speclock.numbers import finite
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task, is_proportion
from speclock.training import Checkpoint, train

_ALLOWED = 0.0075
"""Utility that a tuned lock may lose on the validation split, for it to lose a point at most on the test split: the
best of many states of many locks does worse on a split that it was not chosen by."""
REACH = 4
"""Decades beyond the rates that a search starts from that it tries while nothing learns: where the weights are worth
no more than the floor, that training stalls is all that there is to be said for a lock."""


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


def _with_own_head(model: Model, task: Task) -> Model:
    """The model, its own head taken for the task's where it has as many outputs."""
    alike = task.kind == "classification" and len(model.labels or ()) == len(task.labels)
    return replace(model, labels=task.labels) if alike else model


@dataclass
class Place:
    """Where ``of`` keeps what it made."""

    of: Settings
    kept: Path
    jobs: int = 1
    as_they_are: dict[tuple[str, str, int], dict[str, float]] = field(default_factory=dict)
    """What the tasks beside an attack task score before it, by task, target and seed of the lock."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process finds in the folder what was made.
        return Place, (self.of, self.kept)

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
    def public(self) -> Model | None:
        """What the base was made from, where anybody can have it: who trains that needs no lock broken."""
        return self.untrained if self.untrained.source.kind in ("hub", "package") else None

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

    def locked(self, lock: str, seed: int = 0) -> Locked:
        name = f"lock-{self.number(lock)}" + (f"-{seed}" if seed else "")
        return locked_in(self.kept / name, lock, lambda: self.base, self.retain, {"seed": seed})

    def made(self, lock: str) -> list[Locked]:
        """The lock under each of the seeds that it is made under; the base has none."""
        return [self.locked(lock, seed) for seed in range(self.of.lock_seeds if lock == self.of.lock else 1)]

    def models(self, lock: str) -> list[Model]:
        """What stands in a row of that lock: the base where there is none."""
        return [each.model for each in self.made(lock)] if lock else [self.base]

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
            max_utility_drop=_ALLOWED,
            locks=self.of.tuned_from,
            first=(self.of.lock.removesuffix(UNGUARDED), *self.of.tuned_first),
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
        best = chosen(self.trials, _ALLOWED, "score")
        return () if best is None else (f"{best.lock},max_utility_drop={_ALLOWED}",)

    # -- rows ----------------------------------------------------------------------------------------------

    def search_for_a_lock(self) -> Iterator[Row]:
        """How many settings of the paper's lock were tried, and what the best of them left on the task that they were
        tried on."""
        if not self.trials:
            return
        best = chosen(self.trials, _ALLOWED, "score")
        yield row(
            [1.0 if best is None else best.score],
            block="tuning",
            target="locked",
            lock="" if best is None else best.lock,
            task=self.of.proxy,
            trials=len(self.trials),
            audited=sum(trial.status == "audited" for trial in self.trials),
            strongest_attack=best and best.strongest_attack,
            base=best and best.base,
            worth=best and best.worth,
            max_utility_drop=_ALLOWED,
            every=[asdict(trial) for trial in self.trials],
        )

    @property
    def every_lock(self) -> tuple[str, ...]:
        """The paper's, ours, and the paper's as tuned."""
        return (*self.of.all_locks, *self.tuned)

    def utilities(self) -> Iterator[Row]:
        paper = {"": self.of.utility[0], self.of.lock: self.of.utility[1]}
        truth, before = self.retain.test.labels, self.retain.answers(self.base)
        for lock in ("", *self.every_lock):
            cards = [made.card for made in self.made(lock)] if lock else []
            answers = [self.retain.answers(model) for model in self.models(lock)] if lock else [before]
            changed = [
                change_interval(
                    before, after, truth, self.retain.measure, proportion=is_proportion(self.retain.metric)
                )
                for after in answers
                if lock
            ]
            changes = [change for change in changed if change is not None]
            yield row(
                [self.retain.measured(each) for each in answers],
                examples=len(truth),
                changes=changes,
                # Of several draws of the lock, what any of them may be.
                change_ci=(min(low for low, _ in changes), max(high for _, high in changes))
                if changes
                else None,
                status=next((card["status"] for card in cards if card["status"] != "ok"), "ok"),
                fell_back=any(map(fell_back, cards)),
                cards=cards,
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
            yield spectrum_row(
                self.models(lock),
                instead=self.instead(self.retain),
                target="locked" if lock else "base",
                lock=lock,
            )

    def curvatures(self) -> Iterator[Row]:
        """σ_max(H) of base and locked model on the same examples of the first other task, each under the same head:
        one sample and one head for each seed, and the lock's draws in turn."""
        task = self.task(self.of.others[0].task)
        samples = self.of.curvature_samples or self.of.seeds
        for lock in ("", *self.every_lock):
            number = self.number(lock) if lock else "base"

            models = self.models(lock)
            yield curvature_row(
                [models[seed % len(models)] for seed in range(samples)],
                task,
                self.kept / f"curvature-{number}.json",
                instead=self.instead(task),
                target="locked" if lock else "base",
                lock=lock,
            )

    def before(self, other: Other) -> Iterator[Row]:
        """What base and locked model score on a task of their own labels as they are: a backdoor that nobody put in."""
        task = self.task(other.task)
        if not task.fits(self.base):
            return
        for i, (target, lock) in enumerate((("base", ""), ("locked", self.of.lock))):
            score = self.as_it_is(task, target)
            yield row(
                [task.chance if score is None else score],
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
        before = {target: self.as_it_is(task, target) for target in ("base", "locked")}
        made = {
            (attack, target, seed): self.kept
            / f"printed-{other.column}-{attack.optimizer}-{attack.lr:g}-{target}-{seed}.json"
            for attack in self.of.attacks
            for target in ("base", "locked")
            for seed in range(1, self.of.seeds + 1)
        }
        files = {file: partial(self._run, other, *which) for which, file in made.items()}
        found = dict(zip(made, each_once(files, self.jobs, f"{other.column}, as printed"), strict=True))
        for attack in self.of.attacks:
            steps = self.of.steps(task, attack)
            for i, target in enumerate(("base", "locked")):
                runs = [found[attack, target, seed] for seed in range(1, self.of.seeds + 1)]
                states = [self._state(task, target, seed, run) for seed, run in enumerate(runs, start=1)]
                what: dict[str, Any] = {
                    "instead": self.instead(task),
                    "column": other.column,
                    "task": other.task,
                    "target": target,
                    "lock": self.of.lock if target == "locked" else "",
                    "optimizer": attack.optimizer,
                    "lr": attack.lr,
                    "steps": steps,
                    "chance": task.chance,
                    "as_it_is": before[target],
                    "runs": len(runs),
                    "diverged": states.count("diverged"),
                    "collapsed": states.count("collapsed"),
                }
                # A run that ruined the model is none that one could take for a success, nor lower the mean of those.
                ended = [run for run, state in zip(runs, states, strict=True) if state == "ok"] or [
                    run for run, state in zip(runs, states, strict=True) if state == "collapsed"
                ]
                yield row(
                    [run["score"] for run in ended] or [task.chance],
                    paper=getattr(other, target) if attack.quoted else None,
                    remark=other.remark if attack.quoted and target == "locked" else None,
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

    def _state(self, task: Task, target: str, seed: int, run: dict[str, Any]) -> str:
        """How a printed run ended: ok, diverged, or collapsed, where what stands beside the task fell."""
        if run["diverged"]:
            return "diverged"
        before = self.beside(task, target, seed) if task.collapses else {}
        fallen = any(run["beside"][name] < before[name] - KEPT for name in before)
        return "collapsed" if fallen else "ok"

    def attacked(self, target: str, seed: int) -> Model:
        """What a printed attack of that seed, from 1 on, meets."""
        return (
            self.base
            if target == "base"
            else self.locked(self.of.lock, (seed - 1) % self.of.lock_seeds).model
        )

    def beside(self, task: Task, target: str, seed: int) -> dict[str, float]:
        """What the model as it is scores on the tasks beside."""
        key = task.name, target, (seed - 1) % self.of.lock_seeds
        if key not in self.as_they_are:
            model = self.attacked(target, seed)
            self.as_they_are[key] = {n: of.fitted_to(model).score(model) for n, of in task.beside.items()}
        return self.as_they_are[key]

    def as_it_is(self, task: Task, target: str) -> float | None:
        """What the model scores before any attack under the head that a printed attack keeps; None under a fresh one,
        or where it has broken down.

        Paraphrases are told by whoever was taught other paraphrases: that is no training.
        """
        model = _with_own_head(self.attacked(target, 1), task)
        return finite(task.fitted_to(model).score(model)) if task.fits(model) else None

    def _run(self, other: Other, attack: Printed, target: str, seed: int) -> dict[str, Any]:
        """The scores that the last step leaves, as the paper takes them; of a run that diverged, chance.

        The head is the model's own where it has as many outputs as the task has labels, for which B.2 chose its tasks.
        """
        task = self.task(other.task)
        steps = self.of.steps(task, attack)
        model = _with_own_head(self.attacked(target, seed), task)
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
        suite = self.suite(task)
        ours = lock in self.of.our_locks
        if ours and self.of.our_finalists:
            suite = replace(suite, finalists=self.of.our_finalists)
        record = audited_in(
            self.kept / f"audit-{other.column}-{number}",
            base=self.base,
            locked=self.locked(lock),
            retain=self.retain,
            attack=task,
            suite=suite,
            seeds=self.of.seeds,
            jobs=self.jobs,
            folder=work,
            shared=self.kept,
            floors=self.kept,
            public=None if task.in_place else self.public,
            control=not ours or self.of.our_controls,
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
            names = [attack.optimizer for attack in self.of.attacks]
            yield from rows_by_optimizer(record, lock, names, chance=task.chance, **what)

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
            families.append(replace(around(FineTune, a.middle, optimizer=a.optimizer, **own), reach=REACH))
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
            # As in `quick`: AdamW, which trains any network from scratch; in batches like the attacks'.
            scratch=(around(FineTune, 3e-4, batch_size=self.of.batch_size),) if self.of.from_scratch else (),
        )
