"""One attack on one model at several learning rates: what `speclock attack` carries out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speclock.attacks.base import Attack, Attacked, InapplicableError
from speclock.audits.kept_runs import KeptRuns
from speclock.audits.record import RunRecord
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
    attacks: Sequence[Attack],
    steps: int,
    folder: Path,
    *,
    public: Model | None = None,
    siblings: tuple[Model, ...] = (),
    card: Card | None = None,
    retain: Task | None = None,
) -> Iterator[RunRecord]:
    """Each attack's run on ``model``; those that a killed sweep had finished come from ``folder``.

    Raises :class:`InputError` where an attack does not fit the model.
    """
    kept = KeptRuns({"attacked": folder}, {"attacked": [fingerprint(model), task.digest(), steps]})
    for attack in attacks:
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
                quoted=False,
            )
            run = _record(attack, steps, done, "search")
            kept.put(run, attack)
        yield run


def concluded(
    model: Model, task: Task, attacks: Sequence[Attack], runs: list[RunRecord], steps: int, **scene: Any
) -> Sweep:
    """The sweep, with the best of its attacks carried out again and quoted on the test split."""
    scored = [(run, attack) for run, attack in zip(runs, attacks, strict=True) if run.best is not None]
    if not scored:
        return Sweep(model, task, steps, runs, None, None)
    _, attack = max(scored, key=lambda pair: pair[0].best or 0.0)
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
