"""From runs to a summary: best scores, floor, uplift, slowdown, and the verdict in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from speclock.audits.intervals import Reached, mean_interval, slowdown_interval, uplift_interval
from speclock.audits.record import FLOOR, TARGETS, Record, RunRecord
from speclock.audits.search import SEARCH_EXAMPLES, untaught, visible
from speclock.numbers import more_or_less, percent, significant, unit
from speclock.tasks.base import NO_ANSWER, NOTABLE, is_proportion

if TYPE_CHECKING:
    from speclock.tasks.base import Task

Measure = Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " n"]], float]

RISING = 0.4
"""What the second half of a budget must bring on average for a run to count as still rising, in what is notable."""


def worth_judging(record: Record) -> bool:
    """Whether the base is worth enough over the floor for a lock on it to be judged: what is notable, or more."""
    worth = record.summary["worth"]
    return worth is not None and worth >= NOTABLE[record.attack_task["metric"]]


def utility_bound(record: Record) -> float:
    """Utility that an attacker may lose and still have a model that is of use, in the bounded worst case."""
    return 2 * NOTABLE[record.retain_task["metric"]]


class Pick(NamedTuple):
    """The attacker's pick on one target: the finalist with the best mean on the validation split."""

    score: float
    """Mean over seeds of the test split's score, a seed without one counting as the default."""
    validation: float
    """The same mean of the best validation scores, by which it was picked."""
    runs: list[RunRecord]
    """The configuration's runs, one a seed."""


def finals(runs: Iterable[RunRecord], target: str) -> dict[str, list[RunRecord]]:
    """The finalists' runs on a target by configuration and budget: with more steps a run may end worse."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.target == target and run.stage == "final":
            groups.setdefault(run.key, []).append(run)
    return groups


def pick(
    runs: Iterable[RunRecord],
    target: str,
    default: tuple[float, float],
    counts: Callable[[RunRecord], bool] = lambda run: True,
) -> Pick | None:
    """The attacker's pick among the finalists on ``target`` all of whose runs ``counts`` admits.

    ``default`` is (test, validation) of a seed that diverged, collapsed or failed: what the attacker has anyway.
    So no configuration wins by having fewer bad seeds. None where no run of any ended with a score.
    """
    found = []
    for group in finals(runs, target).values():
        if not all(counts(run) for run in group if run.test is not None):
            continue
        if all(run.test is None for run in group):
            continue
        tests = [default[0] if run.test is None else run.test for run in group]
        held = [default[1] if run.test is None or run.best is None else run.best for run in group]
        found.append(Pick(fmean(tests), fmean(held), group))
    return max(found, key=lambda pick: pick.validation, default=None)


def guess(record: Record) -> float:
    """What an attacker scores who does nothing: chance; but of a backdoor or a relearning nothing, since to answer at
    random is to ruin what must be kept beside it."""
    task = record.attack_task
    return 0.0 if task.get("collapses") else float(task["chance"])


def uplift(locked: float | None, base: float | None, floor: float | None) -> float | None:
    """(locked − floor) / (base − floor), from 1 (no lock) to 0 (worth nothing to the attacker).

    None where the base is no better than the floor, or a score is missing: there is nothing to compare with.

    >>> uplift(0.75, 1.0, 0.5)
    0.5
    """
    if locked is None or base is None or floor is None or base <= floor:
        return None
    return (locked - floor) / (base - floor)


def summarise(
    record: Record,
    utility_base: float,
    utility_locked: float,
    attack: Task,
) -> dict[str, Any]:
    """The record's `summary`."""
    truth, measure = attack.test.labels, attack.measure
    proportion = is_proportion(record.attack_task["metric"])
    chance, least = record.attack_task["chance"], guess(record)
    floors = {name: found for name in FLOOR if (found := pick(record.runs, name, (least, least))) is not None}
    # Chosen on the validation split: the best of three test scores would flatter the floor, and with it the lock.
    floor_by = max(floors, key=lambda name: floors[name].validation, default=None)
    if floor_by and floors[floor_by].validation < least:
        floor_by = None  # always the commonest answer does better
    floor = floors[floor_by] if floor_by else None
    anyway = (floor.score, floor.validation) if floor else (least, least)
    picks: dict[str, Pick | None] = {**dict.fromkeys(TARGETS), **floors}
    for name in ("base", "control", "student", "locked"):
        picks[name] = pick(record.runs, name, anyway)
    score = {name: found.score if found else None for name, found in picks.items()}
    uninformed = pick(record.runs, "locked", anyway, lambda run: not run.informed)
    informed = pick(record.runs, "locked", anyway, lambda run: run.informed)
    bounded = pick(
        record.runs,
        "locked",
        anyway,
        lambda run: (
            run.utility_after is not None and run.utility_after >= utility_locked - utility_bound(record)
        ),
    )
    floors_own = next((run.answers for run in floor.runs if run.answers), None) if floor else None
    # Of what nobody has without ruining the model, nothing.
    nothing = attack.guessed() if least else np.full_like(truth, NO_ANSWER)
    instead = np.array(floors_own) if floors_own else nothing
    answers = {name: _answers(found, instead) for name, found in picks.items() if found}
    answers["floor"] = _answers(floor, instead) if floor else instead[None]
    locked, base = picks["locked"], picks["base"]
    return {
        "utility_base": utility_base,
        "utility_locked": utility_locked,
        **{f"best_{name}": score[name] for name in TARGETS},
        "floor": anyway[0],
        "floor_validation": anyway[1],
        "floor_by": floor_by,
        "worth": None if base is None else base.score - anyway[0],
        "uplift": uplift(score["locked"], score["base"], anyway[0]),
        "uplift_uninformed": uplift(uninformed.score if uninformed else None, score["base"], anyway[0]),
        "uplift_informed": uplift(informed.score if informed else None, score["base"], anyway[0]),
        "excess": uplift(score["locked"], score["base"], score["student"]),
        **_slowdowns(record, picks, anyway[1]),
        "strongest_attack": locked.runs[0].title if locked else None,
        "strongest_attacks": {name: found.runs[0].title for name, found in picks.items() if found},
        "strongest_uninformed": uninformed.runs[0].title if uninformed else None,
        "strongest_informed": informed.runs[0].title if informed else None,
        "price": {
            name: fmean(getattr(run, name) or 0.0 for run in locked.runs) if locked else None
            for name in ("passes", "tflops")
        },
        "utility_bound": utility_bound(record),
        "best_locked_bounded": bounded.score if bounded else None,
        "strongest_attack_bounded": bounded.runs[0].title if bounded else None,
        "chance": chance,
        "complete": {
            name: {
                "runs": sum(run.target == name for run in record.runs),
                "to_the_end": sum(run.target == name and run.complete for run in record.runs),
            }
            for name in TARGETS
        },
        "intervals": {
            **{
                f"best_{name}": mean_interval(answers[name], truth, measure, proportion=proportion)
                if name in answers
                else None
                for name in TARGETS
            },
            **{f"utility_{name}": _of_utility(record, name) for name in ("base", "locked")},
            "uplift": _uplift_interval(answers, "floor", truth, measure),
            "excess": _uplift_interval(answers, "student", truth, measure),
        },
    }


def _answers(found: Pick, instead: Int[np.ndarray, " n"]) -> Int[np.ndarray, "seeds n"]:
    """What a pick's runs answered to the test examples; a seed without answers has what the attacker has anyway."""
    return np.array([run.answers or instead for run in found.runs])


def _of_utility(record: Record, name: str) -> tuple[float, float] | None:
    """The interval of base's or locked model's utility; audits of before do not say it."""
    return record.cost.get("test split", {}).get(f"interval_{name}")


def _uplift_interval(
    answers: dict[str, Int[np.ndarray, "seeds n"]],
    over: str,
    truth: Int[np.ndarray, " n"],
    measure: Measure,
) -> tuple[float, float] | None:
    if any(name not in answers for name in ("locked", "base", over)):
        return None
    return uplift_interval(
        {"locked": answers["locked"], "base": answers["base"], "floor": answers[over]}, truth, measure
    )


class Left(NamedTuple):
    """What an audit leaves the attacker on the validation split: for whoever chooses among audits."""

    score: float | None
    """The attacker's pick on the locked model."""
    uplift: float | None
    uninformed: float | None
    """The uplift of attackers that do no more than fine-tune."""
    base: float | None
    """The attacker's pick on the base."""
    worth: float | None


def left_by_validation(record: Record) -> Left:
    """Score, uplift and worth as :func:`summarise` has them, on the split that things are chosen by."""
    floor = record.summary["floor_validation"]
    base, locked = (strongest(record, name) for name in ("base", "locked"))
    plain = pick(record.runs, "locked", (record.summary["floor"], floor), lambda run: not run.informed)
    of_base, score, plainly = (found and found.validation for found in (base, locked, plain))
    return Left(
        score=score,
        uplift=uplift(score, of_base, floor),
        uninformed=uplift(plainly, of_base, floor),
        base=of_base,
        worth=None if of_base is None else of_base - floor,
    )


# -- slowdown --------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What a configuration had taken when it was first seen at the target, or its whole budget where it never was."""

    reached: bool
    steps: float | None
    """None for a probe, which takes none: it counts in examples and operations alone."""
    examples: float
    """Passes × examples a pass."""
    tflops: float
    seeds: list[float | None]
    """Steps of each seed by itself; None where it did not get there."""
    budget: int
    """Steps after which its runs ended."""
    censored: bool
    """Whether it did not get there and more steps might have: a probe takes none."""


def cost_to(runs: Sequence[RunRecord], score: float, default: float, examples: int) -> Cost | None:
    """What a configuration took until its seeds' best scores so far were at ``score`` on average.

    A seed that diverged, collapsed or failed counts at ``default``, what the attacker has anyway. An evaluation that
    does not count, since what stands beside the task had fallen, is passed over. ``examples`` is how many the attacker
    has, which no batch exceeds. None for a configuration of which no run left a curve.
    """
    ran = [run for run in runs if run.curve and run.status in ("ok", "collapsed")]
    if not ran:
        return None

    def so_far(run: RunRecord, step: int) -> float:
        if run.status != "ok":
            return default
        return max((value for at, value in run.counted if at <= step), default=0.0)

    def first(of: Sequence[RunRecord]) -> int | None:
        steps = sorted({step for run in ran for step, _ in run.curve})
        return next((step for step in steps if fmean(so_far(run, step) for run in of) >= score), None)

    def spent(run: RunRecord, field: str) -> float:
        last = run.curve[-1][0]
        return float(getattr(run, field) or 0.0) * min(1.0, at / max(1, last))

    seen, config = first(runs), ran[0].config
    budget = max(1, *(run.curve[-1][0] for run in ran))
    # Where the target is reached before the first step there is still one step's worth of work.
    at = budget if seen is None else max(1, seen)
    batch = min(config.get("batch_size", 1), examples) * config.get("accumulate", 1)
    alone = [first([run]) for run in runs]
    return Cost(
        seen is not None,
        None if ran[0].kind == "probe" else at,
        fmean(spent(run, "passes") for run in ran) * batch,
        fmean(spent(run, "tflops") for run in ran),
        [None if step is None else max(1, step) for step in alone],
        budget,
        seen is None and ran[0].kind != "probe",
    )


def _slowdowns(record: Record, picks: dict[str, Pick | None], floor: float) -> dict[str, Any]:
    """Slowdown in steps, in examples and in operations, and the interval of the first.

    The target is the floor and nine tenths of the way from there to the base's pick, all on the validation split,
    on which curves are. Of each target counts the finalist that gets there most cheaply.
    """
    nothing = dict.fromkeys(
        ("slowdown", "slowdown_interval", "slowdown_examples", "slowdown_tflops", "target"), None
    )
    base = picks["base"]
    if base is None or base.validation <= floor:
        return nothing
    target, train = floor + 0.9 * (base.validation - floor), record.attack_task["train"]
    costs: dict[str, list[Cost]] = {"base": [], "locked": []}
    for name, of_target in costs.items():
        groups = list(finals(record.runs, name).values())
        most = max((group[0].steps for group in groups), default=0)
        for group in groups:
            cost = cost_to(group, target, floor, train)
            # What did not get there in fewer steps was tried again with more.
            if cost is not None and (cost.reached or group[0].steps == most):
                of_target.append(cost)
    found = [_cheapest(of_target, "steps") for of_target in costs.values()]
    return {
        "slowdown": _ratio(costs, "steps"),
        "slowdown_interval": slowdown_interval(
            *(
                Reached(cost.steps if cost.reached else None, cost.seeds, cost.budget)
                if cost and cost.steps
                else Reached(None, [], 1)
                for cost in found
            )
        ),
        "slowdown_examples": _ratio(costs, "examples"),
        "slowdown_tflops": _ratio(costs, "tflops"),
        "target": target,
    }


def _cheapest(costs: list[Cost], of: str) -> Cost | None:
    """The finalist that gets there most cheaply, in one unit; where none does, the one that was cut off first: any
    longer run of it might have got there."""
    # A probe takes no steps, so it is no answer to how many.
    counted = [cost for cost in costs if getattr(cost, of) is not None]
    reached = [cost for cost in counted if cost.reached]
    if reached:
        return min(reached, key=lambda cost: getattr(cost, of))
    cut_off = [cost for cost in counted if cost.censored]
    return min(cut_off or counted, key=lambda cost: getattr(cost, of), default=None)


def _ratio(costs: dict[str, list[Cost]], of: str) -> float | str | None:
    """The locked model's cheapest finalist over the base's; in words where the locked model's did not get there."""
    base, locked = (_cheapest(costs[name], of) for name in ("base", "locked"))
    # Of operations that could not be counted there is no ratio.
    if base is None or locked is None or not base.reached or not getattr(base, of):
        return None
    ratio = getattr(locked, of) / getattr(base, of)
    # Censored: what was cut off first says how much is not enough.
    return round(ratio, 3) if locked.reached else f"> {ratio:.1f}"


def still_rises(record: Record, target: str) -> bool:
    """Whether any finalist still rises on a target that might overtake the pick: it is not visibly behind it."""
    best = strongest(record, target)
    if best is None:
        return False
    task, groups = record.attack_task, list(finals(record.runs, target).values())
    margin = visible(task["metric"], task["validation"])
    budget = max(group[0].steps for group in groups)
    return any(
        rising(group, task["metric"]) and best.validation - fmean(run.best or 0.0 for run in group) <= margin
        for group in groups
        if group[0].steps == budget
    )


def visible_in_search(record: Record) -> float:
    """The difference of two scores in a search of this audit below which their order may be chance."""
    task = record.attack_task
    return visible(task["metric"], min(SEARCH_EXAMPLES, task["validation"]))


def learnt(record: Record, target: str) -> float:
    """The score in a search on a target from which something has been learnt, and not by chance."""
    runs = [run for run in record.runs if run.target == target and run.stage == "search"]
    return untaught(runs, record.attack_task["chance"]) + visible_in_search(record)


def strongest(record: Record, target: str) -> Pick | None:
    """The attacker's pick on a target of a summarised record."""
    return pick(record.runs, target, (record.summary["floor"], record.summary["floor_validation"]))


def rising(runs: Iterable[RunRecord], metric: str) -> bool:
    """Whether the runs of a configuration still rose in the second half of their budget."""
    gains = []
    for run in runs:
        if run.counted and run.best is not None:
            half = run.first_label + run.steps / 2
            earlier = max((score for step, score in run.counted if step <= half), default=0.0)
            gains.append(max(score for _, score in run.counted) - earlier)
    return bool(gains) and fmean(gains) > RISING * NOTABLE[metric]


# -- families --------------------------------------------------------------------------------------------


def families(record: Record) -> list[dict[str, Any]]:
    """One row a family of attacks: what its search reached on each target, and whether it is inert.

    A family is inert that does not beat the floor on the unlocked base, on the validation split and by more than
    the best of a search at the floor does by chance, neither in its search nor in its finals (which may have had
    twice the budget): that it does not break a lock says nothing of the lock.
    """
    least = guess(record)
    floor = max(
        (found.validation for name in FLOOR if (found := pick(record.runs, name, (least, least)))),
        default=least,
    )
    margin = visible_in_search(record)
    rows: dict[str, dict[str, Any]] = {}
    for run in record.runs:
        if run.stage != "search" or run.target in ("released", "scratch", "classical"):
            continue
        row = rows.setdefault(
            run.family, {"family": run.family, "kind": run.kind, "informed": run.informed, "targets": {}}
        )
        seen = row["targets"].setdefault(
            run.target, {"best": None, "at": None, "runs": 0, "to_the_end": 0, "failed": 0, "diverged": 0}
        )
        seen["runs"] += 1
        seen["to_the_end"] += run.complete
        for status in ("failed", "diverged"):
            seen[status] += run.status == status
        if run.best is not None and (seen["best"] is None or run.best > seen["best"]):
            seen["best"], seen["at"] = run.best, run.title
    for name, row in rows.items():
        on_base = [row["targets"].get("base", {}).get("best")]
        if own := pick([run for run in record.runs if run.family == name], "base", (floor, floor)):
            on_base.append(own.validation)
        row["inert"] = all(best is None or best <= floor + margin for best in on_base)
    return list(rows.values())


# -- verdict ---------------------------------------------------------------------------------------------


def verdict(record: Record) -> str:
    """What the lock costs, what it withstood and what broke it, in one sentence."""
    s, price = record.summary, _price(record)
    if s["best_base"] is None:
        return f"{price}, and no attack on the unlocked base ended with a score, so this audit says nothing."
    floor = f"{percent(s['floor'])} that the attacker has anyway ({s['floor_by'] or 'chance'})"
    if not worth_judging(record):
        than = "hardly more than" if s["best_base"] >= s["floor"] else "less than"
        return (
            f"{price}; the unlocked base gives the attacker {s['best_base']:.1%}, {than} the {floor}, so nothing can "
            f"be said about the lock."
        )
    if s["best_locked"] is None:
        return f"{price}, and no attack on it ended with a score: every run diverged, collapsed or failed."
    left = min(1.0, max(0.0, s["uplift"]))
    fate, alone = _fate(s, record.suite["budget"]), best_alone(record)
    sentence = (
        f"{price} and {fate}: {s['strongest_attack']} reached {s['best_locked']:.1%} "
        f"where the unlocked base gives {s['best_base']:.1%} and the floor is the {floor}, which leaves the "
        f"attacker {left:.0%} of what the weights are worth"
    )
    if left < 0.25 and alone is not None:
        sentence += (
            f", though a single run of {alone.family} came to {alone.best:.1%} on the validation split"
        )
    student = s["best_student"]
    if student is not None and student - s["floor"] >= 0.5 * s["worth"]:
        sentence += (
            f"; a fresh network taught the base's answers alone gives {student:.1%}, so most of that is given away "
            f"by what the model does, whatever its weights"
        )
    return f"{sentence}."


def best_alone(record: Record) -> RunRecord | None:
    """The best single run on the locked model, of the search or under one seed, where it keeps half of what the weights
    are worth or more: what the mean over seeds of the attacker's pick does not show."""
    base, floor = pick(record.runs, "base", (0.0, 0.0)), record.summary["floor_validation"]
    runs = [run for run in record.runs if run.target == "locked" and run.best is not None]
    best = max(runs, key=lambda run: run.best or 0.0, default=None)
    if base is None or best is None or (best.best or 0.0) < floor + 0.5 * (base.validation - floor):
        return None
    return best


def at_target(record: Record) -> int | None:
    """The earliest step, counted from the first label, at which a single run on the locked model was at the target."""
    target = record.summary.get("target")
    if target is None:
        return None
    steps = [
        step - run.first_label
        for run in record.runs
        if run.target == "locked" and run.best is not None
        for step, score in run.counted
        if score >= target
    ]
    return min(steps, default=None)


def _price(record: Record) -> str:
    """Utility lost on the test split, and on inputs a little off it, where that is more and is sure."""
    lost = record.summary["utility_base"] - record.summary["utility_locked"]
    if lost <= 0.0005:
        price = "The lock costs no utility"
    elif is_proportion(record.retain_task["metric"]):
        price = f"The lock costs {100 * lost:.1f} points of utility"
    else:
        price = (
            f"The lock costs {100 * lost:.1f}{unit(record.retain_task['metric'])}{perplexity_change(record)}"
        )
    shifted = {
        kind: row["score_base"] - row["score_locked"]
        for kind, row in record.cost.items()
        # Audits of before say no interval.
        if kind != "test split" and (row.get("interval_change") or (0, 0))[1] < 0
    }
    worst = max(shifted, key=lambda kind: shifted[kind], default=None)
    if worst is None or shifted[worst] <= max(lost, 0.0005):
        return price
    return f"{price} on the test split ({100 * shifted[worst]:.1f} on {_SHIFTED[worst]})"


def perplexity_change(record: Record) -> str:
    """By how much the lock raises a language model's perplexity, in brackets; nothing where no perplexity is known."""
    row = record.cost.get("test split", {})
    base, locked = row.get("perplexity_base"), row.get("perplexity_locked")
    return f" (perplexity {more_or_less(locked / base - 1)})" if base and locked else ""


_SHIFTED = {
    "windows": "other windows of its texts",
    "typos": "texts with typing errors",
    "noise": "noisy images",
    "moved": "images a little moved",
}


def _fate(summary: dict[str, Any], budget: int) -> str:
    """How the lock fared, by whether the target was reached and by how much of the weights' worth is left."""
    slowdown, left = summary["slowdown"], summary["uplift"]
    if left >= 0.75 or isinstance(slowdown, float):
        if isinstance(slowdown, float):
            return f"was broken in {significant(slowdown)}× the steps that the base takes"
        return f"barely held back the attacker within {budget} steps"
    if left >= 0.25:
        return f"held back part of what the attacker wanted within {budget} steps"
    return f"withstood {budget} steps of every attack tried"


def spread(found: Pick | None, default: float) -> Sequence[float]:
    """The test scores of a pick's runs; a seed without one has what the attacker has anyway."""
    return [default if run.test is None else run.test for run in found.runs] if found else []
