"""Planted fakes: each must raise its flag in a real audit, and the sound base none of theirs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from speclock import wrap
from speclock.attacks.balance import Balance
from speclock.attacks.base import Attack
from speclock.attacks.finetune import FineTune
from speclock.attacks.fuse import Fuse
from speclock.audits.record import Record
from speclock.audits.run import audit
from speclock.audits.suite import Suite
from speclock.models import Model
from speclock.models.cnn_mlp import CnnMlp
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.training import train

RATES = (1e-4, 1e-3, 1e-2)
PLAIN = tuple(FineTune(lr=lr, batch_size=32) for lr in RATES)


def judged(
    base: Model, fake: Model, retain: Task, attack: Task, *attacks: Attack, steps: int = 60
) -> tuple[Record, dict[str, str]]:
    """An audit without a lock card, and what its flags say."""
    suite = Suite(name="toy", version=1, steps=steps, attacks=(*PLAIN, *attacks))
    record = audit(base=base, locked=fake, retain=retain, attack=attack, suite=suite)
    return record, {flag["name"]: flag["why"] for flag in record.flags}


SUSPICIONS = {
    "utility_broken", "gradients_blocked", "repair_succeeds", "knob_succeeds", "only_in_half_precision",
    "only_divergence", "edge_of_grid", "attack_fails_on_base",
}  # fmt: skip


def test_no_lock_raises_none_of_them(base: Model, digits: Task, silhouettes: Task) -> None:
    turned = (*_each(Balance), *(FineTune(lr=lr, batch_size=32, dropout=False) for lr in RATES))
    record, flags = judged(base, base.copy(), digits, silhouettes, *turned)
    assert not SUSPICIONS & set(flags), flags
    assert record.summary["uplift"] == pytest.approx(1, abs=0.1)


def test_a_model_broken_before_the_attack(base: Model, digits: Task, silhouettes: Task) -> None:
    fake = base.copy()
    nn.init.normal_(fake.module.mlp[2].weight)
    _, flags = judged(base, fake, digits, silhouettes)
    assert "utility_broken" in flags


class Detached(CnnMlp):
    """Answers as its base does; nothing behind its head hears of a gradient."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.mlp[:-1](self.cnn(pixel_values))
        return self.mlp[-1](hidden.detach())


def test_gradients_blocked(base: Model, digits: Task, silhouettes: Task) -> None:
    fake = base.copy()
    fake.module.__class__ = Detached
    record, flags = judged(base, fake, digits, silhouettes)
    assert "gradients_blocked" in flags
    blocked = record.locked["blocked_gradients"]
    assert "cnn.0.weight" in blocked
    assert "mlp.6.weight" not in blocked
    assert record.summary["best_locked"] < record.summary["best_base"] - 0.05, "which is why it must be said"


def test_a_rescaling_that_balancing_undoes(base: Model, digits: Task, silhouettes: Task) -> None:
    fake = base.copy()
    with torch.no_grad():
        for up, down in ((0, 2), (4, 6)):
            fake.module.mlp[up].weight.mul_(300)
            fake.module.mlp[up].bias.mul_(300)
            fake.module.mlp[down].weight.div_(300)
    record, flags = judged(base, fake, digits, silhouettes, *_each(Balance))
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.01)
    assert "balance" in flags["repair_succeeds"]


def test_a_compensated_pair_that_fusing_undoes(base: Model, digits: Task, silhouettes: Task) -> None:
    from tests.attacks.test_attacks import compensated

    record, flags = judged(base, compensated(base, 3000.0), digits, silhouettes, *_each(Fuse))
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.02)
    assert "fuse" in flags["repair_succeeds"]


class Normed(nn.Module):
    """A layer norm and a dropout before the layer that is to be raised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.dropout = nn.Linear(3 * 28 * 28, 64), nn.LayerNorm(64), nn.Dropout(0.1)
        self.raised, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor) -> Tensor:
        z = self.dropout(self.norm(self.embed(pixel_values.flatten(1))))
        return self.out(torch.relu(self.raised(z)))


def test_the_norm_null_fake_falls_to_a_knob(digits: Task, silhouettes: Task) -> None:
    """Behind a layer norm, v ∝ 1/γ is constant on every input: raising σ₁ along it changes no answer."""
    torch.manual_seed(0)
    base = wrap(Normed(), modality="image", labels=digits.labels)
    train(base, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=150, batch_size=32))
    fake = base.copy()
    W, norm = fake.module.raised, fake.module.norm
    with torch.no_grad():
        v = nn.functional.normalize(1 / norm.weight, dim=0)
        u = nn.functional.normalize(torch.ones(64), dim=0)
        raise_by = 100 * torch.linalg.matrix_norm(W.weight, 2) * torch.outer(u, v)
        W.weight += raise_by
        W.bias -= raise_by @ norm.bias
    off = tuple(FineTune(lr=lr, batch_size=32, dropout=False) for lr in RATES)
    record, flags = judged(base, fake, digits, silhouettes, *off)
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.01)
    assert "no dropout" in flags["knob_succeeds"]
    assert "no dropout" in record.summary["strongest_attack"]
    usual = max(
        r.best for r in record.runs if r.target == "locked" and r.config["dropout"] and r.best is not None
    )
    assert usual < silhouettes.chance + 0.1, "with dropout the attacker stays at chance"
    assert record.summary["best_locked"] > usual + 0.2


def test_a_grid_that_ends_below_the_best_rate(base: Model, digits: Task, silhouettes: Task) -> None:
    suite = Suite(
        name="low",
        version=1,
        steps=60,
        attacks=tuple(FineTune(lr=lr, batch_size=32) for lr in (1e-5, 3e-5, 1e-4)),
    )
    record = audit(base=base, locked=base.copy(), retain=digits, attack=silhouettes, suite=suite)
    assert "highest rate tried" in {flag["name"]: flag["why"] for flag in record.flags}["edge_of_grid"]


def test_a_budget_too_small_for_the_base(base: Model, digits: Task, silhouettes: Task) -> None:
    _, flags = judged(base, base.copy(), digits, silhouettes, steps=4)
    assert {"attack_fails_on_base", "budget_too_small"} & set(flags)


class Fragile(CnnMlp):
    """One plus a little is one in bf16, and its logarithm's inverse infinite."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.mlp[0](self.cnn(pixel_values))
        little = torch.ones_like(hidden) + 1e-3
        return self.mlp[1:](hidden * (math.log1p(1e-3) / little.log()))


def test_divergence_in_half_precision_alone(base: Model, digits: Task, silhouettes: Task) -> None:
    fake = base.copy()
    fake.module.__class__ = Fragile
    half = tuple(FineTune(lr=lr, batch_size=32, precision="bf16") for lr in RATES)
    record, flags = judged(base, fake, digits, silhouettes, *half)
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.01)
    assert "bf16" in flags["only_in_half_precision"]


def test_a_card_whose_sigma_had_not_converged(base: Model, digits: Task, silhouettes: Task) -> None:
    import speclock
    from speclock.locks.base import Locked

    locked = speclock.lock(base, digits, speclock.Rescale(factor=2.0, top_k=1, max_utility_drop=1.0))
    suite = Suite(name="one", version=1, steps=4, attacks=PLAIN[:1])
    for card, told in ((locked.card, False), ({**locked.card, "strength_locked": 3.0}, True)):
        record = audit(
            base=base,
            locked=Locked(locked.model, copy.deepcopy(card)),
            retain=digits,
            attack=silhouettes,
            suite=suite,
        )
        assert ("sigma_unconverged" in {flag["name"] for flag in record.flags}) is told


def _each(attack: type[FineTune]) -> tuple[FineTune, ...]:
    return tuple(attack(lr=lr, batch_size=32) for lr in RATES)
