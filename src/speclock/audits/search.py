"""The search over learning rates within one family of attacks: begun wide, extended to an inside best, refined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from speclock.attacks.base import Attack, Watch
from speclock.attacks.finetune import FineTune
from speclock.audits.record import RunRecord
from speclock.audits.suite import Family
from speclock.tasks.base import LEAST_VISIBLE, is_proportion

LOWEST, HIGHEST = 1e-8, 1e2
"""Learning rates beyond which no search goes."""

Attempt = Callable[[Attack, Watch], RunRecord]
"""Carries out one attack; the watch ends it early."""


def searched(family: Family, attempt: Attempt, pruning: Pruning) -> Iterator[RunRecord]:
    """Every run of a family's search on one target.

    The rates that the family lists come first. While the best of all lies on an edge, the next rate a decade
    further out is tried; once it lies inside, so are the rates half a decade to either side of it. A rate that
    diverged, collapsed or ruined the model is an edge that the best cannot lie on. While no rate is visibly above
    chance (and above what a model that came with a head for the task scored before the first step) the best is none,
    and rates up to the family's reach beyond the listed ones are tried on both sides; where a rate has blown up, the
    half decade below it too.
    """
    found: dict[float, RunRecord] = {}

    def tried(attack: Attack) -> RunRecord:
        run = attempt(attack, pruning.watch(attack))
        pruning.hear(run)
        return run

    for attack in family.attacks:
        run = tried(attack)
        if family.searched and isinstance(attack, FineTune):
            found[attack.lr] = run
        yield run
    while found and (rate := _next(found, pruning, family)) is not None:
        found[rate] = tried(at(family.attacks[0], rate))
        yield found[rate]


def at(attack: Attack, rate: float) -> Attack:
    """The same attack at another learning rate."""
    assert isinstance(attack, FineTune), f"{attack.name} has no learning rate"
    return replace(attack, lr=rate)


def best_of(runs: dict[float, RunRecord]) -> float | None:
    """The rate of the best run, of equals the first; None where no run has a score."""
    scored = {rate: run.best for rate, run in runs.items() if run.best is not None}
    return max(scored, key=lambda rate: scored[rate], default=None)


def untaught(runs: Iterable[RunRecord], chance: float) -> float:
    """What is no achievement of any run: chance, and what the model scored before the first step."""
    return max([chance, *(run.start for run in runs if run.start is not None)])


def spoilt(run: RunRecord, visible: float) -> bool:
    """Whether a run blew up or collapsed, or left a model that came with a head for the task visibly worse than it was,
    having been of no use before."""
    if run.best is None:
        return True
    return run.best_step == 0 and (run.broke_at is not None or run.curve[-1][1] < run.best - visible)


def _next(runs: dict[float, RunRecord], pruning: Pruning, family: Family) -> float | None:
    """The rate to try next; None once the best has neighbours on both sides half a decade off."""
    if all(run.status == "failed" for run in runs.values()):
        return None  # what does not fit a model at one rate fits at none
    best, sound = best_of(runs), {rate for rate, run in runs.items() if not spoilt(run, pruning.visible)}
    learnt = untaught(runs.values(), pruning.chance) + pruning.visible
    if best is None or (runs[best].best or 0.0) <= learnt:
        if (rate := _below_the_edge(runs, sound)) is not None:
            return rate
        if not sound:
            # Everything blew up, collapsed or ruined the model: only lower rates may not.
            lower = _rounded(min(runs) / 10)
            return lower if lower >= LOWEST else None
        return _beyond(runs, sound, family)
    if best in (max(runs), min(runs)):
        further = _rounded(best * 10 if best == max(runs) else best / 10)
        if LOWEST <= further <= HIGHEST:
            return further
    between = (_rounded(best * 10**0.5), _rounded(best / 10**0.5))
    return next((rate for rate in between if rate not in runs and min(runs) < rate < max(runs)), None)


def _below_the_edge(runs: dict[float, RunRecord], sound: set[float]) -> float | None:
    """Between the highest sound rate and the next, which blew up: the largest that do not may alone learn."""
    highest = max(sound, default=None)
    above = min((rate for rate in runs if highest is not None and rate > highest), default=None)
    if highest is None or above is None or above < 5 * highest:
        return None
    return _rounded(above / 10**0.5)


def _beyond(runs: dict[float, RunRecord], sound: set[float], family: Family) -> float | None:
    """Where to look while nothing has learnt: further up, unless that blew up, then further down."""
    listed = [attack.lr for attack in family.attacks if isinstance(attack, FineTune)]
    higher, lower, reach = _rounded(max(runs) * 10), _rounded(min(runs) / 10), 1.01 * 10**family.reach
    if max(runs) in sound and higher <= min(HIGHEST, reach * max(listed)):
        return higher
    return lower if lower >= max(LOWEST, min(listed) / reach) else None


def _rounded(rate: float) -> float:
    """Two digits: half a decade above 1e-4 is 3.2e-4, and is found again whichever way it is come by."""
    return float(f"{rate:.1e}")


SEARCH_EXAMPLES = 128
"""Validation examples on which a search compares its runs: fewer than a finalist's, whose curve is quoted."""

RUNGS = (0.25, 0.5)
"""Parts of the budget after which the runs of a search are scored and compared."""


def rungs(steps: int) -> list[int]:
    """The steps at which a search scores its runs: at the rungs and at the end.

    >>> rungs(40)
    [10, 20, 40]
    """
    return sorted({*(max(1, round(rung * steps)) for rung in RUNGS), steps})


def visible(metric: str, n: int) -> float:
    """The difference between two scores on ``n`` examples below which their order may be chance.

    Half the 95% interval of a proportion near one half, and never less than the best of a sweep at chance lies above
    it. An F1 is one of the positive examples, half of them or so; a likelihood is no proportion.
    """
    least = LEAST_VISIBLE[metric]
    if not is_proportion(metric):
        return least
    return max(least, 0.98 / (n / 2 if metric == "f1" else n) ** 0.5)


class Pruning:
    """When a run of a search is given up: visibly behind a rival of its family at the same number of labelled steps.

    Rivals see their first label at the same step, so neither healing nor imitation is counted against a run, and
    one is only given up when a rival has visibly learnt: while all hover around chance their order is noise, and
    pruning by it would flatter the lock (or, on scratch, the base). The best of a family is never given up.
    """

    def __init__(self, chance: float, visible: float, steps: int) -> None:
        self.chance = chance
        self.visible = visible
        self.steps = steps
        self.leader: dict[float, float] = {}
        """Best score so far of any run at each rung."""

    def watch(self, attack: Attack) -> Watch:
        """A new run's watch: it hears of every score and answers whether to give up."""
        first, best, passed = attack.unlabelled(self.steps), 0.0, set[float]()

        def losing(step: int, score: float) -> bool:
            nonlocal best
            best = max(best, score)
            # Evaluations lie within half a step of the rungs.
            rungs = {rung for rung in RUNGS if step - first + 0.5 >= rung * self.steps} - passed
            passed.update(rungs)
            ahead = self.leader.get(max(rungs), 0.0) if rungs else 0.0
            return ahead - max(best, self.chance) > self.visible

        return losing

    def hear(self, run: RunRecord) -> None:
        """Take in a run that has ended, in this process or in an earlier one."""
        for rung in RUNGS:
            scores = [
                score for step, score in run.counted if step - run.first_label <= rung * run.steps + 0.5
            ]
            if scores and run.best is not None:
                self.leader[rung] = max(self.leader.get(rung, 0.0), *scores)
