"""A whole audit on real data at toy size: contract, resume, pruning, repeats."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import speclock
from speclock.attacks.base import Scene
from speclock.attacks.finetune import FineTune
from speclock.attacks.repair import Clip
from speclock.audits.pruning import Pruner, visible
from speclock.audits.record import TARGETS, Record
from speclock.audits.run import audit
from speclock.audits.suite import QUICK, STANDARD, Suite
from speclock.errors import InputError
from speclock.locks.base import Locked
from speclock.models import Model
from speclock.tasks.base import Task

SUITE = Suite(
    name="toy",
    version=1,
    steps=40,
    attacks=(
        FineTune(optimizer="adamw", lr=1e-3, batch_size=32),
        FineTune(optimizer="adamw", lr=1e-5, batch_size=32),
        FineTune(optimizer="sgd", lr=1e30, clip=None, batch_size=32),
        Clip(optimizer="adamw", lr=1e-3, batch_size=32, rank=2),
    ),
)


@pytest.fixture(scope="module")
def locked(base: Model, digits: Task) -> Locked:
    return speclock.lock(
        base,
        digits,
        speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, steps=40, evaluations=4, max_utility_drop=0.02),
    )


@pytest.fixture(scope="module")
def record(base: Model, locked: Locked, digits: Task, silhouettes: Task) -> Record:
    return audit(base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, seeds=2)


def test_every_target_meets_every_attack(record: Record) -> None:
    swept = {(run.target, run.attack, run.config["lr"]) for run in record.runs if run.seed == 0}
    assert len(swept) == len(TARGETS) * len(SUITE.attacks)
    assert {run.target for run in record.runs if run.seed == 1} == set(TARGETS), "the winners run again"


def test_the_public_contract(record: Record) -> None:
    parsed = record.to_dict()
    assert {
        "utility_base", "utility_locked", "best_base", "best_scratch", "best_control", "best_locked", "uplift",
        "slowdown", "strongest_attack",
    } <= set(parsed["summary"])  # fmt: skip
    for run in parsed["runs"]:
        assert {
            "target", "attack", "config", "seed", "status", "curve", "best", "utility_after", "seconds",
            "peak_memory_mb",
        } <= set(run)  # fmt: skip
        assert run["status"] in ("ok", "diverged", "failed")
        assert (run["best"] is None) == (run["status"] != "ok")
        lost = run["target"] != "locked" or run["status"] != "ok"
        assert (run["utility_after"] is None) == lost, "what the attack cost of utility, where there is any"
        assert all(len(point) == 2 for point in run["curve"])
    assert all({"name", "why"} <= set(flag) for flag in parsed["flags"])
    assert parsed["environment"]["torch"]
    assert len(parsed["spectra"]) == 6


def test_a_diverged_run_is_no_failure_to_learn(record: Record) -> None:
    runs = [run for run in record.runs if run.config["optimizer"] == "sgd"]
    assert {run.status for run in runs} == {"diverged"}


def test_same_seed_same_summary(
    record: Record, base: Model, locked: Locked, digits: Task, silhouettes: Task
) -> None:
    again = audit(base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, seeds=2)
    assert again.summary == record.summary


@pytest.mark.parametrize("dies_at", [1, 6, 17])
def test_a_killed_audit_resumes_to_the_same_summary(
    record: Record,
    base: Model,
    locked: Locked,
    digits: Task,
    silhouettes: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: int,
) -> None:
    class Killed(BaseException):
        pass

    from speclock.attacks.base import Attack

    calls = 0
    attack = Attack.__call__

    def dies(self: Attack, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise Killed
        return attack(self, *args, **kwargs)

    def carry_out() -> Record:
        return audit(
            base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, seeds=2, folder=tmp_path
        )

    with monkeypatch.context() as patch:
        patch.setattr(Attack, "__call__", dies)
        with pytest.raises(Killed):
            carry_out()
    calls = 0
    monkeypatch.setattr(Attack, "__call__", dies)
    dies_at = -1
    resumed = carry_out()
    assert resumed.summary == record.summary
    assert [dataclasses.replace(run, seconds=0, peak_memory_mb=0) for run in resumed.runs] == [
        dataclasses.replace(run, seconds=0, peak_memory_mb=0) for run in record.runs
    ]
    finished_before = (
        {1: 0, 6: 5, 17: 16}[len(record.runs) - calls + 1] if calls <= len(record.runs) else None
    )
    assert finished_before is not None, "what had finished is not run again"


def test_side_by_side_gives_what_one_after_the_other_does(
    record: Record, base: Model, locked: Locked, digits: Task, silhouettes: Task
) -> None:
    # Sums depend on the number of threads, of which each worker gets half.
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        alone = audit(base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE)
    finally:
        torch.set_num_threads(threads)
    aside = audit(base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, jobs=2)
    assert [dataclasses.replace(run, seconds=0, peak_memory_mb=0) for run in aside.runs] == [
        dataclasses.replace(run, seconds=0, peak_memory_mb=0) for run in alone.runs
    ]


def test_losing_runs_are_given_up_and_noise_around_chance_is_not() -> None:
    pruner = Pruner(chance=0.25, visible=0.1, budget=40)
    ended = {}
    for name, score in {"winner": 0.8, "loser": 0.3, "close": 0.75, "second": 0.9}.items():
        watch = pruner.begin()
        ended[name] = [step for step in (10, 20, 30, 40) if watch(step, score)]
        pruner.study.tell(pruner.trial, state=_complete(), values=[score])
    assert ended["winner"] == ended["second"] == []
    assert ended["loser"][0] == 10
    assert ended["close"] == [], "five points behind the leader are within the test split's sampling error"
    pruner = Pruner(chance=0.25, visible=0.1, budget=40)
    for score in (0.3, 0.26, 0.28):
        watch = pruner.begin()
        assert not any(watch(step, score) for step in (10, 20, 30, 40))
        pruner.study.tell(pruner.trial, state=_complete(), values=[score])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Raises(FineTune):
    error: type[Exception] = RuntimeError

    def prepare_(self, model: Model, scene: Scene) -> None:
        raise self.error("this model has no such layer")

    def config(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "lr": self.lr}


def test_an_attack_that_does_not_fit_is_a_finding_and_bad_input_is_not(
    base: Model, digits: Task, silhouettes: Task
) -> None:
    def sole(attack: FineTune) -> Record:
        suite = dataclasses.replace(SUITE, attacks=(attack,))
        return audit(base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=suite)

    record = sole(_Raises())
    assert {run.status for run in record.runs} == {"failed"}
    assert {run.reason for run in record.runs} == {"RuntimeError: this model has no such layer"}
    with pytest.raises(InputError, match="no such layer"):
        sole(_Raises(error=InputError))


def test_a_small_test_split_prunes_only_what_is_far_behind() -> None:
    """28% against a leader at 40% on 60 examples is within the split's sampling error; on 400 it is not."""
    for n, given_up in ((60, False), (400, True)):
        pruner = Pruner(0.25, visible(n), budget=8)
        for score in (0.4, 0.28):
            watch = pruner.begin()
            ended = [watch(step, score) for step in (2, 4, 6)]
            pruner.study.tell(pruner.trial, state=_complete(), values=[score])
        assert any(ended) is given_up


def _complete() -> Any:
    import optuna

    return optuna.trial.TrialState.COMPLETE


def test_other_architectures_are_refused(base: Model, digits: Task, silhouettes: Task) -> None:
    from speclock import models

    with pytest.raises(InputError, match="is not a locked cnn-mlp"):
        audit(base=base, locked=models.load("resnet18"), retain=digits, attack=silhouettes)


@pytest.mark.parametrize(
    ("suite", "known"),
    [
        (QUICK, ("quick/1", 32, 1, 4, 13, "818e9e87156f")),
        (STANDARD, ("standard/1", 48, 3, 4, 228, "a6c8b94fc368")),
    ],
)
def test_published_suites_are_frozen(suite: Suite, known: tuple[Any, ...]) -> None:
    """A change here needs a new version of the suite: numbers of different suites do not compare."""
    digest = hashlib.sha256("\n".join(attack.title for attack in suite.attacks).encode()).hexdigest()
    assert (suite.label, suite.steps, suite.finalists, suite.evaluations) == known[:4]
    assert (len(suite.attacks), digest[:12]) == known[4:]
