"""Healing first: what it trains on, and that it comes on top of the budget."""

from __future__ import annotations

import pytest
import torch

from speclock.attacks import ATTACKS
from speclock.attacks.base import InapplicableError, Scene
from speclock.models import Model
from speclock.tasks.base import Task


def test_healing_brings_back_a_forgotten_retain_task(base: Model, digits: Task, silhouettes: Task) -> None:
    broken = base.copy()
    broken.module.mlp[4].load_state_dict(base.scratch(1).module.mlp[4].state_dict())  # type: ignore[union-attr, index]
    attack = ATTACKS["heal"](lr=1e-3, batch_size=32, healing=60)
    outcome = attack(broken, silhouettes, 1, retain=digits).outcome
    assert outcome.utility_after > digits.score(broken, "validation") + 0.2
    assert [step for step, _ in outcome.curve] == [61]
    assert outcome.passes == 61


def test_a_head_for_the_retain_task_is_healed_in_place(base: Model, digits: Task) -> None:
    attack = ATTACKS["heal"](lr=1e-3, healing=3)
    model = base.copy()
    module = model.module
    list(attack.trajectory(model, Scene(base, digits, 2, retain=digits)))
    assert model.module is module


def test_a_fresh_head_is_not_healed(base: Model, digits: Task, silhouettes: Task) -> None:
    """Every target starts on the attack task from the same head, healed before or not."""
    model = base.with_head(silhouettes.labels, 0)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    healing = ATTACKS["heal"](lr=1e-3, healing=3)._healed_(model, Scene(base, silhouettes, 2, retain=digits))
    assert [step.index for step in healing] == [0, 1, 2, 3]
    after = model.module.state_dict()
    assert torch.equal(after["mlp.6.weight"], before["mlp.6.weight"])
    assert not torch.equal(after["mlp.4.weight"], before["mlp.4.weight"])


def test_a_retain_task_that_the_head_does_not_do_is_refused(base: Model, digits: Task) -> None:
    other = digits.keep(digits.labels[:5])
    with pytest.raises(InapplicableError, match="does not do"):
        ATTACKS["heal"]().prepare_(base.copy(), Scene(base, digits, 10, retain=other))
