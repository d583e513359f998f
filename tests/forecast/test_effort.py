"""The race that finds the fewest steps to a score."""

import pytest

from speclock.attacks.finetune import FineTune
from speclock.forecast.effort import Effort, best_score, fewest_steps
from speclock.models import Model
from speclock.tasks.base import Task

RATES = (3e-4, 3e-3, 1e-2)


@pytest.fixture(scope="module")
def target(base: Model, silhouettes: Task) -> float:
    best = best_score(base, silhouettes, "adam", RATES, 16, every=4)
    return silhouettes.chance + 0.8 * (best - silhouettes.chance)


def test_the_race_finds_what_a_full_sweep_finds(base: Model, silhouettes: Task, target: float) -> None:
    """Four looks at every rate, by the attack itself: the earliest at the target is the race's answer."""
    assert target > silhouettes.chance
    reached = []
    for rate in RATES:
        attack = FineTune(optimizer="adam", lr=rate, clip=None, dropout=False)
        curve = attack(base, silhouettes, 16, due=range(4, 17, 4)).outcome.curve
        reached += [(step, rate) for step, score in curve if score >= target][:1]
    found = fewest_steps(base, silhouettes, "adam", RATES, target, 16, every=4)
    assert found == min(reached, key=lambda pair: pair[0])
    backwards = fewest_steps(base, silhouettes, "adam", RATES[::-1], target, 16, every=4)
    assert backwards.steps == found.steps


def test_a_score_out_of_reach_takes_no_number_of_steps(base: Model, silhouettes: Task) -> None:
    assert fewest_steps(base, silhouettes, "sgd", (1e-9,), 1.1, 8, every=4) == Effort(None, None)


def test_rates_that_all_diverge_leave_chance(base: Model, silhouettes: Task) -> None:
    assert best_score(base, silhouettes, "sgd", (1e30,), 4, every=2) == silhouettes.chance
