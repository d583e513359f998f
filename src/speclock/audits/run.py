"""The audit itself: one suite of attacks, searched on every target, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from speclock.attacks.subtract import noise_seed
from speclock.audits import SUITES
from speclock.audits.cost import cost
from speclock.audits.flags import raised
from speclock.audits.gradients import blocked_gradients
from speclock.audits.kept_runs import KeptRuns
from speclock.audits.metrics import families, still_rises, summarise, verdict
from speclock.audits.record import Record
from speclock.audits.suite import Suite
from speclock.audits.targets import CONTROL_RULES, Targets
from speclock.audits.work import Work, crew
from speclock.environment import environment
from speclock.errors import InputError
from speclock.locks.base import Locked, SpectralLock
from speclock.locks.card import Card, CardError, Stage, describes, parsed, stages
from speclock.models import Model, Transplant, adopted, identity, transplanted, wiring
from speclock.spectra import singular_values, weight_matrices
from speclock.tasks.base import Task
from speclock.workspace import kept_in

_TOP_K = 8
"""Singular values of each weight matrix that a record keeps."""

RULES = 11
"""How kept runs were made: raised by any change of the loop, the attacks or the search that would give others. 11: XMat
descends without momentum, as its authors' does."""
RULES_OF_AUDITS = f"{RULES}.{CONTROL_RULES}"
"""How whole audits are made: what is made of several of them must be made of alike ones."""

CURVE_EXAMPLES = 256
"""Validation examples on which a run is scored on its way; what is quoted is scored on the whole test split."""


def audit(
    *,
    base: Model | nn.Module,
    locked: Model | nn.Module | Locked,
    retain: Task,
    attack: Task,
    suite: str | Suite = "quick",
    steps: int | None = None,
    seeds: int = 1,
    jobs: int = 1,
    public: Model | None = None,
    siblings: tuple[Model, ...] = (),
    student: bool | None = None,
    control: bool = True,
    repeat: bool = True,
    folder: Path | None = None,
    shared: Path | None = None,
    floors: Path | None = None,
) -> Record:
    """Attack base, floor, control and locked model with one suite and say what the lock is worth.

    Each family of the suite is searched on each target under one seed, on the validation split (on control and
    student those families alone that came to the finals on base or locked model); the finalists run again under
    ``seeds`` fresh ones, and their test scores are what is quoted. The recipe (configuration, head,
    tokenizer, preprocessing) is the base's on every target: of the locked model the weights alone are used, and
    what else differs is listed. Where a finalist on the locked model that may yet be its best still rises, those of
    every target run once more with twice the budget, unless the suite says otherwise.

    ``locked`` with its lock card (:class:`Locked`) lets the control be trained. ``public`` is a public model that
    the attacker knows the locked one to be made from, ``siblings`` are other releases of the same base; without
    them, attacks that need them are left out. ``student`` asks for the student of the base's answers, which the
    standard suite has anyway. ``control=False`` leaves the control out, which explains a verdict and does not change
    it, and ``repeat=False`` that the card's lock is made once more, to see whether it leads to the file: for who has
    just made it. With ``folder``, finished runs are kept there, and a killed audit
    goes on from them to the same summary; runs on the base go to ``shared`` where that is given, for audits of
    other locks of the same base, and those of the floor to ``floors``, for all audits on the same data.

    ``jobs`` processes share the work, each with its share of the cores, on the GPUs in turn where there are any. A
    run depends on nothing but its seed and the number of threads it sums with.

    Raises :class:`InputError` when base and locked model are not of one architecture, or a package is missing that
    an attack of the suite needs.
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; an audit needs at least one.")
    start = time.perf_counter()
    retain, attack = retain.divided(), attack.divided()
    before = adopted(base, retain)
    retain = retain.fitted_to(before)
    if attack.fits(before):
        attack = attack.fitted_to(before)  # a backdoor, a relearning: the base's own labels, in its order
    released, claim = (
        (locked.model, locked.card) if isinstance(locked, Locked) else (adopted(locked, retain), None)
    )
    _check_one_family(before, released)
    chosen: Suite = SUITES[suite] if isinstance(suite, str) else suite
    budget = steps or chosen.steps
    # Found now, not after an hour: what an attack needs of the machine.
    for each in chosen.attacks:
        each.requires()
    transplant = transplanted(before, released)
    claimed = Claim.of(claim, transplant.model)
    with kept_in(folder) as kept:
        targets = Targets(
            base=before,
            locked=transplant.model,
            public=public,
            retain=retain,
            stages=claimed.stages,
            with_student=chosen.student if student is None else student,
            with_control=control,
            repeat=repeat,
            folders=_folders(kept, shared or kept, floors or kept),
        )
        work = Work(
            targets=targets,
            task=attack.limit(validation=CURVE_EXAMPLES),
            retain=retain.limit(validation=CURVE_EXAMPLES),
            suite=chosen,
            budget=budget,
            seeds=seeds,
            siblings=siblings,
            card=claimed.card,
            kept=KeptRuns(
                targets.folders, _bound(targets, attack, retain, claimed.card), _needed(public, siblings)
            ),
        )
        record = Record(
            suite={
                "name": chosen.name,
                "version": chosen.version,
                "steps": budget,
                "budget": budget,
                "seeds": list(range(1, seeds + 1)),
                "listed": [family.name for family in chosen.families if not family.searched],
                "public_base": None if public is None else _identity(public),
                "siblings": [_identity(sibling) for sibling in siblings],
            },
            base=_identity(before),
            locked={
                **_identity(released),
                "card": claimed.card,
                "card_problem": claimed.problem,
                "card_describes": claimed.describes(before, released),
                "claimed_sigma": claimed.strength,
                "mean_top_sigma": claimed.measured,
                "strengths": claimed.strengths(transplant.model, before),
                # A card need not say what its lock was told.
                "noise_seed": noise_seed(transplant.model, claimed.card)
                if any(lock.draws_in_secret for lock, _ in claimed.stages)
                else None,
                "blocked_gradients": _blocked(before, released, transplant.model, attack),
                "differences": [difference._asdict() for difference in transplant.differences],
                "own_architecture": _own(transplant),
            },
            retain_task=retain.describe(),
            attack_task=attack.describe(),
            runs=work.runs,
            spectra=_spectra(before, released),
            environment=environment(before.device),
        )
        # An answer that is not finite is a wrong one.
        record.cost = cost(before, transplant.model, retain)
        record.samples = {
            name: {"base": said, "locked": task.samples(transplant.model)}
            for name, task in (("retain", retain), ("attack", attack))
            if (said := task.samples(before))
        }
        utility, utility_locked = (record.cost["test split"][f"score_{name}"] for name in ("base", "locked"))
        if any(difference.matters for difference in transplant.differences):
            # What users of the folder get, who take its own configuration and tokenizer.
            record.locked["utility_as_released"] = _as_released(released, retain)
        with crew(jobs, kept) as hands:
            work.carry_out(hands)
            summary = partial(summarise, record, utility, utility_locked, attack)
            record.summary = summary()
            if chosen.extended and still_rises(record, "locked"):
                record.suite["budget"] = 2 * budget
                work.go_on(hands, times=2)
                record.summary = summary()
        record.base["student"] = targets.report("student")
        record.locked["control"] = targets.report("control") if control else {}
        record.locked["no_control"] = targets.problem("control") if control else "none was asked for"
        repeated = targets.report("repeated")
        # A training that cannot be carried out does not lead to the file either.
        record.locked["card_not_repeated"] = repeated.get("not_repeated") or repeated.get("problem")
        record.locked["card_believed"] = bool(claimed.stages) and not repeat
    judged(record)
    record.seconds = round(time.perf_counter() - start, 1)
    return record


def judged(record: Record) -> Record:
    """The record with families, flags and verdict as they follow from its summary and runs, in place."""
    record.families = families(record)
    record.flags = raised(record)
    record.verdict = verdict(record)
    return record


@dataclass(frozen=True)
class Claim:
    """What a lock card claims, where it can be read: a claim that cannot be is a flag, no error."""

    card: Card | None = None
    stages: tuple[Stage, ...] = ()
    """The locks that it describes; none where it cannot be read."""
    problem: str | None = None
    measured: float | None = None
    """The mean top σ of the matrices that it names, by a converged solver rather than the lock's warm basis."""

    @classmethod
    def of(cls, card: Mapping[str, Any] | str | None, model: Model) -> Claim:
        """What a card claims of ``model``; a text, which says why the card could not be read, claims nothing."""
        if card is None or isinstance(card, str):
            return cls(problem=card)
        try:
            checked = parsed(json.dumps(card))
            claimed = stages(checked)
            lock, values = claimed[-1].lock, list[float]()
            if isinstance(lock, SpectralLock):
                for weight in weight_matrices(model.module, lock.include, lock.exclude):
                    values += singular_values(weight.matrix.detach(), lock.top_k).tolist()
            return cls(checked, claimed, measured=sum(values) / len(values) if values else None)
        except (CardError, InputError, TypeError, ValueError, RecursionError) as error:
            return cls(problem=str(error))

    def describes(self, base: Model, locked: Model) -> dict[str, bool] | None:
        """Whether the card speaks of this base and of this locked model."""
        if self.card is None:
            return None
        return {
            "base": describes(self.card["base"], identity(base)),
            "locked": describes(self.card, identity(locked)),
        }

    @property
    def strength(self) -> float | None:
        """The mean top σ that the card speaks of; None where its lock has another measure of strength."""
        spectral = self.stages and isinstance(self.stages[-1].lock, SpectralLock)
        return self.card["strength_locked"] if self.card and spectral else None

    def strengths(self, model: Model, base: Model) -> list[dict[str, Any]]:
        """Of the last lock, where its strength is of its own kind, what its card says of it, and what it is in
        ``model``. What a lock before it left, the last one may have changed."""
        if self.card is None or not self.stages or isinstance(self.stages[-1].lock, SpectralLock):
            return []
        lock, part = self.stages[-1].lock, self.card.get("parts", [self.card])[-1]
        return [
            {
                "lock": lock.name,
                "unit": lock.unit,
                "claimed": part["strength_locked"],
                "measured": lock.strength(model, base),
            }
        ]


def _blocked(base: Model, released: Model, attacked: Model, attack: Task) -> list[str] | None:
    """Matrices whose gradients the released module hides, asked of it as the base is fed.

    A folder whose module cannot be run so is asked in the base's code, which is what is attacked. What the base's
    code hides too is no lock's doing.
    """
    try:
        fed = replace(released, tokenizer=base.tokenizer, preprocessing=base.preprocessing)
        found = blocked_gradients(fed, attack)
    except Exception:  # whatever a damaged folder raises: it must not keep the audit from being run
        found = blocked_gradients(attacked, attack)
    if not found:
        return found
    anyway = blocked_gradients(base, attack) or []
    return [name for name in found if name not in anyway]


def _own(transplant: Transplant) -> str | None:
    """Why it is the locked folder's own module that is attacked, where it is."""
    if transplant.misfit is None:
        return None
    _, key, base, locked, _ = transplant.misfit
    return (
        f"the weights do not go into the base's architecture: {key} is {locked} there and {base} in the base"
    )


def _as_released(released: Model, retain: Task) -> float | None:
    """What users of the folder get; None where it cannot be run."""
    try:
        return retain.measured(retain.answers(released))
    except Exception:  # see above
        return None


def _folders(kept: Path, shared: Path, floors: Path) -> dict[str, Path]:
    """Where the runs on each target are kept."""
    runs = {"control": kept, "repeated": kept, "locked": kept, "base": shared, "released": kept}
    runs |= dict.fromkeys(("scratch", "classical", "public", "student"), floors)
    return {name: folder / "runs" for name, folder in runs.items()}


def _needed(public: Model | None, siblings: tuple[Model, ...]) -> dict[str, Any]:
    """What runs of those attacks alone depend on that need it."""
    return {
        "needs_public": None if public is None else identity(public).fingerprint,
        "needs_siblings": [identity(sibling).fingerprint for sibling in siblings],
    }


def _bound(targets: Targets, attack: Task, retain: Task, card: Card | None) -> dict[str, Any]:
    """What a run on each target depends on beside its attack and budget: kept runs are found by it alone."""
    base, locked = identity(targets.base), identity(targets.locked)
    common = [
        RULES,
        attack.digest(),
        environment()["torch"],
        str(targets.base.device),
    ]
    # Of the base, scratch and the classical model have only the recipe; what it computes, a configuration need not say.
    recipe = [
        base.configuration,
        base.tokenizer,
        base.preprocessing,
        _computes(targets.base.scratch(0), attack),
    ]
    public = None if targets.public is None else identity(targets.public).fingerprint
    bound: dict[str, list[Any]] = {
        "scratch": recipe,
        "classical": [base.tokenizer, base.preprocessing],
        "released": [base.fingerprint, locked.fingerprint, _computes(targets.base, attack)],
        "base": [base.fingerprint, _computes(targets.base, attack), retain.digest()],
        "public": [public, recipe, retain.digest()],
        "student": [base.fingerprint, retain.digest()],
        "control": [base.fingerprint, retain.digest(), card, CONTROL_RULES],
        "locked": [locked.fingerprint, base.fingerprint, retain.digest(), card],
    }
    return {name: [*common, *what] for name, what in bound.items()}


def _computes(model: Model, task: Task) -> str:
    """A digest of what a model makes of a few inputs: two classes of one name may compute something else."""
    answers = wiring.outputs(model.module, wiring.sample_run(model, task, examples=4))
    # Two digits: threads sum in other orders.
    values = [f"{value:.1e}" for value in answers.flatten().tolist()]
    return hashlib.sha256(" ".join(values).encode()).hexdigest()


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


def _identity(model: Model) -> dict[str, Any]:
    found = identity(model)
    return {
        "name": model.name,
        "fingerprint": found.fingerprint,
        "identity": found._asdict(),
        "source": asdict(model.source),
    }


def _check_one_family(base: Model, locked: Model) -> None:
    """A lock may add layers or replace some; a model that shares hardly a tensor with the base is another one."""
    shapes = [
        {name: tuple(value.shape) for name, value in model.module.state_dict().items()}
        for model in (base, locked)
    ]
    differ = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    # Other names or another order of the labels is a difference, which the record lists.
    if len(base.labels or ()) != len(locked.labels or ()) or len(differ) > len(shapes[0]) / 2:
        first = differ[0] if differ else "the head's labels"
        raise InputError(
            f"{locked.name} is not a locked {base.name}: {first} is {shapes[1].get(first, 'missing')} in the "
            f"one and {shapes[0].get(first, 'missing')} in the other. Name the base that was locked with --base."
        )
