"""Who runs what: an audit's searches and finals as units of work, one after the other or in several processes."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from speclock.attacks.base import Attack, InapplicableError, Outcome, Status, Watch, log_spaced
from speclock.audits.floors import SCRATCH_BUDGET, as_released, doublings, without_a_network
from speclock.audits.kept_runs import KeptRuns
from speclock.audits.record import RunRecord
from speclock.audits.search import SEARCH_EXAMPLES, Pruning, at, rungs, searched, visible
from speclock.audits.suite import Family, Suite
from speclock.audits.targets import Targets
from speclock.audits.workers import workers
from speclock.environment import has_bf16, ran_out_of_memory
from speclock.errors import InputError
from speclock.locks.card import Card
from speclock.models import Model
from speclock.tasks.base import NOTABLE, Task

COLLAPSE_RULES = 2
"""How runs on tasks that can collapse are judged, which no other run depends on: raised where RULES would be. 2: of a
model with a head of its own, a run whose every evaluation after the start is not counted has collapsed."""

KEPT_WITHIN = 0.05
"""How far what stands beside a backdoor or a relearning may fall below the base's, as it is, for its score to count."""


_ANSWERED: dict[str, Callable[[Task, Targets], RunRecord]] = {
    "released": lambda task, of: as_released(task, of.base, of.locked),
    "classical": lambda task, of: without_a_network(task, of.base),
}
"""Targets that answer without an attack."""


@dataclass(frozen=True)
class Unit:
    """What is done in one go, by one process."""

    target: str
    family: Family | None = None
    """Search this family on the target."""
    final: Attack | None = None
    """Run this finalist on the target."""
    times: int = 1
    """How many times the budget a finalist has."""


@dataclass
class Work:
    """An audit's runs. A worker process reads a copy from disk."""

    targets: Targets
    task: Task
    retain: Task
    suite: Suite
    budget: int
    seeds: int
    siblings: tuple[Any, ...]
    card: Card | None
    """What the locked folder says of itself, to any attacker too."""
    kept: KeptRuns
    keep: float | None = None
    """What the tasks beside must score for an evaluation to count; None until it is known."""
    keep_locked: float | None = None
    """The same on locked model and control: what a lock ruined is no attack's to keep, but to do the tasks it is."""
    runs: list[RunRecord] = field(default_factory=list)

    def carry_out(self, crew: Crew) -> None:
        """Everything within the budget: first what needs nothing of the others, then what those runs decide on."""
        if self.task.collapses and self.task.fits(self.targets.base):
            self.keep, self.keep_locked = bars(self.targets.base, self.targets.locked, self.task)
        trained = self.targets.trained()
        # The longest come first, so that no process ends with one while the others wait.
        prepared = [*trained, *["repeated"] * bool(self.targets.stages and self.targets.repeat)]
        first = [name for name in ("scratch", "base", "public") if name in self.targets.names()]
        answered = ["released"] * self.task.fits(self.targets.base)
        # A backdoor is wanted in this model; no bag of words passes for it.
        answered += ["classical"] * (not self.task.in_place)
        self._do(crew, [*map(Unit, prepared), *self._searches(first), *map(Unit, answered)])
        self._settle()
        self._do(crew, [*self._finals(first), *self._searches(["locked"])])
        explaining = [name for name in trained if name in self.targets.names()]
        self._do(crew, [*self._finals(["locked"]), *self._searches(explaining)])
        self._do(crew, self._finals(explaining))

    def go_on(self, crew: Crew, times: int) -> None:
        """The finalists of every target but scratch, which had as many steps as help, with more of a budget."""
        again = [name for name in self.targets.names() if name != "scratch"]
        self._do(crew, self._finals(again, times))

    def perform(self, unit: Unit) -> list[RunRecord]:
        """One unit's runs."""
        if unit.family is not None:
            return list(self._search(unit.target, unit.family))
        if unit.final is not None:
            return [self._final(unit.target, unit.final, unit.times)]
        if unit.target in _ANSWERED:
            made = _ANSWERED[unit.target]
            run = self.kept.once(unit.target, lambda: made(self.task, self.targets))
            if self.keep is not None:
                recount_(run, self.keep)
            return [run]
        self.targets.prepare(unit.target)
        return []

    # -- which units ---------------------------------------------------------------------------------------

    def _do(self, crew: Crew, units: list[Unit]) -> None:
        for found in crew.perform(self, units):
            self.runs += found

    def _searches(self, names: Iterable[str]) -> list[Unit]:
        return [Unit(name, family) for name in names for family in self._families(name)]

    def _families(self, target: str) -> list[Family]:
        """The suite's, but for those that lack what they need.

        What is attacked to explain a verdict, and not to find one, meets what came to the finals on base or locked
        model: the attacker's best there is what it is compared with.
        """
        if target == "scratch":
            return list(self.suite.scratch)
        if target in self.targets.trained():
            best = {attack.label for name in ("base", "locked") for attack in self._finalists(name)}
            return [family for family in self.suite.families if family.name in best]
        lacking = {
            "needs_public": self.targets.public is None or target == "public",
            "needs_siblings": not self.siblings,
            "needs_labels": self.task.kind != "classification",
        }
        bf16 = has_bf16()
        # Where there is no batch norm, to freeze its statistics is no attack.
        normed = any(isinstance(part, _BatchNorm) for part in self.targets.base.module.modules())

        def applies(attack: Attack) -> bool:
            config = attack.config()
            return (
                not any(getattr(attack, need) and lacks for need, lacks in lacking.items())
                and (bf16 or config.get("precision", "no") != "bf16")
                and (normed or config.get("batch_statistics", True))
            )

        return [family for family in self.suite.families if applies(family.attacks[0])]

    def _finals(self, names: Iterable[str], times: int = 1) -> list[Unit]:
        return [
            Unit(name, final=replace(attack, seed=seed), times=times)
            for name in names
            for attack in self._finalists(name)
            for seed in range(1, self.seeds + 1)
        ]

    def _finalists(self, target: str) -> list[Attack]:
        """The best configuration of the most promising families, the best uninformed and informed one among them."""
        attacks = {(a.name, a.label): a for family in self._families(target) for a in family.attacks}
        runs = [r for r in self.runs if r.target == target and r.stage == "search" and r.best is not None]
        best: dict[str, RunRecord] = {}
        for run in sorted(runs, key=lambda run: -(run.best or 0.0)):
            best.setdefault(run.family, run)
        order = list(best.values())
        ends = [next((run for run in order if run.informed is informed), None) for informed in (False, True)]
        chosen = [run for run in ends if run is not None]
        chosen += [run for run in order if run not in chosen]
        most = 1 if target == "scratch" else max(self.suite.finalists, len([e for e in ends if e]))
        found = []
        for run in chosen[:most]:
            attack = attacks[run.attack, run.family]
            found.append(at(attack, run.config["lr"]) if "lr" in run.config else attack)
        return found

    def _settle(self) -> None:
        """Where the base as it is has no head to say what must stand beside a score, decide it by the best that the
        base's search had there, and count the runs so far by it."""
        if not self.task.collapses or self.keep is not None:
            return
        reached = [
            min(dict(curve)[step] for curve in run.beside_curves.values())
            for run in self.runs
            if run.target == "base"
            for step, _ in run.curve
        ]
        self.keep = max(reached, default=0.0) - KEPT_WITHIN
        for run in self.runs:
            recount_(run, self.keep)

    def _least(self, target: str) -> float | None:
        """What the tasks beside must score on a target."""
        return (
            self.keep if self.keep_locked is None or target not in ("locked", "control") else self.keep_locked
        )

    # -- runs ----------------------------------------------------------------------------------------------

    def _search(self, target: str, family: Family) -> Iterator[RunRecord]:
        scratch = target == "scratch"
        steps = self.budget * SCRATCH_BUDGET // 2 if scratch else self.budget
        due = doublings(steps) if scratch else rungs(steps)
        task = self.task.limit(validation=SEARCH_EXAMPLES)
        pruning = Pruning(task.chance, visible(task.metric, len(task.part("validation"))), steps)

        def attempt(attack: Attack, watch: Watch) -> RunRecord:
            return self._run(target, attack, "search", task, steps, due=due, watch=watch)

        return searched(family, attempt, pruning)

    def _final(self, target: str, attack: Attack, times: int) -> RunRecord:
        scratch = target == "scratch"
        steps = self.budget * (SCRATCH_BUDGET if scratch else times)
        due = doublings(steps) if scratch else log_spaced(steps)
        return self._run(target, attack, "final", self.task, steps, due=due)

    def _run(
        self, target: str, attack: Attack, stage: str, task: Task, steps: int, **asked: Any
    ) -> RunRecord:
        settings = {"stage": stage, "steps": steps, "keep": self._least(target)}
        if self.task.collapses:
            settings["collapse"] = COLLAPSE_RULES
        if (kept := self.kept.get(target, attack, **settings)) is not None:
            return kept
        outcome, fits = self._carry_out(target, attack, task, steps, quoted=stage == "final", **asked)
        run = RunRecord.of(attack, outcome, target=target, stage=stage, steps=steps)
        if fits:
            self.kept.put(run, attack, **settings)
        return run

    def _carry_out(
        self, target: str, attack: Attack, task: Task, steps: int, *, quoted: bool, **asked: Any
    ) -> tuple[Outcome, bool]:
        """What the attack gave, and whether that is a finding: memory that ran out says nothing of the model."""
        try:
            model = self.targets.model(target, attack.seed)
            attacked = attack(
                model,
                task,
                steps,
                retain=self.retain,
                public=self.targets.public,
                # What was not released several times over averages to itself.
                siblings=self.siblings if target == "locked" else (model,) * len(self.siblings),
                card=self.card if target == "locked" else None,
                keep=self._least(target),
                quoted=quoted,
                # What an attack costs of utility is asked of the released model.
                utility=quoted and target == "locked",
                **asked,
            )
            return attacked.outcome, True
        except InputError:
            raise
        except InapplicableError as error:
            return Outcome(Status.FAILED, [], None, reason=str(error)), True
        except (RuntimeError, ValueError, MemoryError) as error:
            if ran_out_of_memory(error):
                return Outcome(
                    Status.FAILED, [], None, reason="out of memory, with one example at a time"
                ), False
            # Not every attack fits every architecture. It may also be the machine's fault, so it is tried again by
            # whoever asks next.
            return Outcome(Status.FAILED, [], None, reason=f"{type(error).__name__}: {error}"), False


def kept_by(model: Model, task: Task) -> float:
    """What must stand beside a score for it to count: what the model scores there as it is, less five points."""
    return min(other.score(model, "validation") for other in task.beside.values()) - KEPT_WITHIN


def bars(base: Model, locked: Model, task: Task) -> tuple[float, float]:
    """What must stand beside a score on the base, and on the locked model, whose lock may have ruined some of it; but
    a model that does not do those tasks is none that anything was put into."""
    keep = kept_by(base, task)
    least = max(other.chance + NOTABLE[other.metric] for other in task.beside.values())
    return keep, min(keep, max(least, kept_by(locked, task)))


def recount_(run: RunRecord, keep: float) -> None:
    """Count a run's evaluations again, those alone at which what stands beside was kept.

    A run that has no such evaluation, or a test score beside which the clean one fell, has collapsed.
    """
    if run.status != "ok":
        return
    run.uncounted = [
        step for step, _ in run.curve if any(dict(curve)[step] < keep for curve in run.beside_curves.values())
    ]
    counted = [(score, -step) for step, score in run.counted]
    fell = run.test is not None and any(value < keep for value in run.beside.values())
    if fell or not counted:
        run.status, run.best, run.best_step, run.test = "collapsed", None, None, None
        run.reason = f"no evaluation kept what stands beside it at {keep:.1%}"
        return
    run.best, run.best_step = max(counted)[0], -max(counted)[1]


# -- who does them -----------------------------------------------------------------------------------------


@dataclass
class Crew:
    """One process, or several that read their work from a file."""

    bar: tqdm[Any]
    pool: Executor | None = None
    folder: Path | None = None

    def perform(self, work: Work, units: list[Unit]) -> Iterator[list[RunRecord]]:
        """What each unit gives, in the order of the units."""
        self.bar.total = (self.bar.total or 0) + len(units)
        self.bar.refresh()
        if self.pool is None:
            for unit in units:
                found = work.perform(unit)
                self._heard(unit)
                yield found
            return
        assert self.folder is not None
        # A path, not tensors: each tensor that is handed to a process holds a file of its own open.
        number = len(list(self.folder.glob("work-*.pt")))
        path = self.folder / f"work-{number}.pt"
        torch.save(replace(work, runs=[]), path)
        futures = {self.pool.submit(_perform, path, unit): unit for unit in units}
        for future in as_completed(futures):
            future.result()  # a failed one ends the audit now
            self._heard(futures[future])
        yield from (future.result() for future in futures)

    def _heard(self, unit: Unit) -> None:
        what = unit.family.name if unit.family else unit.final.title if unit.final else ""
        self.bar.set_postfix_str(f"{unit.target}: {what}".rstrip(": "))
        self.bar.update()


@contextlib.contextmanager
def crew(jobs: int, folder: Path) -> Iterator[Crew]:
    """A crew of ``jobs`` processes, this one where that is one."""
    with tqdm(desc="audit", unit="unit", disable=None) as bar:
        if jobs == 1:
            yield Crew(bar)
            return
        for left in folder.glob("work-*.pt"):
            left.unlink()
        with workers(jobs) as pool:
            yield Crew(bar, pool, folder)


def _perform(path: Path, unit: Unit) -> list[RunRecord]:
    return _read(path).perform(unit)


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Work:
    from transformers import PreTrainedModel

    work: Work = torch.load(path, weights_only=False)  # written by the process that asks for it
    if isinstance(module := work.targets.base.module, PreTrainedModel):
        # transformers learns what a class can say of its layers where one is built, which reading a pickle does not.
        with torch.device("meta"):
            type(module)(module.config)
    # After each run of a large model what it left is collected; libraries and work, looked through each time, take a
    # third of a second and leave nothing.
    gc.freeze()
    return work
