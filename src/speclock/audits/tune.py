"""A search over locks and their settings, each trial audited: what utility must be paid for how little uplift."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from speclock import models
from speclock.audits import SUITES
from speclock.audits.metrics import left_by_validation
from speclock.audits.run import audit
from speclock.audits.suite import Suite
from speclock.errors import InputError
from speclock.locks import LOCKS
from speclock.locks.base import Locked
from speclock.locks.composition import lock_named, parts_of
from speclock.models import Model
from speclock.numbers import short
from speclock.tasks.base import NOTABLE, Task
from speclock.workspace import write_text

if TYPE_CHECKING:
    import optuna

FORMAT = "speclock-tune/1"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One lock of the search, JSON-able."""

    number: int
    lock: str
    """As `--lock` takes it."""
    status: str
    """audited; pruned: it kept no stronger state than the base, so there was nothing to audit; or failed: the lock does
    not fit the model."""
    idle: tuple[str, ...] = ()
    """Parts of it that kept no stronger state, and so did nothing."""
    drop: float
    """Utility lost on the validation split."""
    uplift: float
    """Left to the attacker of the proxy task, 1 where nothing was locked; that of the audit's pick, on validation."""
    uplift_uninformed: float | None = None
    """Left by attackers that do no more than fine-tune."""
    strongest_attack: str | None = None
    worth: float | None = None
    """What the base is worth on the proxy task."""
    seconds: float = 0.0
    """Of locking."""
    score: float = 1.0
    """The attacker's pick on the locked model, on validation; 1 where nothing was locked."""
    base: float | None = None
    """The same on the base."""
    reason: str | None = None
    """Why a lock failed or was pruned."""


Objective = Literal["uplift", "score"]
"""What of a trial is to be small: *score* where the base is worth nothing over the floor, and there is no uplift."""


@dataclass(kw_only=True)
class Frontier:
    """What a search found, JSON-able: what `tune.json` holds."""

    trials: list[Trial]
    best: list[int]
    """Numbers of the trials that no other one beats in both, cheapest first."""
    chosen: int | None
    """The trial of least uplift whose utility drop is allowed."""
    max_utility_drop: float
    retain_task: dict[str, Any]
    proxy_task: dict[str, Any]
    base: dict[str, Any]
    request: dict[str, Any]
    command: str = ""
    """What makes the chosen lock."""
    cost: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """What the chosen lock costs on the test split, by which nothing was chosen, as an audit has it: of many states of
    many locks the best on validation does worse elsewhere."""
    format: str = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The frontier as plain containers."""
        return dataclasses.asdict(self)


def tune(
    base: Model,
    retain: Task,
    proxy: Task,
    *,
    max_utility_drop: float,
    locks: Sequence[str] = ("specdef", "undo", "undo+specdef"),
    first: Sequence[str] = (),
    trials: int = 20,
    objective: Objective = "uplift",
    suite: str | Suite = "quick",
    steps: int | None = None,
    jobs: int = 1,
    seed: int = 0,
    folder: Path,
    floors: Path | None = None,
) -> list[Trial]:
    """Lock a model in ``trials`` ways and audit each, the next chosen by what the ones before gave.

    Settings that ``locks`` leave open are drawn from what each says of itself
    (:attr:`speclock.locks.base.Lock.tuned`), at random at first (half of them, eight at most), and then by a
    tree-structured Parzen estimator over both ends, drop and ``objective`` [optuna; Bergstra et al. 2011]. A lock
    whose guard kept nothing is not audited. ``first`` are locks that are tried before any is drawn. With the same
    ``folder`` a killed search goes on. Drop and ``objective`` are those on the validation splits, by which things are
    chosen. The ``proxy`` is an attack task that nobody will quote: what is tuned on a task says little of it. The
    chosen lock stays in ``folder`` as ``locked``, since one with noise of its own is not made twice.

    Raises :class:`InputError` for a lock that there is not, where none of them fits the model, and where optuna is not
    installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise InputError(
            "tuning needs optuna, which is not installed: pip install 'speclock[tune]'."
        ) from error
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    for name in locks:
        lock_named(name)  # an unknown one is told before any work
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    retain, proxy = retain.divided(), proxy.divided()
    # An attacker with twice the steps against one lock alone says nothing of the two.
    alike = replace(SUITES[suite] if isinstance(suite, str) else suite, extended=False)
    study = optuna.create_study(
        study_name="locks",
        directions=["minimize", "minimize"],
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        load_if_exists=True,
    )
    _take_up_killed(study, objective)
    done = _concluded(study)
    # The estimator counts every trial, those among them that were not drawn.
    at_random = len(first) + min(8, max(1, (trials - len(first)) // 2))
    with tqdm(total=trials, initial=len(done), desc="tune", unit="lock", disable=None) as bar:
        while len(done) < trials:
            # Of its own for each trial: a search that goes on would else draw its first ones again.
            study.sampler = optuna.samplers.TPESampler(
                seed=seed * 1_000_003 + len(done), n_startup_trials=at_random
            )
            asked = study.ask()
            tried = {trial.lock for trial in done}
            spec = next((lock for lock in first if lock not in tried), None) or _drawn(asked, locks)
            how = {"suite": alike, "steps": steps, "jobs": jobs, "floors": floors or folder}
            found, locked = _tried(
                asked.number, spec, base, retain, proxy, max_utility_drop, objective, folder, **how
            )
            if locked is not None and chosen([*done, found], max_utility_drop, objective) is found:
                _keep(locked, folder / "locked")
            asked.set_user_attr("trial", dataclasses.asdict(found))
            study.tell(asked, (found.drop, getattr(found, objective)))
            done = _concluded(study)
            bar.set_postfix_str(f"drop {found.drop:.1%}, uplift {found.uplift:.2f}")
            bar.update()
    if all(trial.status == "failed" for trial in done):
        raise InputError(f"none of the locks fits: {done[0].reason}")
    return done


def frontier(trials: Sequence[Trial]) -> list[int]:
    """Numbers of the trials of which no other has both less drop and less uplift, cheapest first.

    >>> def of(number, drop, uplift):
    ...     return Trial(number=number, lock="", status="audited", drop=drop, uplift=uplift)
    >>> frontier([of(0, 0.0, 1.0), of(1, 0.02, 0.3), of(2, 0.03, 0.5), of(3, 0.05, 0.1)])
    [0, 1, 3]
    """
    found: list[Trial] = []
    fitting = [trial for trial in trials if trial.status != "failed"]
    for trial in sorted(fitting, key=lambda t: (t.drop, _left(t))):
        if not found or _left(trial) < _left(found[-1]):
            found.append(trial)
    return [trial.number for trial in found]


def chosen(trials: Sequence[Trial], max_utility_drop: float, objective: Objective = "uplift") -> Trial | None:
    """The audited trial of least uplift, or score, whose utility drop is allowed."""
    allowed = [t for t in trials if t.status == "audited" and t.drop <= max_utility_drop]
    return min(allowed, key=lambda t: (_left(t) if objective == "uplift" else t.score, t.drop), default=None)


def _left(trial: Trial) -> float:
    """Its uplift, of which there is none below the floor: what two locks differ by there is noise."""
    return max(0.0, trial.uplift)


def _drawn(trial: optuna.Trial, locks: Sequence[str]) -> str:
    """A lock with settings, as `--lock` takes it: what it says itself stays, the rest is drawn."""
    parts = []
    for part in parts_of(trial.suggest_categorical("lock", list(locks))):
        name, _, said = part.partition(":")
        values = dict(setting.split("=", 1) for setting in said.split(",") if setting)
        for field, span in LOCKS[name].tuned.items():
            key = f"{name}.{field}"
            # Of two ways to say how long, the one that is given holds.
            if field in values or (field == "steps" and "epochs" in values):
                continue
            if span.whole:
                values[field] = str(trial.suggest_int(key, int(span.low), int(span.high), log=span.log))
            elif span.odds:
                low, high = (share / (1 - share) for share in (span.low, span.high))
                odds = trial.suggest_float(f"{key}.odds", low, high, log=True)
                values[field] = short(odds / (1 + odds))
            else:
                values[field] = short(trial.suggest_float(key, span.low, span.high, log=span.log))
        parts.append(":".join([name, ",".join(f"{field}={value}" for field, value in values.items())]))
    return "+".join(parts)


def _tried(
    number: int,
    spec: str,
    base: Model,
    retain: Task,
    proxy: Task,
    max_utility_drop: float,
    objective: Objective,
    folder: Path,
    **asked: Any,
) -> tuple[Trial, Locked | None]:
    """Lock and audit; what a killed process had of it is taken up. With the lock itself where it was audited."""
    place = folder / f"trial-{hashlib.sha256(spec.encode()).hexdigest()[:16]}"
    place.mkdir(exist_ok=True)
    lock = lock_named(spec, {"max_utility_drop": max_utility_drop})
    kept = place / "lock"
    kept.mkdir(exist_ok=True)
    try:
        locked = lock(base, retain, folder=kept)
    except InputError as error:
        # A lock of pairs of layers where there are none, for one: the others may fit.
        why = str(error)
        return Trial(number=number, lock=spec, status="failed", drop=0.0, uplift=1.0, reason=why), None
    parts = locked.card.get("parts", [locked.card])
    at = {step: utility for step, utility, _ in parts[-1]["curve"]}
    drop = max(0.0, parts[0]["curve"][0][1] - at[parts[-1]["chosen_step"]])
    idle = tuple(part["lock"] for part in parts if part["chosen_step"] == 0)
    told = {"number": number, "lock": spec, "drop": drop, "seconds": locked.card["seconds"], "idle": idle}
    if len(idle) == len(parts):
        why = "no state was stronger and kept the utility"
        return Trial(**told, status="pruned", uplift=1.0, reason=why), None
    record = audit(
        base=base,
        locked=Locked(locked.model, locked.card),
        retain=retain,
        attack=proxy,
        folder=place,
        shared=folder,
        # Chosen by what is left; each would take as long as the lock.
        control=False,
        repeat=False,
        **asked,
    )
    write_text(place / "audit.json", record.to_json())
    left = left_by_validation(record)
    if objective == "uplift" and (left.worth is None or left.worth < NOTABLE[proxy.metric]):
        raise InputError(
            f"{proxy.name} says nothing of a lock: the base gives its attacker hardly more than there is anyway "
            f"({record.summary['floor']:.1%}). Choose a proxy, or a number of examples, at which the base is worth "
            f"something."
        )
    trial = Trial(
        **told,
        status="audited",
        # Where no run on the locked model has a score, nobody knows what it withstood.
        uplift=1.0 if left.uplift is None else left.uplift,
        uplift_uninformed=left.uninformed,
        strongest_attack=record.summary["strongest_attack"],
        worth=left.worth,
        score=1.0 if left.score is None else left.score,
        base=left.base,
    )
    return trial, locked


def _take_up_killed(study: optuna.Study, objective: Objective) -> None:
    """Ask again for what a killed process was at; what it had only not told any more is told."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if "trial" in trial.user_attrs:
            found = Trial(**trial.user_attrs["trial"])
            study.tell(trial.number, (found.drop, getattr(found, objective)))
            continue
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _concluded(study: optuna.Study) -> list[Trial]:
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return [Trial(**trial.user_attrs["trial"]) for trial in complete]


def _keep(locked: Locked, folder: Path) -> None:
    """Leave the lock in ``folder``, in place of one before it."""
    fresh = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    models.save(locked.model, fresh, extra={"speclock.json": json.dumps(locked.card)})
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
