"""What an attacker has without the locked weights, and what the released behaviour alone gives away.

The floor is the best of what there is: *released*, what the model does before any attack, where its own head answers
the task (the lower of base and locked model: the base the attacker does not have, and what a lock itself taught is
no floor); *scratch*, the architecture freshly initialised, with as many steps as help; *classical*, no network at all;
*public*, the public model where one is known. The *student*, a fresh network taught
the base's answers, is no part of it: it stands for what no lock can keep, whatever it does to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from speclock.attacks.base import Attack, Scene, Watch
from speclock.attacks.finetune import FineTune
from speclock.audits.classical import classical
from speclock.audits.continued import continued
from speclock.audits.record import RunRecord
from speclock.audits.search import SEARCH_EXAMPLES, Pruning, at, rungs, searched, visible
from speclock.audits.suite import Family
from speclock.environment import Meter
from speclock.models import Model
from speclock.tasks.base import Split, Task
from speclock.tasks.causal_lm import CausalLM

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Int
    from torch import nn

    from speclock.training import Step

SCRATCH_BUDGET = 8
"""How many times the attack's budget training from scratch may take. Rates are compared at half of it; the best run
goes on to the end, and its best step on the way counts."""


def doublings(steps: int) -> list[int]:
    """The steps at which training from scratch is scored: a fresh transformer's first ones teach it nothing yet.

    >>> doublings(256)
    [64, 128, 256]
    """
    return sorted({max(1, steps // 4), max(1, steps // 2), steps})


STUDENT_STEPS, STUDENT_SEARCH = 1000, 250
"""Steps of the student's lessons, a fresh transformer's first hundreds teaching it nothing yet; and of those in which
their rates are compared."""


def without_a_network(task: Task, reader: Model) -> RunRecord:
    """The classical model's record: one run, scored once on the test split."""
    with Meter() as meter:
        found = continued(task) if isinstance(task, CausalLM) else classical(task, reader)
        run = _answered("classical", found.name, task, found.answers)
    return replace(run, seconds=meter.seconds, peak_memory_mb=meter.peak_memory_mb)


def as_released(task: Task, base: Model, locked: Model) -> RunRecord:
    """What base and locked model both do as they are: the run of the one that does less, with the test score of each.

    A lock that keeps what the model does leaves it to everybody. What it ruins nobody has any more, though the base
    did it; and what it adds, a backdoor for one, is in the locked weights alone.
    """

    def as_it_is(model: Model) -> RunRecord:
        return _answered("released", "as released", task, lambda split, of: of.answers(model, split))

    with Meter() as meter:
        runs = {"base": as_it_is(base), "locked": as_it_is(locked)}
        run = min(runs.values(), key=lambda run: run.best or 0.0)
    each = {name: run.test for name, run in runs.items()}
    return replace(
        run,
        config={**run.config, **each},
        seconds=meter.seconds,
        peak_memory_mb=meter.peak_memory_mb,
    )


def _answered(
    target: str, title: str, task: Task, answers: Callable[[Split, Task], Int[np.ndarray, " n"]]
) -> RunRecord:
    held, tested = answers("validation", task), answers("test", task)
    score = task.measured(held, "validation")
    return RunRecord(
        target=target,
        attack=target,
        config={"pipeline": title},
        seed=0,
        status="ok",
        stage="final",
        kind=target,
        family=target,
        title=title,
        curve=[(0, score)],
        best=score,
        best_step=0,
        test=task.measured(tested, "test"),
        answers=tested.tolist(),
        beside={name: of.measured(answers("test", of), "test") for name, of in task.beside.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Lesson(FineTune):
    """A fresh network taught what the base answers: KL divergence to its logits at a temperature of 2."""

    schedule: str = "linear"
    batch_size: int = 32

    name: ClassVar[str] = "lesson"

    def trajectory(self, model: Model, scene: Scene) -> Iterator[Step]:
        import torch

        from speclock.locks.retain import divergence
        from speclock.training import fit

        assert scene.public is not None
        teacher, heat = scene.public.copy().module.eval().requires_grad_(False), 2.0

        def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with torch.no_grad():
                wanted = scene.task.logits(teacher, batch).float()
            found = scene.task.logits(module, batch).float()
            return scene.task.averaged(divergence(wanted, found, heat), batch)

        model.module.requires_grad_(True)
        lessons = replace(self, warmup=scene.steps // 10)
        yield from fit(model, scene.task, lessons, steps=scene.steps, loss=loss, title="student")


LESSONS = Family(tuple(Lesson(optimizer="adamw", lr=lr, weight_decay=0.01) for lr in (1e-3, 1e-4, 1e-2)))


def taught_by(
    base: Model, retain: Task, steps: int = STUDENT_STEPS, compared: int = STUDENT_SEARCH, seed: int = 0
) -> tuple[Model, dict[str, Any]]:
    """The base's architecture, fresh, taught the base's answers to the retain task's inputs; and how well it does.

    The rate of its lessons is searched as an attack's is, in fewer steps and on as many validation examples of the
    retain task.
    """
    fresh, some = base.scratch(seed), retain.limit(validation=SEARCH_EXAMPLES)
    pruning = Pruning(retain.chance, visible(retain.metric, len(some.part("validation"))), compared)

    def attempt(attack: Attack, watch: Watch) -> RunRecord:
        outcome = attack(
            fresh, some, compared, public=base, due=rungs(compared), watch=watch, utility=False
        ).outcome
        return RunRecord.of(attack, outcome, target="student", stage="search", steps=compared)

    runs = list(searched(LESSONS, attempt, pruning))
    scored = [run for run in runs if run.best is not None]
    best = max(scored, key=lambda run: run.best or 0.0) if scored else runs[0]
    chosen = replace(at(LESSONS.attacks[0], best.config["lr"]), seed=seed)
    attacked = chosen(fresh, retain, steps, public=base, quoted=True, utility=False)
    return attacked.model, {
        "utility": attacked.outcome.test,
        "lr": best.config["lr"],
        "steps": steps,
        "rates_tried": len(runs),
    }
