"""A whole audit on real data at toy size: contract, resume, floors, budgets, repeats."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speclock
from speclock import models, tasks, wrap
from speclock.attacks.base import Attack, Outcome, Scene, Status
from speclock.attacks.finetune import FineTune
from speclock.attacks.lora import LoRA
from speclock.attacks.probe import Probe
from speclock.attacks.repair import Clip, Merge
from speclock.audits.kept_runs import KeptRuns
from speclock.audits.record import Record, RunRecord
from speclock.audits.run import audit
from speclock.audits.suite import (
    CAUSAL_LM,
    QUICK,
    QUICK_1,
    SCRATCH,
    STANDARD,
    STANDARD_1,
    Family,
    Suite,
    around,
    listed,
)
from speclock.errors import InputError
from speclock.locks.base import Locked
from speclock.models import Model
from speclock.tasks.base import Task

SUITE = Suite(
    name="toy",
    version=1,
    steps=12,
    families=(
        around(FineTune, 1e-3, batch_size=32),
        Family((FineTune(optimizer="sgd", lr=1e30, clip=None, batch_size=32),), searched=False),
        Family((Clip(lr=1e-3, batch_size=32, rank=2),), searched=False),
    ),
    scratch=SCRATCH[:1],
)


@pytest.fixture(scope="module")
def base(two_layers: Model) -> Model:
    return two_layers


@pytest.fixture(scope="module")
def silhouettes() -> Task:
    return tasks.load("kmnist@100/200/100")


@pytest.fixture(scope="module")
def locked(base: Model, digits: Task) -> Locked:
    lock = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, steps=40, evaluations=4, max_utility_drop=0.02)
    return speclock.lock(base, digits, lock)


@pytest.fixture(scope="module")
def floors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("floors")


@pytest.fixture(scope="module")
def record(base: Model, locked: Locked, digits: Task, silhouettes: Task, floors: Path) -> Record:
    return audit(
        base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, seeds=2, floors=floors
    )


def untimed(runs: list[RunRecord]) -> list[RunRecord]:
    return [dataclasses.replace(run, seconds=0, peak_memory_mb=0) for run in runs]


def test_every_target_meets_every_family_and_its_best_run_again(record: Record) -> None:
    targets = {"base", "control", "locked"}
    swept = {(run.target, run.family) for run in record.runs if run.stage == "search"}
    for target in ("base", "locked"):
        assert {family for name, family in swept if name == target} == {f.name for f in SUITE.families}
    finalists = {r.family for r in record.runs if r.stage == "final" and r.target in ("base", "locked")}
    assert {family for name, family in swept if name == "control"} == finalists
    for target in (*targets, "scratch"):
        finals = [run for run in record.runs if run.target == target and run.stage == "final"]
        assert {run.seed for run in finals} == {1, 2}, "fresh seeds, none of them the search's own"
        kinds = {run.informed for run in finals}
        assert kinds == ({False} if target == "scratch" else {False, True})
        assert all(run.test is not None and run.pruned_at is None for run in finals)
    assert [run.stage for run in record.runs if run.target == "classical"] == ["final"]


def test_the_public_contract(record: Record) -> None:
    parsed = json.loads(record.to_json())
    assert {
        "utility_base", "utility_locked", "best_base", "best_scratch", "best_classical", "best_public",
        "best_student", "best_control", "best_locked", "floor", "floor_by", "uplift", "uplift_uninformed", "slowdown",
        "strongest_attack",
    } <= set(parsed["summary"])  # fmt: skip
    for run in parsed["runs"]:
        assert {
            "target", "attack", "config", "seed", "status", "curve", "best", "utility_after", "seconds",
            "peak_memory_mb",
        } <= set(run)  # fmt: skip
        assert run["status"] in ("ok", "diverged", "collapsed", "failed")
        assert (run["best"] is None) == (run["status"] != "ok")
        quoted = run["target"] == "locked" and run["stage"] == "final" and run["status"] == "ok"
        assert (run["utility_after"] is not None) == quoted, "what the attack cost of utility"
        assert all(len(point) == 2 for point in run["curve"])
    assert all({"name", "why"} <= set(flag) for flag in parsed["flags"])
    assert parsed["environment"]["torch"]
    assert len(parsed["spectra"]) == 2


def test_the_floor_is_the_best_of_what_the_attacker_has_anyway(record: Record) -> None:
    s = record.summary
    assert s["floor_by"] in ("scratch", "classical")
    assert s["floor"] == s[f"best_{s['floor_by']}"]
    scratch = [run for run in record.runs if run.target == "scratch"]
    most = {stage: {run.steps for run in scratch if run.stage == stage} for stage in ("search", "final")}
    assert most == {"search": {4 * SUITE.steps}, "final": {8 * SUITE.steps}}


def test_a_diverged_run_is_no_failure_to_learn(record: Record) -> None:
    runs = [
        run
        for run in record.runs
        if run.config.get("optimizer") == "sgd" and run.target in ("base", "locked")
    ]
    assert {run.status for run in runs} == {"diverged"}


def test_same_seed_same_summary(
    record: Record, base: Model, locked: Locked, digits: Task, silhouettes: Task, floors: Path
) -> None:
    again = audit(
        base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, seeds=2, floors=floors
    )
    assert again.summary == record.summary


def test_floors_are_carried_out_once_for_all_locks(
    base: Model, locked: Locked, digits: Task, silhouettes: Task, floors: Path, record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    targets = []
    attack = Attack.__call__

    def noted(self: Attack, model: Model, *args: Any, **kwargs: Any) -> Any:
        targets.append(model.name)
        return attack(self, model, *args, **kwargs)

    def no_scratch(self: Model, seed: int) -> Model:
        raise AssertionError("scratch is trained again")

    monkeypatch.setattr(Attack, "__call__", noted)
    monkeypatch.setattr("speclock.audits.targets.Targets.model", _no_scratch(no_scratch))
    other = audit(
        base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=SUITE, seeds=2, floors=floors
    )
    assert other.summary["floor"] == record.summary["floor"]


def _no_scratch(refuse: Any) -> Any:
    from speclock.audits.targets import Targets

    model = Targets.model

    def of(self: Targets, name: str, seed: int) -> Model:
        return refuse(self.base, seed) if name == "scratch" else model(self, name, seed)

    return of


def test_the_test_split_is_scored_for_what_is_quoted_and_nothing_else(
    base: Model, digits: Task, silhouettes: Task, floors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    answers = Task.answers

    def noted(self: Task, model: Model, split: str = "test", *rest: Any) -> Any:
        if split == "test" and self.labels == silhouettes.labels:
            scored.append(model.name)
        return answers(self, model, split, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Task, "answers", noted)
    found = audit(
        base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=SUITE, floors=floors
    )
    finals = [
        run for run in found.runs if run.stage == "final" and run.target in ("base", "locked", "scratch")
    ]
    assert len(scored) <= len(finals)


@pytest.mark.parametrize("dies_at", [12])
def test_a_killed_audit_resumes_to_the_same_summary(
    record: Record,
    base: Model,
    locked: Locked,
    digits: Task,
    silhouettes: Task,
    floors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: int,
) -> None:
    class Killed(BaseException):
        pass

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
            base=base, locked=locked, retain=digits, attack=silhouettes, suite=SUITE, seeds=2, folder=tmp_path,
            floors=floors,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(Attack, "__call__", dies)
        with pytest.raises(Killed):
            carry_out()
    monkeypatch.setattr(Attack, "__call__", dies)
    calls, dies_at, finished = 0, -1, dies_at - 1
    resumed = carry_out()
    assert resumed.summary == record.summary
    assert untimed(resumed.runs) == untimed(record.runs)
    floor = [run for run in record.runs if run.target in ("scratch", "classical")]
    assert calls == len(record.runs) - len(floor) - finished, "what had finished is not run again"


def test_kept_runs_are_bound_to_the_data(
    base: Model, digits: Task, silhouettes: Task, tmp_path: Path, floors: Path
) -> None:
    suite = dataclasses.replace(SUITE, families=listed(FineTune(lr=1e-3, batch_size=32)), steps=4)
    asked = {"base": base, "retain": digits, "suite": suite, "folder": tmp_path, "floors": floors}
    audit(locked=base.copy(), attack=silhouettes, **asked)
    kept = set(tmp_path.glob("runs/base-*.json"))
    audit(locked=base.copy(), attack=silhouettes, **asked)
    assert set(tmp_path.glob("runs/base-*.json")) == kept
    audit(locked=base.copy(), attack=silhouettes.limit(train=90), **asked)
    assert len(set(tmp_path.glob("runs/base-*.json"))) == 2 * len(kept), "other data, other runs"


def test_side_by_side_gives_what_one_after_the_other_does(
    base: Model, locked: Locked, digits: Task, silhouettes: Task, tmp_path: Path
) -> None:
    suite = dataclasses.replace(SUITE, steps=4, families=SUITE.families[1:])
    asked = {"base": base, "locked": locked, "retain": digits, "attack": silhouettes, "suite": suite}
    # Sums depend on the number of threads, of which each worker gets half.
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        alone = audit(**asked, floors=tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    aside = audit(**asked, floors=tmp_path / "aside", jobs=2)
    assert untimed(aside.runs) == untimed(alone.runs)
    assert aside.summary == alone.summary


def test_a_worker_looks_inside_a_model_of_whose_class_it_has_built_none(tmp_path: Path) -> None:
    # Of a task that the model's own head answers, no head is drawn anew either.
    retain = tasks.load("newsgroups:sci.med,rec.autos@40/20/20", tasks.Reading(max_length=16))
    attack = tasks.load("newsgroups:sci.med,rec.autos@40/20/20+poison=sci.med", tasks.Reading(max_length=16))
    base = models.load("bert-l2-h64", labels=retain.labels, seed=0)
    suite = Suite(
        name="inside", version=1, steps=2, families=(Family((Probe(),)),), scratch=(), extended=False
    )
    record = audit(
        base=base, locked=base.copy(), retain=retain, attack=attack, suite=suite, floors=tmp_path, jobs=2
    )
    assert {run.status for run in record.runs if run.kind == "probe"} <= {"ok", "collapsed"}


def test_a_locked_run_that_still_rises_has_its_budget_extended_once(
    base: Model, digits: Task, silhouettes: Task, floors: Path
) -> None:
    slow = dataclasses.replace(SUITE, families=listed(FineTune(lr=3e-4, batch_size=32)))
    found = audit(base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=slow, floors=floors)
    assert (found.suite["steps"], found.suite["budget"]) == (12, 24)
    for target in ("base", "locked"):
        assert {run.steps for run in found.runs if run.target == target and run.stage == "final"} == {12, 24}
    assert found.summary["best_locked"] == found.summary["best_base"]
    fixed = dataclasses.replace(slow, extended=False)
    found = audit(
        base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=fixed, floors=floors
    )
    assert found.suite["budget"] == 12
    assert "still_rising" in [flag.name for flag in found.flags]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Raises(FineTune):
    error: type[Exception] = RuntimeError

    def prepare_(self, model: Model, scene: Scene) -> None:
        if scene.released.labels == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"):
            raise self.error("this model has no such layer")

    def config(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "lr": self.lr, "error": self.error.__name__}


def test_an_attack_that_does_not_fit_is_a_finding_and_bad_input_is_not(
    base: Model, digits: Task, silhouettes: Task, floors: Path
) -> None:
    def sole(attack: FineTune) -> Record:
        suite = dataclasses.replace(SUITE, families=(Family((attack,), searched=False),))
        return audit(
            base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=suite, floors=floors
        )

    record = sole(_Raises())
    attacked = [run for run in record.runs if run.target in ("base", "locked")]
    assert {run.status for run in attacked} == {"failed"}
    assert {run.reason for run in attacked} == {"RuntimeError: this model has no such layer"}
    with pytest.raises(InputError, match="no such layer"):
        sole(_Raises(error=InputError))


def test_a_missing_package_is_found_before_anything_runs(
    base: Model, digits: Task, silhouettes: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: LoRA) -> None:
        raise InputError("lora comes with peft: pip install 'speclock[attacks]'.")

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an attack was run")

    monkeypatch.setattr(LoRA, "requires", gone)
    monkeypatch.setattr(Attack, "__call__", never)
    suite = dataclasses.replace(SUITE, families=(*SUITE.families, around(LoRA, 1e-3)))
    with pytest.raises(InputError, match="comes with peft"):
        audit(base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=suite)


def test_any_module_can_be_audited(base: Model, digits: Task, silhouettes: Task, floors: Path) -> None:
    suite = dataclasses.replace(SUITE, families=listed(FineTune(lr=1e-3, batch_size=32)), steps=4)
    found = speclock.audit(
        base=base.module,
        locked=base.copy().module,
        retain=digits,
        attack=silhouettes,
        suite=suite,
        floors=floors,
    )
    assert found.summary["best_locked"] == found.summary["best_base"]
    assert found.summary["utility_base"] == digits.score(base)


def test_other_architectures_are_refused(base: Model, digits: Task, silhouettes: Task) -> None:
    with pytest.raises(InputError, match="is not a locked module"):
        audit(base=base, locked=models.load("resnet18"), retain=digits, attack=silhouettes)


@pytest.mark.parametrize(
    ("suite", "known"),
    [
        (QUICK_1, ("quick/1", 32, 1, 13, "818e9e87156f")),
        (STANDARD_1, ("standard/1", 48, 3, 228, "a6c8b94fc368")),
        (QUICK, ("quick/2", 16, 2, 13, "f9abb26e1064")),
        (STANDARD, ("standard/2", 32, 3, 100, "d51e1f357615")),
        (CAUSAL_LM, ("causal-lm/1", 32, 2, 15, "31769bd6a533")),
    ],
    ids=lambda value: value.label if isinstance(value, Suite) else "",
)
def test_published_suites_are_frozen(suite: Suite, known: tuple[Any, ...]) -> None:
    """A change here needs a new version of the suite: numbers of different suites do not compare."""
    digest = hashlib.sha256("\n".join(attack.title for attack in suite.attacks).encode()).hexdigest()
    assert (suite.label, suite.steps, suite.finalists, len(suite.attacks), digest[:12]) == known


def test_every_family_has_a_name_of_its_own() -> None:
    for suite in (QUICK, STANDARD, CAUSAL_LM):
        names = [family.name for family in suite.families]
        assert len(set(names)) == len(names)


def test_what_a_module_computes_is_part_of_what_its_floor_is_kept_by(digits: Task) -> None:
    """Two classes of one name and the same weights, of which one squares what it reads."""
    from speclock.audits.run import _computes

    def net(power: int) -> Model:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 28)
                self.head = nn.Linear(4, 10)

            def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
                return self.head(self.conv(pixel_values**power).flatten(1))

        torch.manual_seed(0)
        return wrap(Net().eval(), labels=digits.labels)

    one, again, other = (_computes(net(power), digits) for power in (1, 1, 2))
    assert one == again != other


def test_what_an_attacker_knows_is_another_run_only_where_it_is_used(tmp_path: Path) -> None:
    def kept(public: str | None) -> KeptRuns:
        return KeptRuns({"locked": tmp_path}, {"locked": ["weights"]}, {"needs_public": public})

    for attack, same in ((FineTune(lr=1e-3), True), (Merge(lr=1e-3), False)):
        run = RunRecord.of(
            attack, Outcome(Status.OK, [(1, 0.5)], 0.5), target="locked", stage="search", steps=1
        )
        kept("minilm").put(run, attack, steps=1)
        assert (kept(None).get("locked", attack, steps=1) is not None) == same
        assert kept("minilm").get("locked", attack, steps=1) == run
