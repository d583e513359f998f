"""The search over rates, and when it gives a run up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclock.attacks.base import Attack, Watch
from speclock.attacks.finetune import FineTune
from speclock.attacks.repair import Clip
from speclock.audits.record import RunRecord
from speclock.audits.search import HIGHEST, LOWEST, Pruning, rungs, searched, visible
from speclock.audits.suite import Family, around

STEPS = 40


def run_of(attack: Attack, curve: list[tuple[int, float]], pruned_at: int | None = None) -> RunRecord:
    return RunRecord(
        target="locked",
        attack=attack.name,
        config=attack.config(),
        seed=0,
        status="ok" if curve else "diverged",
        curve=curve,
        best=max((score for _, score in curve), default=None),
        best_step=max(curve, key=lambda point: (point[1], -point[0]))[0] if curve else None,
        steps=STEPS,
        first_label=attack.unlabelled(STEPS),
        pruned_at=pruned_at,
    )


def search(
    family: Family,
    score: Callable[[float], float | None],
    shape: Callable[[float], float] = lambda part: part,
    start: float | None = None,
) -> dict[float, RunRecord]:
    """The runs of a search over attacks that reach ``score(lr)``, ``shape(part of the budget)`` of it on the way.

    ``start`` is what a model with a head for the task scores before the first step."""

    def attempt(attack: Attack, watch: Watch) -> RunRecord:
        assert isinstance(attack, FineTune)
        end, curve = score(attack.lr), [] if start is None else [(0, start)]
        if end is None:
            return run_of(attack, [])
        first = attack.unlabelled(STEPS)
        for step in rungs(STEPS):
            curve.append((first + step, end * shape(step / STEPS)))
            if watch(*curve[-1]) and step < STEPS:
                return run_of(attack, curve, pruned_at=first + step)
        return run_of(attack, curve)

    return {
        run.config["lr"]: run
        for run in searched(family, attempt, Pruning(0.1, visible("accuracy", 400), STEPS))
    }


@given(st.floats(math.log10(LOWEST) + 0.5, math.log10(HIGHEST) - 0.5), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_best_is_found_wherever_it_lies(peak: float, middle: float) -> None:
    runs = search(around(FineTune, middle), lambda lr: 1 - 0.05 * abs(math.log10(lr) - peak))
    best = max(runs, key=lambda lr: runs[lr].best or 0)
    assert abs(math.log10(best) - peak) <= 0.26, "half a decade apart, so a quarter off at most"
    assert min(runs) < best < max(runs), "and it lies inside"


def test_a_rate_that_diverges_is_an_edge_the_best_cannot_lie_on() -> None:
    runs = search(around(FineTune, 1e-4), lambda lr: None if lr > 5e-4 else 0.2 + 0.1 * (math.log10(lr) + 8))
    assert max(rate for rate, run in runs.items() if run.best is not None) == 3.2e-4
    assert runs[1e-3].status == "diverged"
    assert max(runs) == 1e-3


def test_where_all_diverge_lower_rates_are_tried() -> None:
    runs = search(around(FineTune, 1e-2), lambda lr: None if lr > 2e-6 else 0.5)
    assert runs[1e-6].best == 0.5
    assert len(search(around(FineTune, 1e-2), lambda lr: None)) == 8, "down to the lowest, and then no more"


def test_what_does_not_fit_the_model_is_tried_at_the_listed_rates_alone() -> None:
    def attempt(attack: Attack, watch: Watch) -> RunRecord:
        return replace(run_of(attack, []), status="failed", reason="no two layers can be multiplied")

    tried = list(searched(around(FineTune, 1e-4), attempt, Pruning(0.1, visible("accuracy", 400), STEPS)))
    assert [run.config["lr"] for run in tried] == [1e-4, 1e-5, 1e-3]


@pytest.mark.parametrize("above", [1e-3, 1e-2, 1e-4])
def test_the_half_decade_below_what_blows_up_is_tried_before_lower_rates(above: float) -> None:
    """Nothing learns but at the largest rate that does not diverge."""
    works = float(f"{above / 10**0.5:.1e}")
    runs = search(around(FineTune, 1e-4), lambda lr: None if lr >= above else 0.9 if lr == works else 0.1)
    assert runs[works].best == 0.9


def test_only_the_search_s_own_end_is_an_edge() -> None:
    runs = search(around(FineTune, 1e-4), lambda lr: 0.5 + 0.01 * math.log10(lr))
    assert max(runs, key=lambda lr: runs[lr].best or 0) == HIGHEST


def test_a_listed_family_is_tried_as_listed_and_a_probe_once() -> None:
    rates = (1e-4, 1e-3)
    listed = Family(tuple(FineTune(lr=lr) for lr in rates), searched=False)
    assert set(search(listed, lambda lr: lr)) == set(rates)


@pytest.mark.parametrize("works_at", [1e-2, 1e-6])
def test_where_nothing_learns_rates_far_from_the_listed_ones_are_tried(works_at: float) -> None:
    """Three scores at chance have a best by chance, and its neighbours are no better."""
    noise = {1e-4: 0.13, 1e-3: 0.11}
    runs = search(around(FineTune, 1e-4), lambda lr: 0.9 if lr == works_at else noise.get(lr, 0.1))
    assert runs[works_at].best == 0.9
    hopeless = search(around(FineTune, 1e-4), lambda lr: noise.get(lr, 0.1))
    assert set(hopeless) == {1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1}
    further = replace(around(FineTune, 1e-2), reach=4)
    assert min(search(further, lambda lr: 0.1 if lr < 1e-5 else None)) == 1e-7


@pytest.mark.parametrize(("works_at", "elsewhere"), [(1e-2, 0.45), (1e-6, 0.45), (1e-6, 0.3), (1e-6, None)])
def test_what_a_model_did_before_the_first_step_is_nothing_learnt(
    works_at: float, elsewhere: float | None
) -> None:
    """A language model that all listed rates ruin, leave as it was, or blow up."""
    runs = search(
        around(FineTune, 1e-4),
        lambda lr: 0.6 if lr == works_at else 0.45 if lr < works_at else elsewhere,
        shape=lambda part: 1.0,
        start=0.45,
    )
    assert runs[works_at].best == 0.6


def test_a_rival_is_not_held_to_what_does_not_count() -> None:
    pruning = Pruning(0.1, visible("accuracy", 400), STEPS)
    leader = run_of(FineTune(lr=1e-4), [(10, 1.0), (20, 1.0), (40, 0.3)])
    leader.uncounted, leader.best = [10, 20], 0.3
    pruning.hear(leader)
    assert not pruning.watch(FineTune(lr=1e-3))(20, 0.25)


def test_losing_runs_are_given_up_and_noise_around_chance_is_not() -> None:
    ends = {1e-4: 0.9, 1e-5: 0.3, 1e-3: 0.85}
    runs = search(around(FineTune, 1e-4), lambda lr: ends.get(lr, 0.88), shape=lambda part: 1.0)
    assert runs[1e-4].pruned_at is runs[1e-3].pruned_at is None
    assert runs[1e-5].pruned_at == 10, "a quarter of the budget"
    around_chance = search(around(FineTune, 1e-4), lambda lr: {1e-4: 0.15, 1e-5: 0.05}.get(lr, 0.1))
    assert all(run.pruned_at is None for run in around_chance.values())


def test_the_best_of_a_family_always_goes_to_the_end() -> None:
    """A rate that learns late but best is behind at every rung by less than is visible."""
    late = {1e-5: lambda part: part**0.2, 1e-4: lambda part: part**0.25}
    runs = search(around(FineTune, 1e-4), lambda lr: 0.9 if lr == 1e-5 else 0.8, shape=late[1e-4])
    assert max(runs.values(), key=lambda run: run.best or 0).complete


def test_healing_is_not_counted_against_a_run() -> None:
    """Two families of the same strength, one of which sees its first label eight steps later, end alike."""
    ends = {1e-4: 0.9, 1e-5: 0.3}
    plain = search(around(FineTune, 1e-4), lambda lr: ends.get(lr, 0.5))
    healed = search(around(Clip, 1e-4, heal=8), lambda lr: ends.get(lr, 0.5))
    assert {lr: run.best for lr, run in plain.items()} == {lr: run.best for lr, run in healed.items()}
    assert healed[1e-5].pruned_at == 8 + (plain[1e-5].pruned_at or 0)


def test_the_same_runs_from_disk_prune_alike() -> None:
    """A resumed search hears of kept runs what it heard while they went on."""
    first, again = (
        Pruning(0.1, visible("accuracy", 400), STEPS),
        Pruning(0.1, visible("accuracy", 400), STEPS),
    )
    leader = run_of(FineTune(lr=1e-4), [(10, 0.6), (20, 0.8), (40, 0.9)])
    for pruning in (first, again):
        pruning.hear(leader)
    watches = [pruning.watch(FineTune(lr=1e-5)) for pruning in (first, again)]
    assert [watch(10, 0.2) for watch in watches] == [True, True]


@pytest.mark.parametrize(("n", "given_up"), [(60, False), (400, True)])
def test_a_small_split_prunes_only_what_is_far_behind(n: int, given_up: bool) -> None:
    """28% against a leader at 40% on 60 examples is within the split's sampling error; on 400 it is not."""
    pruning = Pruning(0.25, visible("accuracy", n), STEPS)
    pruning.hear(run_of(FineTune(lr=1e-4), [(10, 0.4), (20, 0.4), (40, 0.4)]))
    watch = pruning.watch(FineTune(lr=1e-5))
    assert (True in {watch(step, 0.28) for step in (10, 20)}) is given_up
    assert visible("accuracy", n) >= 0.1


def test_what_is_visible_of_a_likelihood_is_not_what_is_of_an_accuracy() -> None:
    """At a likelihood of one half a tenth is a quarter of a bit a byte: no training on one's own texts brings that."""
    assert visible("likelihood", 128) == 0.01
    assert visible("f1", 128) > visible("accuracy", 128) == 0.1, "half of the examples are what an F1 is of"
