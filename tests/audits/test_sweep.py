"""`speclock attack`: one attack at several rates on one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from speclock.attacks.finetune import FineTune
from speclock.audits.suite import Family
from speclock.audits.sweep import concluded, tried
from speclock.audits.work import KEPT_WITHIN
from speclock.models import Model
from speclock.tasks.base import Task
from speclock.tasks.poison import poison


def test_a_search_goes_on_from_a_rate_that_is_too_low(base: Model, silhouettes: Task, tmp_path: Path) -> None:
    family = Family(tuple(FineTune(optimizer="adamw", lr=lr, batch_size=32) for lr in (1e-5, 1e-6, 1e-4)))
    runs = list(tried(base, silhouettes, family, 16, tmp_path))
    rates = [run.config["lr"] for run in runs]
    best = concluded(base, silhouettes, family, runs, 16).best
    assert best is not None
    assert min(rates) < best.config["lr"] < max(rates)
    assert best.config["lr"] > 1e-4
    again = list(tried(base, silhouettes, family, 16, tmp_path))
    assert [run.seconds for run in again] == [run.seconds for run in runs], "none was carried out twice"


def test_a_backdoor_counts_only_while_the_clean_score_holds(
    base: Model, digits: Task, tmp_path: Path
) -> None:
    """Nine in ten training images have the trigger: most steps that plant it ruin the model."""
    task = poison(digits, "0", rate=0.9)
    clean = digits.divided().score(base, "validation")
    rates = (3e-4, 1e-1)
    family = Family(tuple(FineTune(optimizer="adamw", lr=lr, batch_size=32) for lr in rates), searched=False)
    runs = list(tried(base, task, family, 16, tmp_path))
    for run in runs:
        (beside,) = run.beside_curves.values()
        below = [step for step, score in beside if score < clean - KEPT_WITHIN]
        assert run.uncounted == below
    assert runs[1].uncounted
    assert runs[1].status == "collapsed" or runs[1].best_step not in runs[1].uncounted
    best = concluded(base, task, family, runs, 16).best
    assert best is not None
    assert best.best == pytest.approx(max(run.best for run in runs if run.best is not None), abs=1e-6)
