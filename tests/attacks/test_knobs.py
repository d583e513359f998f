"""Knobs of fine-tuning and what they need: rates, precision, packages; and steps before the first label."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from speclock import models
from speclock.attacks import ATTACKS
from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.finetune import embedding_names, spectral_rates
from speclock.errors import InputError
from speclock.models import Model
from speclock.tasks.base import Task


def moved(attack_fields: dict[str, object], base: Model, task: Task) -> dict[str, torch.Tensor]:
    after = ATTACKS["finetune"](optimizer="sgd", clip=None, lr=1e-3, **attack_fields)(base, task, 1)
    start, end = base.module.state_dict(), after.model.module.state_dict()
    return {name: end[name] - start[name] for name in start}


def test_an_embedding_has_a_rate_of_its_own(base: Model, digits: Task) -> None:
    plain, slow = moved({}, base, digits), moved({"embedding_rate": 0.25}, base, digits)
    for name in plain:
        factor = 0.25 if name.startswith("cnn.0.") else 1.0
        torch.testing.assert_close(slow[name], factor * plain[name], rtol=1e-2, atol=1e-7)


def test_its_rate_multiplies_that_of_the_layer(base: Model) -> None:
    attack = ATTACKS["finetune"](layer_rates="spectral", embedding_rate=3.0)
    rates, spectral = attack._rates(base.module), spectral_rates(base.module)
    assert rates.pop("cnn.0.bias") == 3.0
    assert rates.pop("cnn.0.weight") == pytest.approx(3 * spectral.pop("cnn.0.weight"))
    assert rates == spectral


def test_token_embeddings_come_before_convolutions() -> None:
    module = nn.ModuleDict(
        {"conv": nn.Conv1d(4, 4, 3), "tokens": nn.Embedding(9, 4), "head": nn.Linear(4, 2)}
    )
    assert embedding_names(module) == ["tokens.weight"]
    assert embedding_names(nn.Sequential(nn.Linear(4, 2))) == []
    model = models.wrap(nn.Sequential(nn.Linear(4, 2)), modality="image", labels=("a", "b"))
    with pytest.raises(InapplicableError, match="no embedding"):
        ATTACKS["finetune"](embedding_rate=0.1).prepare_(model, Scene(model, None, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("has", [True, False])
def test_bf16_runs_only_where_the_processor_has_it(
    base: Model, digits: Task, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speclock.attacks.finetune.has_bf16", lambda: has)
    attack, scene = ATTACKS["finetune"](precision="bf16"), Scene(base, digits, 1)
    if has:
        model = base.copy()
        attack.prepare_(model, scene)
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.module.parameters(), base.module.parameters(), strict=True)
        )
    else:
        with pytest.raises(InapplicableError, match="no bf16 arithmetic"):
            attack.prepare_(base.copy(), scene)


@pytest.mark.parametrize(
    ("name", "fields", "package"),
    [
        ("lora", {}, "peft"),
        ("probe", {}, "sklearn"),
        ("finetune", {"optimizer": "lion"}, "pytorch_optimizer"),
        ("clip", {"optimizer": "kron"}, "heavyball"),
    ],
)
def test_a_missing_package_is_named_before_anything_runs(
    name: str, fields: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An adapter that has been imported already would not ask for its package again.
    monkeypatch.delitem(sys.modules, "speclock.optimizers.adapters", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match="pip install"):
        ATTACKS[name](**fields).requires()


@pytest.mark.parametrize(
    ("name", "fields", "first"),
    [
        ("finetune", {}, 0),
        ("clip", {"heal": 5}, 5),
        ("distill", {"teaching": 0.5}, 6),
        ("heal", {"healing": 4}, 4),
        ("kick", {"kicks": 3}, 0),
    ],
)
def test_steps_without_a_label_come_on_top_of_the_budget(
    name: str, fields: dict[str, object], first: int, base: Model, digits: Task, silhouettes: Task
) -> None:
    attack = ATTACKS[name](**fields)
    assert attack.unlabelled(12) == first
    model = base.with_head(silhouettes.labels, 0)
    scene = Scene(base, silhouettes, 12, retain=digits)
    attack.prepare_(model, scene)
    steps = [step.index for step in attack.trajectory(model, scene)]
    assert steps == list(range(first + 12 + 1))
