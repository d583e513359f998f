"""Intervals: a simulation of whole audits puts their coverage near the 95% that they claim."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

from speclock.audits.intervals import (
    Reached,
    change_interval,
    mean_interval,
    perplexity_interval,
    slowdown_interval,
    uplift_interval,
)

BASE, FLOOR = 0.9, 0.55
HARD, OWN = 2.0, 1.0
"""How far examples differ in logits, for all targets alike and for each target on its own."""

_Z = np.linspace(-5, 5, 201)
_WEIGHT = np.exp(-(_Z**2) / 2) / np.exp(-(_Z**2) / 2).sum()


def accuracy(answers: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> float:
    return float((answers == truth).mean())


def f1(answers: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> float:
    return 2 * int((answers & truth).sum()) / max(1, int(answers.sum() + truth.sum()))


def logits_for(score: float, points: float) -> tuple[float, float]:
    """(mean logit, seeds' deviation in logits) of a population whose score is that, ± ``points`` over seeds."""
    examples = np.hypot(HARD, OWN)

    def mean(shift: float) -> float:
        return brentq(lambda m: expit(m + np.hypot(examples, shift) * _Z) @ _WEIGHT - score, -30, 30)

    def excess(shift: float) -> float:
        of_seeds = expit(mean(shift) + shift * _Z[:, None] + examples * _Z) @ _WEIGHT
        return float(np.sqrt(of_seeds**2 @ _WEIGHT - (of_seeds @ _WEIGHT) ** 2)) - points

    shift = brentq(excess, 1e-4, 8) if points else 0.0
    return mean(shift), shift


def audits(
    rng: np.random.Generator,
    scores: dict[str, float],
    points: dict[str, float],
    seeds: dict[str, int],
    n: int,
) -> Iterator[dict[str, Int[np.ndarray, "seeds n"]]]:
    """Right (1) and wrong (0) answers of every target's seeds to one test split, a fresh one each time."""
    laws = {name: logits_for(scores[name], points[name]) for name in scores}
    while True:
        hard = rng.normal(0, HARD, n)
        yield {
            name: (
                rng.random((seeds[name], n))
                < expit(mean + hard + rng.normal(0, OWN, n) + rng.normal(0, shift, (seeds[name], 1)))
            ).astype(int)
            for name, (mean, shift) in laws.items()
        }


def plausible(hits: int, of: int, coverage: float) -> bool:
    """Whether so few hits are to be expected, in one of a thousand cells, under that coverage."""
    return bool(binom.cdf(hits, of, coverage) > 1e-3)


@pytest.mark.parametrize("replications", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_uplift_is_covered_as_often_as_claimed_with_three_seeds(replications: int) -> None:
    rng, seeds = np.random.default_rng(0), {"locked": 3, "base": 3, "floor": 3}
    by_noise = []
    for points in ((0.0, 0.0, 0.0), (0.01, 0.01, 0.01), (0.05, 0.05, 0.05), (0.05, 0.02, 0.01)):
        of_noise = []
        for n in (400, 1000):
            for uplift in (0.1, 0.5, 0.95):
                scores = {"locked": FLOOR + uplift * (BASE - FLOOR), "base": BASE, "floor": FLOOR}
                made = audits(rng, scores, dict(zip(scores, points, strict=True)), seeds, n)
                found = [
                    uplift_interval(answers, np.ones(n, int), accuracy, draws=400)
                    for _, answers in zip(range(replications), made, strict=False)
                ]
                ends = [interval for interval in found if interval is not None]
                assert len(ends) >= 0.9 * replications
                hits = sum(low <= uplift <= high for low, high in ends)
                assert plausible(hits, len(ends), 0.9), (points, n, uplift, hits)
                of_noise.append(hits / len(ends))
        by_noise.append(np.mean(of_noise))
    assert min(by_noise) >= 0.9
    assert 0.93 <= np.mean(by_noise) <= 0.97


def test_uplift_over_a_floor_without_seeds_is_covered() -> None:
    """A classical floor has one row; the same split still resamples it."""
    rng, n = np.random.default_rng(1), 400
    scores = {"locked": 0.725, "base": BASE, "floor": FLOOR}
    points, seeds = {"locked": 0.03, "base": 0.01, "floor": 0.0}, {"locked": 3, "base": 3, "floor": 1}
    made = audits(rng, scores, points, seeds, n)
    hits = 0
    for _, answers in zip(range(250), made, strict=False):
        low, high = uplift_interval(answers, np.ones(n, int), accuracy, draws=400) or (1.0, 0.0)
        hits += low <= 0.5 <= high
    assert plausible(hits, 250, 0.93)
    assert hits < 250


@pytest.mark.parametrize(("seeds", "points"), [(1, 0.0), (3, 0.0), (3, 0.03)])
def test_a_mean_score_is_covered(seeds: int, points: float) -> None:
    rng, n = np.random.default_rng(2), 400
    made = audits(rng, {"base": BASE}, {"base": points}, {"base": seeds}, n)
    found = [
        mean_interval(answers["base"], np.ones(n, int), accuracy, draws=400)
        for _, answers in zip(range(300), made, strict=False)
    ]
    hits = sum(low <= BASE <= high for low, high in filter(None, found))
    assert plausible(hits, 300, 0.93)
    assert hits < 300


def test_the_interval_of_f1_is_that_of_resampling_answers_themselves() -> None:
    rng, n = np.random.default_rng(3), 500
    truth = (rng.random(n) < 0.3).astype(int)
    answers = np.where(rng.random(n) < 0.85, truth, 1 - truth)
    rows = rng.integers(0, n, (4000, n))
    expected = np.quantile([f1(answers[pick], truth[pick]) for pick in rows], [0.025, 0.975])
    assert mean_interval(answers[None], truth, f1) == pytest.approx(tuple(expected), abs=0.01)


def test_one_seed_has_examples_noise_alone_and_is_the_bootstrap_of_the_answers() -> None:
    rng, n = np.random.default_rng(4), 300
    right = {
        name: (rng.random((1, n)) < p).astype(int) for name, p in zip("lbf", (0.7, 0.9, 0.5), strict=True)
    }
    picks = rng.integers(0, n, (4000, n))
    locked, base, floor = (right[name][0][picks].mean(1) for name in "lbf")
    expected = np.quantile((locked - floor) / (base - floor), [0.025, 0.975])
    answers = {"locked": right["l"], "base": right["b"], "floor": right["f"]}
    assert uplift_interval(answers, np.ones(n, int), accuracy) == pytest.approx(tuple(expected), abs=0.02)


def test_examples_are_resampled_for_all_targets_at_once() -> None:
    """A lock that changed no answer has uplift 1, and no split could show another."""
    rng, n = np.random.default_rng(5), 200
    base = (rng.random((1, n)) < 0.8).astype(int)
    answers = {"locked": base, "base": base, "floor": (rng.random((1, n)) < 0.3).astype(int)}
    assert uplift_interval(answers, np.ones(n, int), accuracy) == (1.0, 1.0)


def test_no_worth_no_interval() -> None:
    n = 200
    truth = np.ones(n, int)
    half, more = (np.arange(n) < 100).astype(int)[None], (np.arange(n)[::-1] < 103).astype(int)[None]
    worse = {"locked": half, "base": half, "floor": more}
    unclear = {"locked": half, "base": more, "floor": half}
    assert uplift_interval(worse, truth, accuracy) is None
    assert uplift_interval(unclear, truth, accuracy) is None  # three points of 200 examples are no worth
    assert uplift_interval({**worse, "base": np.empty((0, n), int)}, truth, accuracy) is None


def test_a_run_without_a_mistake_still_has_a_width() -> None:
    low, high = mean_interval(np.ones((1, 400), int), np.ones(400, int), accuracy) or (1.0, 1.0)
    assert 0.985 < low < 0.995
    assert high == 1.0
    assert mean_interval(np.empty((0, 400), int), np.ones(400, int), accuracy) is None


def test_a_change_is_covered_and_told_by_the_examples_on_which_it_is_one() -> None:
    """Two models that share nine tenths of their answers: paired, the interval is much narrower than either's own."""
    rng, n, hits, widths = np.random.default_rng(8), 400, 0, []
    for _ in range(300):
        before = rng.random(n) < 0.8
        other = rng.random(n) < 0.1
        after = np.where(other, rng.random(n) < 0.7, before)  # a tenth answered anew, worse by a tenth
        answers = before.astype(int), after.astype(int)
        low, high = change_interval(*answers, np.ones(n, int), accuracy, draws=400)
        hits += low <= -0.01 <= high
        widths.append(high - low)
    assert plausible(hits, 300, 0.93)
    assert hits < 300
    low, high = mean_interval(before.astype(int)[None], np.ones(n, int), accuracy) or (0.0, 0.0)
    assert np.mean(widths) < 0.6 * (high - low)


def likelihood(found: np.ndarray, truth: np.ndarray) -> float:
    return math.exp(-float((found * truth).sum()) / (1e4 * float(truth.sum())))


def test_a_likelihood_is_no_proportion_and_its_interval_is_the_bootstrap_s() -> None:
    """A lock that costs fifty passages a sixth of a point each: with two imaginary ones it would read ± six points."""
    rng, n = np.random.default_rng(9), 50
    lengths = rng.integers(150, 250, n)
    before = rng.normal(7000, 1500, n).round().astype(int)
    after = before + rng.normal(30, 5, n).round().astype(int)
    low, high = change_interval(before, after, lengths, likelihood, proportion=False)
    drawn = []
    for _ in range(2000):
        at = rng.integers(0, n, n)
        drawn.append(likelihood(after[at], lengths[at]) - likelihood(before[at], lengths[at]))
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=3e-4)
    assert high - low < 0.001
    low, high = mean_interval(before[None], lengths, likelihood, proportion=False) or (0.0, 1.0)
    assert 0.4 < low < likelihood(before, lengths) < high < 0.6


def test_a_perplexity_s_interval_covers_the_change_of_all_passages() -> None:
    rng, hits, drift = np.random.default_rng(10), 0, 0.02
    for _ in range(200):
        tokens = rng.integers(20, 60, 80)
        before = tokens * rng.normal(2, 0.5, 80)
        after = before + tokens * rng.normal(drift, 0.05, 80)
        low, high = perplexity_interval(before, after, tokens, draws=400) or (1.0, 0.0)
        hits += low <= math.expm1(drift) <= high
    assert plausible(hits, 200, 0.93)
    assert perplexity_interval(np.array([1.0]), np.array([np.nan]), np.array([3])) is None


def test_a_single_example_has_no_interval() -> None:
    """Drawn again it is itself each time: the ends would lie on each other."""
    one, other, length = np.array([[7000]]), np.array([[6900]]), np.array([200])
    assert mean_interval(one, length, likelihood, proportion=False) is None
    assert mean_interval(np.array([[1]]), np.array([1]), accuracy) is None
    assert change_interval(one[0], other[0], length, likelihood, proportion=False) is None
    assert perplexity_interval(np.array([9.0]), np.array([9.5]), np.array([3])) is None
    answers = {"locked": one, "base": other, "floor": np.array([[9000]])}
    assert uplift_interval(answers, length, likelihood) is None


# -- slowdown --------------------------------------------------------------------------------------------


def reached(rng: np.random.Generator, middle: float, spread: float, spacing: float) -> Float[np.ndarray, 3]:
    """Steps of three seeds, log-normal; seen at the next evaluation, a factor of ``spacing`` apart."""
    logs = rng.normal(middle, spread, 3)
    return np.exp(logs if spacing == 1 else np.ceil(logs / np.log(spacing)) * np.log(spacing))


def test_slowdown_is_covered_with_three_seeds() -> None:
    rng = np.random.default_rng(6)
    pooled = []
    for spreads in ((0.05, 0.05), (0.3, 0.3), (0.2, 0.6)):
        hits = 0
        for _ in range(500):
            middle, slowdown = rng.uniform(3, 4), rng.uniform(1, 8)
            base = reached(rng, middle, spreads[0], 1.0)
            locked = reached(rng, middle + np.log(slowdown), spreads[1], 1.0)
            low, high = slowdown_interval(together(*base), together(*locked), spacing=1.0, draws=1000) or (
                None,
                None,
            )
            assert low is not None
            assert high is not None
            hits += low <= slowdown <= high
        assert plausible(hits, 500, 0.93)
        pooled.append(hits / 500)
    assert 0.93 <= np.mean(pooled) <= 0.97


def together(*seeds: float | None, budget: float = 1e9) -> Reached:
    """Runs whose geometric mean is quoted, where all of them got there."""
    there = [seed for seed in seeds if seed is not None]
    return Reached(float(np.exp(np.log(there).mean())) if len(there) == len(seeds) else None, seeds, budget)


def test_slowdown_between_evaluations_that_double_is_not_overstated() -> None:
    """Where all seeds fall into one gap their spread is nought, but not what is known."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        middle, slowdown = rng.uniform(3, 4), rng.uniform(1, 8)
        base, locked = (reached(rng, m, 0.02, 2.0) for m in (middle, middle + np.log(slowdown)))
        low, high = slowdown_interval(together(*base), together(*locked), draws=1000) or (None, None)
        assert low is not None
        assert high is not None
        hits += low <= slowdown <= high
    assert plausible(hits, 400, 0.93)
    assert slowdown_interval(together(8, 8, 8), together(32, 32, 32)) == (
        pytest.approx(2.6, abs=0.4),
        pytest.approx(6.2, abs=0.8),
    )


def test_censored_ends_are_open() -> None:
    def of(base: Reached, locked: Reached) -> tuple[float | None, float | None]:
        return slowdown_interval(base, locked) or (0.0, 0.0)

    never = together(None, None, None, budget=64)
    low, high = of(together(4, 4, 4), never)
    assert high is None
    assert low is not None
    assert 8 < low < 16  # at least what 64 steps over 4 would give
    low, high = of(together(4, None, 8, budget=64), together(32, 32, 64))
    assert low is None
    assert high is not None
    assert slowdown_interval(together(4, None, 8, budget=64), together(None, 32, 64, budget=64)) is None
    assert slowdown_interval(together(4), together(8, 8)) is None
    assert slowdown_interval(Reached(None, [], 64), Reached(None, [], 64)) is None


def test_the_interval_holds_what_is_quoted() -> None:
    """The mean of five curves is there only with the slowest of them."""
    low, high = slowdown_interval(Reached(1, [1] * 5, 64), Reached(64, [1, 1, 1, 1, 64], 64)) or (None, None)
    assert low is not None
    assert high is not None
    assert low < 64 < high
