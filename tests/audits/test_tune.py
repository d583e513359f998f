"""The search over locks: what it tries, what it leaves out, how it goes on, and what it names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import optuna
import pytest

from speclock.attacks.finetune import FineTune
from speclock.audits import tune as module
from speclock.audits.suite import SCRATCH, Suite, around
from speclock.audits.tune import Frontier, Trial, chosen, frontier, tune
from speclock.errors import InputError
from speclock.locks import LOCKS
from speclock.locks.card import read_card
from speclock.locks.composition import lock_named
from speclock.models import Model
from speclock.report import write_frontier
from speclock.tasks.base import Task

SUITE = Suite(
    name="toy", version=1, steps=4, families=(around(FineTune, 1e-3),), finalists=1, scratch=SCRATCH[:1]
)


def test_what_a_lock_says_is_tuned_are_its_own_fields_within_bounds() -> None:
    for name, cls in LOCKS.items():
        assert cls.tuned, name
        for field, span in cls.tuned.items():
            for end in (span.low, span.high):
                value = int(end) if span.whole else end
                assert getattr(lock_named(f"{name}:{field}={value}"), field) == pytest.approx(value)


def test_a_killed_search_goes_on_and_audits_nothing_twice(
    two_layers: Model, digits: Task, silhouettes: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain, proxy = (
        digits.divided().limit(train=100, validation=60, test=60),
        silhouettes.divided().limit(40, 60, 60),
    )
    asked = {"max_utility_drop": 0.2, "locks": ("rescale",), "suite": SUITE, "trials": 3}
    audits: list[str] = []
    real = module.audit

    def counted(**given: object) -> object:
        audits.append(given["locked"].card["fingerprint"])  # type: ignore[attr-defined]
        if len(audits) == 2:
            raise KeyboardInterrupt
        return real(**given)  # type: ignore[arg-type]

    monkeypatch.setattr("speclock.audits.work.SCRATCH_BUDGET", 1)
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="says nothing of a lock"):
        tune(two_layers, retain, proxy, folder=tmp_path / "c", **{**asked, "trials": 1})  # type: ignore[arg-type]
    asked["objective"] = "score"  # which there is whatever the base is worth
    (tmp_path / "a").mkdir()
    whole = tune(two_layers, retain, proxy, folder=tmp_path / "a", **asked)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "audit", counted)
    (tmp_path / "b").mkdir()
    with pytest.raises(KeyboardInterrupt):
        tune(two_layers, retain, proxy, folder=tmp_path / "b", **asked)  # type: ignore[arg-type]
    again = tune(two_layers, retain, proxy, folder=tmp_path / "b", **asked)  # type: ignore[arg-type]
    audited = [trial for trial in again if trial.status == "audited"]
    assert len(again) == len(whole) == 3
    assert len(audits) == len(audited) + 1, "what was killed is audited again, and nothing else"
    assert [trial.lock for trial in again] == [trial.lock for trial in whole], (
        "killed or not, the draws are the same"
    )
    for trial in again:
        lock_named(trial.lock)
        assert trial.drop <= 0.2 + 1e-9
        assert (trial.status == "pruned") == (trial.uplift == 1.0 and trial.strongest_attack is None)
        assert 0 <= trial.score <= 1
    best = chosen(again, 0.2, "score")
    assert best is not None
    assert best.score == min(trial.score for trial in audited)
    card = read_card(tmp_path / "b" / "locked")
    assert card is not None
    place = f"trial-{hashlib.sha256(best.lock.encode()).hexdigest()[:16]}"
    record = json.loads((tmp_path / "b" / place / "audit.json").read_text())
    assert card["fingerprint"] == record["locked"]["fingerprint"], "the chosen lock is kept as it was audited"
    assert not {"control", "repeated"} & {run["target"] for run in record["runs"]}
    assert {"name": "no_control", "why": "none was asked for"}.items() <= next(
        flag for flag in record["flags"] if flag["name"] == "no_control"
    ).items()
    assert not list((tmp_path / "b" / place / "runs").glob("control*")), "no trial is explained"


def test_a_lock_that_does_not_fit_ends_no_search(
    two_layers: Model, digits: Task, silhouettes: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain, proxy = (
        digits.divided().limit(train=100, validation=60, test=60),
        silhouettes.divided().limit(40, 60, 60),
    )
    monkeypatch.setattr("speclock.audits.work.SCRATCH_BUDGET", 1)
    asked = {"max_utility_drop": 0.2, "suite": SUITE, "objective": "score"}
    (tmp_path / "some").mkdir()
    locks = ("compensated", "rescale")  # of two layers without heads the first fits none
    tried = tune(two_layers, retain, proxy, folder=tmp_path / "some", locks=locks, trials=4, **asked)  # type: ignore[arg-type]
    failed = [trial for trial in tried if trial.lock.startswith("compensated")]
    assert failed
    assert {trial.status for trial in failed} == {"failed"}
    assert not {trial.number for trial in failed} & set(frontier(tried))
    assert {trial.status for trial in tried if trial not in failed} <= {"audited", "pruned"}
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none of the locks fits"):
        tune(two_layers, retain, proxy, folder=tmp_path / "none", locks=locks[:1], trials=1, **asked)  # type: ignore[arg-type]


def test_what_a_lock_is_given_is_not_drawn() -> None:
    spec = "specdef:optimizer=sgd,lr=0.1,retain=task+kl"
    trial = optuna.trial.FixedTrial(
        {"lock": f"undo+{spec}", "undo.beta": 0.5, "undo.bottleneck": 0.25, "undo.lr": 3e-4, "undo.steps": 300,
         "specdef.alpha.odds": 1 / 7, "specdef.top_k": 2, "specdef.steps": 20}
    )  # fmt: skip
    drawn = module._drawn(trial, [f"undo+{spec}"])
    assert drawn == (f"undo:beta=0.5,bottleneck=0.25,lr=3e-4,steps=300+{spec},alpha=0.125,top_k=2,steps=20")
    assert lock_named(drawn).parts[1].optimizer == "sgd"  # type: ignore[union-attr]
    epochs = "specdef:epochs=10,alpha=0.5,lr=1e-3"
    drawn = module._drawn(optuna.trial.FixedTrial({"lock": epochs, "specdef.top_k": 2}), [epochs])
    assert drawn == f"{epochs},top_k=2"


def of(number: int, drop: float, uplift: float, status: str = "audited") -> Trial:
    return Trial(number=number, lock=f"undo:beta=0.{number}", status=status, drop=drop, uplift=uplift)


def test_the_choice_is_the_least_uplift_that_is_paid_for(tmp_path: Path) -> None:
    trials = [
        of(0, 0.0, 1.0, "pruned"),
        of(1, 0.005, 0.4),
        of(2, 0.009, 0.2),
        of(3, 0.03, 0.0),
        of(4, 0.01, 0.5),
    ]
    assert frontier(trials) == [0, 1, 2, 3]
    best = chosen(trials, 0.01)
    assert best is not None
    assert best.number == 2
    assert chosen(trials[:1], 0.5) is None
    # Below the floor nothing is left, and what two locks differ by there pays for nothing.
    nothing = [of(0, 0.0, -0.40), of(1, 0.0099, -0.41)]
    assert frontier(nothing) == [0]
    assert chosen(nothing, 0.01) is nothing[0]
    drawn = Frontier(
        trials=trials, best=frontier(trials), chosen=2, max_utility_drop=0.01, retain_task={}, proxy_task={}, base={},
        request={},
    )  # fmt: skip
    write_frontier(drawn, tmp_path / "frontier.svg")
    svg = (tmp_path / "frontier.svg").read_text()
    assert svg.startswith("<svg") or "<svg" in svg
    assert "undo:beta=0.2" in svg


def test_what_is_asked_for_first_is_tried_first(
    two_layers: Model, digits: Task, silhouettes: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speclock.audits.work.SCRATCH_BUDGET", 1)
    asked = {"max_utility_drop": 0.2, "suite": SUITE, "objective": "score", "folder": tmp_path}
    retain, proxy = digits.divided().limit(100, 60, 60), silhouettes.divided().limit(40, 60, 60)
    given = ("rescale:factor=1.2,top_k=1",)
    for trials in (1, 2):  # the second as a search that goes on
        found = tune(two_layers, retain, proxy, locks=("rescale",), first=given, trials=trials, **asked)  # type: ignore[arg-type]
    assert [trial.lock == given[0] for trial in found] == [True, False]


def test_a_lock_that_there_is_not_is_told_before_any_work(base: Model, digits: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown lock 'udno'"):
        tune(base, digits, digits, max_utility_drop=0.1, locks=("udno",), folder=tmp_path)
    assert not list(tmp_path.iterdir())
