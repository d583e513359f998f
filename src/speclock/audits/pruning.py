"""When a sweep gives up a run: successive halving that does not trust noise."""

from __future__ import annotations

import optuna

from speclock.attacks.base import Watch
from speclock.audits.record import RunRecord


def visible(n: int) -> float:
    """The difference between two scores on ``n`` test examples below which their order may be chance.

    Half the 95% interval of a proportion near one half, and never less than a tenth: the best of a sweep at
    chance lies that far above it.
    """
    return max(0.1, 0.98 / n**0.5)


class Pruner:
    """Successive halving over the runs of one sweep: below the better half at a rung, a run is given up."""

    RUNGS = (1, 2)
    """Quarters of the budget at which runs are compared."""

    def __init__(self, chance: float, visible: float, budget: int) -> None:
        """``visible`` is the least difference of scores that counts as one."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
        self.study = optuna.create_study(direction="maximize", pruner=halving)
        self.chance = chance
        self.visible = visible
        self.budget = budget
        self.leader = 0.0

    def begin(self) -> Watch:
        """A new run's watch: it hears of every score and answers whether to give up."""
        self.trial = self.study.ask()
        best, rung = 0.0, 0

        def losing(step: int, score: float) -> bool:
            nonlocal best, rung
            best = max(best, score)
            self.leader = max(self.leader, score)
            quarter = 4 * step // self.budget
            if quarter == rung or quarter not in self.RUNGS:
                return False
            rung = quarter
            self.trial.report(best, rung)
            behind = self.trial.should_prune()  # asked of every run: it also enters the run among its rivals
            return behind and self.leader - max(best, self.chance) > self.visible

        return losing

    def end(self, run: RunRecord) -> None:
        """Tell the tuner how the run ended."""
        state = optuna.trial.TrialState
        if run.best is None:
            self.study.tell(self.trial, state=state.FAIL)
        elif run.pruned_at is not None:
            self.study.tell(self.trial, state=state.PRUNED)
        else:
            self.study.tell(self.trial, run.best)
