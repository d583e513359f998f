"""What a lock costs those who use the model: scores, agreement with the base and calibration, as it is and under mild
shift."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from speclock.audits.intervals import change_interval, mean_interval, perplexity_interval
from speclock.models import Model
from speclock.tasks.augment import SHIFTS, shifted
from speclock.tasks.base import NO_ANSWER, Task, is_proportion
from speclock.tasks.causal_lm import CausalLM

BINS = 15
"""Of the calibration error."""


def cost(base: Model, locked: Model, retain: Task) -> dict[str, dict[str, Any]]:
    """By kind of input, the test split as it is among them: score and calibration error of both, and their agreement.

    Labels carry over to the shifted inputs: other windows of the same texts and typing errors, or noise and small
    movements of images. Of continuations there is the test split alone, with the perplexity of both. JSON-able.
    """
    if isinstance(retain, CausalLM):
        return {"test split": _of_continuations(base, locked, retain)}
    rows = {}
    for kind in ("test split", *SHIFTS[retain.modality]):
        task = retain if kind == "test split" else shifted(retain, kind)
        truth = task.test.labels
        (one, sure), (other, other_sure) = (task.confidences(m) for m in (base, locked))
        rows[kind] = {
            "examples": len(truth),
            **_scores(task, one, other),
            "agreement": float(((one == other) & (one != NO_ANSWER)).mean()),
            "calibration_base": calibration_error(sure, one == truth),
            "calibration_locked": calibration_error(other_sure, other == truth),
        }
    return rows


def _of_continuations(base: Model, locked: Model, retain: CausalLM) -> dict[str, Any]:
    models = {"base": base, "locked": locked}
    row = {
        "examples": len(retain.test),
        **_scores(retain, *(retain.answers(model) for model in models.values())),
    }
    nats = {}
    for name, model in models.items():
        nats[name], tokens = retain.nats(model, retain.rows(retain.test))
        perplexity = math.exp(float(nats[name].sum()) / int(tokens.sum()))
        row[f"perplexity_{name}"] = perplexity if math.isfinite(perplexity) else None
    row["interval_perplexity"] = perplexity_interval(nats["base"], nats["locked"], tokens)
    return row


def _scores(task: Task, base: Int[np.ndarray, " n"], locked: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """The scores of both models' answers to the test split, with 95% intervals over examples; that of the change is
    paired, the examples being the same."""
    truth, proportion = task.test.labels, is_proportion(task.metric)
    return {
        **{f"score_{name}": task.measure(of, truth) for name, of in (("base", base), ("locked", locked))},
        **{
            f"interval_{name}": mean_interval(of[None], truth, task.measure, proportion=proportion)
            for name, of in (("base", base), ("locked", locked))
        },
        "interval_change": change_interval(base, locked, truth, task.measure, proportion=proportion),
    }


def calibration_error(sure: Float[np.ndarray, " n"], right: Int[np.ndarray, " n"]) -> float:
    """Expected calibration error: Σ |share right − mean confidence| over bins of confidence, by their share of examples
    [Guo et al. 2017, §2].

    >>> calibration_error(np.array([0.75] * 4), np.array([1, 1, 1, 0]))
    0.0
    """
    which = np.minimum((sure * BINS).astype(int), BINS - 1)
    return float(
        sum(
            abs(right[which == b].mean() - sure[which == b].mean()) * (which == b).mean()
            for b in np.unique(which)
        )
    )
