"""The contract of every attack: one row each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speclock.attacks import ATTACKS
from speclock.attacks.base import Attack, Status, evaluation_steps
from speclock.models import Model, fingerprint
from speclock.spectra import weight_matrices
from speclock.tasks.base import Task

STEPS = 120
SETTINGS: dict[str, dict[str, Any]] = {
    "finetune": {"optimizer": "sgd-momentum", "lr": 3e-2},
    "clip": {"optimizer": "adamw", "lr": 1e-3, "rank": 2},
}


def test_every_attack_is_in_the_contract() -> None:
    assert set(SETTINGS) == set(ATTACKS)


@pytest.fixture(scope="module")
def reference(base: Model, silhouettes: Task) -> float:
    """What AdamW reaches on the unlocked toy model."""
    best = ATTACKS["finetune"](optimizer="adamw", lr=1e-3, batch_size=32)(
        base, silhouettes, STEPS
    ).outcome.best
    assert best > silhouettes.chance + 0.3
    return best


@pytest.fixture(params=sorted(SETTINGS))
def attack(request: pytest.FixtureRequest) -> Attack:
    return ATTACKS[request.param](batch_size=32, **SETTINGS[request.param])


def test_contract(attack: Attack, base: Model, digits: Task, silhouettes: Task, reference: float) -> None:
    before = fingerprint(base)
    outcome = attack(base, silhouettes, STEPS, retain=digits).outcome
    assert fingerprint(base) == before, "an attack never changes the model it was handed"
    assert outcome.status is Status.OK
    assert outcome.best >= 0.9 * reference, "an attack succeeds on an unlocked model"
    assert outcome.best == max(score for _, score in outcome.curve)
    assert [step for step, _ in outcome.curve] == evaluation_steps(STEPS, 8)[1:], "every budget is scored"
    assert 0 <= outcome.utility_after <= 1
    assert attack(base, silhouettes, STEPS).outcome.curve == outcome.curve, "same seed, same result"


def test_every_target_starts_from_the_same_head(base: Model, silhouettes: Task) -> None:
    starts = []
    for model in (base, base.scratch(5)):
        attacked = ATTACKS["finetune"](optimizer="sgd", lr=1e-12)(model, silhouettes, 1)
        starts.append(attacked.model.module.state_dict()["mlp.6.weight"])
    torch.testing.assert_close(*starts, rtol=0, atol=1e-8)


def test_divergence_has_no_score(base: Model, silhouettes: Task) -> None:
    outcome = ATTACKS["finetune"](optimizer="sgd", lr=1e30, clip=None)(base, silhouettes, 20).outcome
    assert outcome.status is Status.DIVERGED
    assert outcome.best is None
    assert outcome.reason


def test_a_watch_ends_the_run(base: Model, silhouettes: Task) -> None:
    outcome = ATTACKS["finetune"]()(base, silhouettes, 40, watch=lambda step, score: step >= 20).outcome
    assert (outcome.status, outcome.pruned_at, outcome.curve[-1][0]) == (Status.OK, 20, 20)
    assert outcome.utility_after is None


def test_a_task_with_the_models_own_labels_keeps_its_head(base: Model, digits: Task) -> None:
    outcome = ATTACKS["finetune"](lr=1e-5)(base, digits, 1).outcome
    assert outcome.curve[0] == (0, digits.score(base.module, base))


def test_clip_brings_the_top_values_down_to_the_next(base: Model) -> None:
    model = base.copy()
    ATTACKS["clip"](rank=3).prepare_(model)
    for before, after in zip(weight_matrices(base.module), weight_matrices(model.module), strict=True):
        sigma = torch.linalg.svdvals(before.matrix.detach().double())
        if len(sigma) > 3:
            sigma[:3] = sigma[3]
        torch.testing.assert_close(
            torch.linalg.svdvals(after.matrix.detach().double()), sigma, rtol=1e-4, atol=1e-5
        )
