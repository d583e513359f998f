"""Confidence intervals of scores, uplift and slowdown from a handful of seeds and one test split.

Two kinds of chance enter a score: which examples the test split holds, and which seeds the runs had. Examples are
resampled with replacement, the same ones for every target, since all targets answer the same split [paired
bootstrap; Efron & Tibshirani 1993, §8]. Seeds are too few to resample: three of them give a percentile bootstrap
two thirds of the spread and no tails. Each target's mean over its S seeds is moved instead by N(0, τ²/S), where τ²,
the variance between seeds, is itself drawn:

    τ² ~ ((S − 1)·v + w) / χ²_S

v is the target's own variance between seeds, less the part of it that is the examples' noise and is resampled
already; w is the mean of the other targets' v, which counts as one more degree of freedom [moderated variance; Smyth
2004]. Of a single target τ² ~ (S − 1)·v / χ²_{S−1}, Student's t with S − 1 degrees. Seeds of different targets are
taken to be independent; one that has one seed has no noise between seeds that could be told, and gets none.

A single example has no interval: drawn again it is the same one every time.

The simulation in ``tests/audits/test_intervals.py`` says what the intervals cover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Measure = Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " n"]], float]
"""A metric in [0, 1] of answers and of those that would be right, such as ``task.measure``."""

DRAWS = 4000
"""Draws of an interval: its ends vary by a thirtieth of its width from one set of draws to another."""


def uplift_interval(
    answers: Mapping[str, Int[np.ndarray, "seeds n"]],
    truth: Int[np.ndarray, " n"],
    measure: Measure,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of (locked − floor) / (base − floor), from what each target's runs answered to the test examples.

    ``answers`` has a row a seed under ``locked``, ``base`` and ``floor``; of a floor without chance in it, one row.
    A seed that diverged comes with the floor's answers. Excess is the same with the student's as the floor.

    None where the base is no better than the floor, or where that cannot be told at this ``level``: of a ratio
    whose denominator may be zero the confidence set has no ends [Fieller 1954]. The same draws every time.

    >>> right, wrong = np.ones((1, 500), dtype=int), np.zeros((1, 500), dtype=int)
    >>> half = (np.arange(500) % 2)[None]
    >>> accuracy = lambda answers, truth: float((answers == truth).mean())
    >>> low, high = uplift_interval({"locked": half, "base": right, "floor": wrong}, right[0], accuracy)
    >>> round(low, 1), round(high, 1)
    (0.5, 0.5)
    """
    rows = [np.asarray(answers[name]) for name in ("locked", "base", "floor")]
    if len(truth) < 2 or any(len(of_target) == 0 for of_target in rows):
        return None
    values = [_per_example(of_target, truth, measure) for of_target in rows]
    if values[1].mean() <= values[2].mean():
        return None
    locked, base, floor = _means(values, draws, np.random.default_rng(0)).T
    worth = base - floor
    if (worth <= 0).mean() >= (1 - level) / 2:
        return None
    # In the few draws without worth the ratio is past every bound, on the side of its numerator.
    ratio = np.where(locked > floor, np.inf, -np.inf)
    np.divide(locked - floor, worth, out=ratio, where=worth > 0)
    return _ends(ratio, level)


def mean_interval(
    answers: Int[np.ndarray, "seeds n"],
    truth: Int[np.ndarray, " n"],
    measure: Measure,
    *,
    proportion: bool = True,
    draws: int = DRAWS,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of a target's mean score, within [0, 1]; None without a single row of answers, or of a single example.

    Of a ``proportion`` (an accuracy, an F1) one example of value 0 and one of value 1 are thought in addition, so that
    a run without a mistake does not get an interval without a width, as resampling alone would give it. A likelihood
    is none: no passage lies anywhere near those ends.
    """
    rows = np.asarray(answers)
    if len(rows) == 0 or len(truth) < 2:
        return None
    values = _per_example(rows, truth, measure)
    if proportion:
        values = np.hstack([values, np.zeros((len(rows), 1)), np.ones((len(rows), 1))])
    low, high = _ends(_means([values], draws, np.random.default_rng(0))[:, 0], level)
    return max(0.0, low), min(1.0, high)


def change_interval(
    before: Int[np.ndarray, " n"],
    after: Int[np.ndarray, " n"],
    truth: Int[np.ndarray, " n"],
    measure: Measure,
    *,
    proportion: bool = True,
    draws: int = DRAWS,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of how much better one model's answers are than another's to the same examples, negative for worse.
    None of a single example.

    Examples on which the two do alike say nothing, so it is narrower than either score's own. Of a ``proportion`` two
    more are thought on which one is right and the other wrong, one each way, as in :func:`mean_interval`.

    >>> truth = np.ones(1000, dtype=int)
    >>> low, high = change_interval(truth, truth, truth, lambda answers, truth: float((answers == truth).mean()))
    >>> -0.005 < low < 0 < high < 0.005
    True
    """
    if len(truth) < 2:
        return None
    values = _per_example(np.stack([before, after]), truth, measure)
    ends = ((1, 0), (0, 1)) if proportion else ((), ())
    padded = [np.hstack([of[None], np.array([more])]) for of, more in zip(values, ends, strict=True)]
    earlier, later = _means(padded, draws, np.random.default_rng(0)).T
    return _ends(later - earlier, level)


def perplexity_interval(
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    *,
    draws: int = DRAWS,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of by how much a model's perplexity is above another's, as a share of it: 0.02 is two percent.

    ``before`` and ``after`` are nats of the same rows, drawn as pairs. None of a single row, or where one is not
    finite.
    """
    n = len(tokens)
    if n < 2 or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    return _ends(np.expm1((drawn @ (after - before)) / (drawn @ tokens)), level)


class Reached(NamedTuple):
    """When a target's runs were at a score."""

    quoted: float | None
    """Steps that are quoted of them together; None where they did not get there together within the budget."""
    seeds: Sequence[float | None]
    """Steps of each seed by itself; None where it did not get there."""
    budget: float
    """Steps after which they ended."""


def slowdown_interval(
    base: Reached,
    locked: Reached,
    *,
    spacing: float = 2.0,
    draws: int = DRAWS,
    level: float = 0.95,
) -> tuple[float | None, float | None] | None:
    """Interval of the steps that the locked model takes to the target, over those of the base.

    It lies about the ratio of what is quoted, on a logarithmic scale, as steps are spread there, and is as wide as the
    seeds by themselves differ. Evaluations lie a factor of ``spacing`` apart, so a run may have been there by as much
    earlier; since seeds tend to fall into the same gap, this does not average out over them, and is drawn once a
    target.

    An unreached target has no upper end (None) on the locked model, and on the base no lower one; the other end is
    that of runs which got there just at the end of the budget. None where a target has fewer than two seeds, or
    where neither end can be told.
    """
    if min(len(base.seeds), len(locked.seeds)) < 2:
        return None
    rng = np.random.default_rng(0)
    seeds, spreads, means = [], [], []
    for quoted, reached, budget in (base, locked):
        logs = np.log([budget if step is None else step for step in reached])
        seeds.append(len(logs))
        spreads.append(float(logs.var(ddof=1)))
        means.append(float(np.log(budget if quoted is None else quoted)))
    censored = [it.quoted is None or None in it.seeds for it in (base, locked)]
    # Runs cut off at the budget show less of a spread than they have.
    spreads = [max(spreads) if cut else spread for cut, spread in zip(censored, spreads, strict=True)]
    gap = np.log(spacing) * (rng.random(draws) - rng.random(draws))
    of_base, of_locked = _between_seeds(spreads, seeds, draws, rng)
    low, high = _ends(np.exp(means[1] - means[0] + of_locked - of_base + gap), level)
    ends = (None if censored[0] else low, None if censored[1] else high)
    return None if ends == (None, None) else ends


# -- the two kinds of chance -----------------------------------------------------------------------------


def _per_example(
    rows: Int[np.ndarray, "seeds n"], truth: Int[np.ndarray, " n"], measure: Measure
) -> Float[np.ndarray, "seeds n"]:
    """What each example adds to the measure: the jackknife's pseudo-values, n·m − (n − 1)·m₋ᵢ, about their mean m.

    Of an accuracy they are 1 and 0, as right and wrong; of a metric that is no mean, such as F1, its linear part,
    which is what counts over hundreds of examples [Efron & Tibshirani 1993, §11.5]. Examples with the same answer
    and truth have the same one, so the metric is called a few times a row and not n times.
    """
    n = len(truth)
    values = np.empty(rows.shape)
    for row, out in zip(rows, values, strict=True):
        whole = measure(row, truth)
        kinds = row * (truth.max() + 1) + truth
        _, first, which = np.unique(kinds, return_index=True, return_inverse=True)
        without = [measure(np.delete(row, i), np.delete(truth, i)) for i in first]
        pseudo = (n * whole - (n - 1) * np.array(without))[which]
        out[:] = pseudo - pseudo.mean() + whole
    return values


def _means(
    values: Sequence[Float[np.ndarray, "seeds n"]], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws targets"]:
    """Each target's mean over seeds and examples, drawn with examples resampled and seeds' noise added."""
    over_seeds = np.stack([of_target.mean(0) for of_target in values], axis=1)
    n = len(over_seeds)
    # Examples on which all targets did alike are interchangeable: a multinomial over a few dozen kinds of them is
    # the bootstrap itself, whatever n. Rounding only makes equal what differs by the order of a sum.
    kinds, counts = np.unique(over_seeds.round(9), axis=0, return_counts=True)
    means = rng.multinomial(n, counts / n, size=draws) @ kinds / n
    noise = _between_seeds(
        [_seed_variance(of_target) for of_target in values], list(map(len, values)), draws, rng
    )
    return means + noise.T


def _seed_variance(values: Float[np.ndarray, "seeds n"]) -> float:
    """The variance of a seed's mean over all examples that there are: what n of them show, less their own noise.

    Seeds also differ by which examples of the split each gets wrong; the mean square of that interaction, over n,
    is part of the variance of their means, and of the resampled examples' [two-way analysis of variance].
    """
    seeds, n = values.shape
    if seeds < 2 or n < 2:
        return 0.0
    means = values.mean(1)
    rest = values - values.mean(0) - means[:, None] + means.mean()
    interaction = (rest**2).sum() / ((seeds - 1) * (n - 1))
    return max(0.0, float(means.var(ddof=1) - interaction / n))


def _between_seeds(
    variances: Sequence[float], seeds: Sequence[int], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "targets draws"]:
    """Draws of the noise of each target's mean over its seeds (see the module's equation)."""
    several = [i for i, count in enumerate(seeds) if count > 1]
    noise = np.zeros((len(seeds), draws))
    for i in several:
        others = [variances[j] for j in several if j != i]
        scale, freedom = (seeds[i] - 1) * variances[i], seeds[i] - 1
        if others:
            scale, freedom = scale + float(np.mean(others)), freedom + 1
        between = scale / rng.chisquare(freedom, draws)
        noise[i] = rng.standard_normal(draws) * np.sqrt(between / seeds[i])
    return noise


def _ends(drawn: Float[np.ndarray, " draws"], level: float) -> tuple[float, float]:
    """The middle ``level`` of the draws; its ends are draws themselves, so that infinite ones can lie outside."""
    low: Any = np.quantile(drawn, (1 - level) / 2, method="higher")
    high: Any = np.quantile(drawn, (1 + level) / 2, method="lower")
    return float(low), float(high)
