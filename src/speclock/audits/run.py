"""The audit itself: every attack of a suite on base, scratch, control and locked model alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from tqdm import tqdm

from speclock.attacks.base import Attack, InapplicableError, Outcome, Status, Watch
from speclock.audits import SUITES
from speclock.audits.flags import raised
from speclock.audits.gradients import blocked_gradients
from speclock.audits.kept_runs import KeptRuns
from speclock.audits.metrics import summarise, verdict
from speclock.audits.pruning import Pruner, visible
from speclock.audits.record import TARGETS, Record, RunRecord
from speclock.audits.suite import Suite
from speclock.audits.workers import workers
from speclock.environment import environment
from speclock.errors import InputError
from speclock.locks import LOCKS
from speclock.locks.base import Lock, Locked
from speclock.models import Model, fingerprint
from speclock.spectra import singular_values, weight_matrices
from speclock.tasks.base import Task
from speclock.workspace import kept_in

_TOP_K = 8
"""Singular values of each weight matrix that a record keeps."""


def audit(
    *,
    base: Model,
    locked: Model | Locked,
    retain: Task,
    attack: Task,
    suite: str | Suite = "quick",
    steps: int | None = None,
    seeds: int = 1,
    jobs: int = 1,
    public: Model | None = None,
    folder: Path | None = None,
    shared: Path | None = None,
) -> Record:
    """Attack base, scratch, control and locked model with one suite and say what the lock is worth.

    The first seed sweeps every attack of the suite on each target; the sweep's winners run again under the
    further seeds. ``locked`` with its lock card (:class:`Locked`) lets the control be trained. ``public`` is a
    public model that the attacker knows the locked one to be made from; without it, attacks that need one are
    left out. With ``folder``, finished runs and the control are kept there, and a killed audit goes on from
    them to the same summary; runs on base and scratch go to ``shared`` where that is given, for audits of
    other locks of the same base.

    ``jobs`` processes attack that many targets at once, each with its share of the cores, on the GPUs in turn
    where there are any. A run depends on nothing but its seed and the number of threads it sums with.

    Raises :class:`InputError` when base and locked model are not of one architecture.
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; an audit needs at least one.")
    model, card = (locked.model, locked.card) if isinstance(locked, Locked) else (locked, None)
    _check_one_family(base, model)
    chosen: Suite = SUITES[suite] if isinstance(suite, str) else suite
    budget = steps or chosen.steps
    start = time.perf_counter()
    with kept_in(folder) as kept:
        utility_base = retain.score(base)
        utility_locked = retain.score(model)
        targets = _Targets(base, model, _control(base, retain, card, kept))
        work = _Work(targets, attack, retain, chosen, budget, seeds, public, KeptRuns(kept, shared))
        runs = work.all_runs(jobs)
    record = Record(
        suite={
            "name": chosen.name,
            "version": chosen.version,
            "steps": budget,
            "seeds": list(range(seeds)),
            "public_base": None if public is None else _identity(public),
        },
        base=_identity(base),
        locked={
            **_identity(model),
            "card": card,
            "mean_top_sigma": None if card is None else _mean_top_sigma(model, lock_of(card)),
            "blocked_gradients": blocked_gradients(model, attack),
        },
        retain_task=retain.describe(),
        attack_task=attack.describe(),
        runs=runs,
        spectra=_spectra(base, model),
        environment=environment(),
        seconds=round(time.perf_counter() - start, 1),
    )
    record.summary = summarise(record, utility_base, utility_locked, budget)
    record.flags = raised(record)
    record.verdict = verdict(record)
    return record


@dataclass
class _Targets:
    """The four models that an audit attacks."""

    base: Model
    locked: Model
    control: Model | None

    def names(self) -> list[str]:
        return [name for name in TARGETS if name != "control" or self.control is not None]

    def __getitem__(self, key: tuple[str, int]) -> Model:
        name, seed = key
        if name == "scratch":
            return self.base.scratch(seed)
        model: Model = getattr(self, name)
        return model


@dataclass
class _Work:
    """What every run of an audit shares; a worker process gets a copy."""

    targets: _Targets
    task: Task
    retain: Task
    suite: Suite
    budget: int
    seeds: int
    public: Model | None
    kept: KeptRuns

    def all_runs(self, jobs: int) -> list[RunRecord]:
        """Every target's runs, target by target."""
        names = self.targets.names()
        total = len(names) * (len(self.attacks) + self.suite.finalists * (self.seeds - 1))
        with tqdm(total=total, desc="audit", unit="run", disable=None) as bar:
            if jobs == 1:

                def heard(run: RunRecord) -> None:
                    bar.set_postfix_str(f"{run.target}: {run.title}")
                    bar.update()

                return [run for name in names for run in self.on_target(name, heard)]
            with workers(min(jobs, len(names))) as pool:
                futures = [pool.submit(self.on_target, name) for name in names]
                while not all(future.done() for future in futures):
                    bar.update(len(self.kept) - bar.n)
                    time.sleep(0.5)
                    for future in futures:
                        if future.done():
                            future.result()  # a failed one ends the audit now
                return [run for future in futures for run in future.result()]

    @property
    def attacks(self) -> list[Attack]:
        """The suite's, but for those that need a public base where none is known."""
        return [attack for attack in self.suite.attacks if self.public is not None or not attack.needs_public]

    def on_target(
        self, name: str, heard: Callable[[RunRecord], object] = lambda run: None
    ) -> list[RunRecord]:
        """The sweep on one target under the first seed, then its winners under the further ones."""
        runs = []
        for run in self._sweep(name):
            runs.append(run)
            heard(run)
        for attack in _finalists(runs, self.suite):
            for seed in range(1, self.seeds):
                again = self._run(name, self.targets[name, seed], replace(attack, seed=seed))
                runs.append(again)
                heard(again)
        return runs

    def _sweep(self, name: str) -> Iterator[RunRecord]:
        """Every attack of the suite on one target; losing runs are given up at a quarter and at half the budget.

        A run is only given up when another has visibly learnt and left it visibly behind: while all of them
        hover around chance their order is noise, and pruning by it would flatter the lock (or, on scratch, the
        base).
        """
        pruner = Pruner(self.task.chance, visible(len(self.task.test)), self.budget)
        model = self.targets[name, 0]
        for attack in self.attacks:
            watch = pruner.begin()
            run = self._run(name, model, attack, watch=watch)
            pruner.end(run)
            yield run

    def _run(self, target: str, model: Model, attack: Attack, *, watch: Watch | None = None) -> RunRecord:
        found = self.kept.get(target, attack)
        if found is None:
            outcome = self._carry_out(target, model, attack, watch)
            found = RunRecord(
                target,
                attack.name,
                attack.config(),
                attack.seed,
                kind=attack.kind,
                label=attack.label,
                title=attack.title,
                **dataclasses.asdict(outcome),
            )
            self.kept.put(found)
        elif watch is not None:
            # The tuner hears of a finished run what it heard while it went on.
            for step, score in found.curve:
                watch(step, score)
        return found

    def _carry_out(self, target: str, model: Model, attack: Attack, watch: Watch | None) -> Outcome:
        try:
            return attack(
                model,
                self.task,
                self.budget,
                # What an attack costs of utility is asked of the released model; runs given up count, too: the
                # gentle ones, which lose nothing, are among them.
                retain=self.retain if target == "locked" else None,
                evaluations=self.suite.evaluations,
                watch=watch,
                public=self.public,
            ).outcome
        except InputError:
            raise
        except InapplicableError as error:
            reason = str(error)
        except (RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        # Not every attack fits every architecture; that is a finding about the attack, with its reason.
        return Outcome(Status.FAILED, [], None, reason=reason)


def _finalists(runs: list[RunRecord], suite: Suite) -> list[Attack]:
    """The attacks that did best on a target under the first seed, with ties going to the earlier one."""
    ended = [run for run in runs if run.best is not None and run.pruned_at is None]
    ended.sort(key=lambda run: -(run.best or 0.0))
    keys = [(run.attack, run.config) for run in ended[: suite.finalists]]
    return [attack for attack in suite.attacks if (attack.name, attack.config()) in keys]


def _control(base: Model, retain: Task, card: dict[str, Any] | None, kept: Path) -> Model | None:
    """The base after the lock's own training with its spectral term off, for as many steps as the lock took."""
    if card is None:
        return None
    lock = lock_of(card)
    weights = kept / "control.safetensors"
    if weights.exists():
        control = base.copy()
        load_model(control.module, weights)
        return control
    states = kept / "control"
    states.mkdir(exist_ok=True)
    control = lock.control(base, retain, stop_at=card["chosen_step"], folder=states)
    partial = weights.with_suffix(".partial")
    save_model(control.module, str(partial))
    partial.rename(weights)
    return control


def lock_of(card: dict[str, Any]) -> Lock:
    """The lock that a card describes."""
    config = {
        name: tuple(value) if isinstance(value, list) else value for name, value in card["config"].items()
    }
    lock: Lock = LOCKS[card["lock"]](**config)
    return lock


def _spectra(base: Model, locked: Model) -> list[dict[str, Any]]:
    after_lock = {w.name: w for w in weight_matrices(locked.module)}
    pairs = [
        (before, after_lock[before.name])
        for before in weight_matrices(base.module)
        if before.name in after_lock and after_lock[before.name].shape == before.shape
    ]
    rows = []
    for before, after in tqdm(pairs, desc="spectra", unit="matrix", disable=None, leave=False):
        k = min(_TOP_K, *before.shape)
        rows.append(
            {
                "name": before.name,
                "shape": list(before.shape),
                "base": singular_values(before.matrix.detach(), k).tolist(),
                "locked": singular_values(after.matrix.detach(), k).tolist(),
            }
        )
    return rows


def _mean_top_sigma(model: Model, lock: Lock) -> float:
    """What the card calls the lock's strength, by a converged solver rather than the lock's warm basis."""
    values: list[float] = []
    for weight in weight_matrices(model.module, lock.include, lock.exclude):
        values += singular_values(weight.matrix.detach(), lock.top_k).tolist()
    return sum(values) / len(values)


def _identity(model: Model) -> dict[str, Any]:
    return {"name": model.name, "fingerprint": fingerprint(model), "source": dataclasses.asdict(model.source)}


def _check_one_family(base: Model, locked: Model) -> None:
    """A lock may add layers or replace some; a model that shares hardly a tensor with the base is another one."""
    shapes = [
        {name: tuple(value.shape) for name, value in model.module.state_dict().items()}
        for model in (base, locked)
    ]
    differ = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    if base.labels != locked.labels or len(differ) > len(shapes[0]) / 2:
        first = differ[0] if differ else "the head's labels"
        raise InputError(
            f"{locked.name} is not a locked {base.name}: {first} is {shapes[1].get(first, 'missing')} in the "
            f"one and {shapes[0].get(first, 'missing')} in the other. Name the base that was locked with --base."
        )
