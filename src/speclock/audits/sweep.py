"""One attack on one model at several learning rates, given or searched: what `speclock attack` carries out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speclock.attacks.base import Attack, Attacked, InapplicableError, Watch
from speclock.audits.kept_runs import KeptRuns
from speclock.audits.record import RunRecord
from speclock.audits.search import Pruning, at, searched, visible
from speclock.audits.suite import Family
from speclock.audits.work import kept_by
from speclock.environment import environment
from speclock.errors import InputError
from speclock.locks.card import Card
from speclock.models import Model, fingerprint
from speclock.tasks.base import Task

FORMAT = "speclock-attack/2"


@dataclass
class Sweep:
    """What several runs on one model gave."""

    model: Model
    task: Task
    steps: int
    runs: list[RunRecord]
    best: RunRecord | None
    """The run of the best attack, chosen on the validation split, carried out again and scored on the test split."""
    attacked: Model | None
    """The model that the best run left at its best evaluation."""

    def to_dict(self) -> dict[str, Any]:
        """What `attack.json` holds."""
        return {
            "format": FORMAT,
            "model": {"name": self.model.name, "fingerprint": fingerprint(self.model)},
            "task": self.task.describe(),
            "steps": self.steps,
            "runs": [run.to_dict() for run in self.runs],
            "best": None if self.best is None else self.best.to_dict(),
            "environment": environment(),
        }


def tried(
    model: Model,
    task: Task,
    family: Family,
    steps: int,
    folder: Path,
    *,
    public: Model | None = None,
    siblings: tuple[Model, ...] = (),
    card: Card | None = None,
    retain: Task | None = None,
) -> Iterator[RunRecord]:
    """Each run of the family on ``model``; those that a killed sweep had finished come from ``folder``.

    Where rates are searched, runs that fall behind are given up, as in an audit. Raises :class:`InputError` where an
    attack does not fit the model.
    """
    bound = [fingerprint(model), task.digest(), steps, family.searched]
    kept = KeptRuns({"attacked": folder}, {"attacked": bound})

    def attempt(attack: Attack, watch: Watch) -> RunRecord:
        run = kept.get("attacked", attack)
        if run is None:
            done = _carried_out(
                model,
                task,
                attack,
                steps,
                public=public,
                siblings=siblings,
                card=card,
                retain=retain,
                watch=watch if family.searched else None,
                quoted=False,
            )
            run = _record(attack, steps, done, "search")
            kept.put(run, attack)
        return run

    sight = visible(task.metric, len(task.divided().part("validation")))
    yield from searched(family, attempt, Pruning(task.chance, sight, steps))


def concluded(
    model: Model, task: Task, family: Family, runs: list[RunRecord], steps: int, **scene: Any
) -> Sweep:
    """The sweep, with the best of its attacks carried out again and quoted on the test split."""
    best = max((run for run in runs if run.best is not None), key=lambda run: run.best or 0.0, default=None)
    if best is None:
        return Sweep(model, task, steps, runs, None, None)
    attack = family.attacks[0]
    if "lr" in best.config:
        attack = at(attack, best.config["lr"])
    done = _carried_out(model, task, attack, steps, quoted=True, **scene)
    return Sweep(model, task, steps, runs, _record(attack, steps, done, "final"), done.model)


def _carried_out(model: Model, task: Task, attack: Attack, steps: int, **asked: Any) -> Attacked:
    keep = None
    if task.collapses and model.labels == task.head:
        # A backdoor is one only while the clean score is what it was.
        keep = kept_by(model, task)
    try:
        return attack(model, task, steps, utility=False, keep=keep, **asked)
    except InapplicableError as error:
        raise InputError(f"{attack.name} does not fit {model.name}: {error}.") from error


def _record(attack: Attack, steps: int, done: Attacked, stage: str) -> RunRecord:
    return RunRecord.of(attack, done.outcome, target="attacked", stage=stage, steps=steps)
