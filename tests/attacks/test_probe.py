"""Linear probes: what they choose, what they leave alone, and which views they see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from speclock.attacks import ATTACKS
from speclock.attacks.base import InapplicableError
from speclock.attacks.probe import fitted
from speclock.models import Model
from speclock.models.probing import layer_features
from speclock.tasks.base import Task


def blobs(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = rng.normal(size=(n, 6)) + 4 * np.eye(classes, 6)[labels]
    return (100 + 30 * x).astype(np.float32), labels


def accuracy(answers: np.ndarray, truth: np.ndarray) -> float:
    return float((answers == truth).mean())


def test_the_view_is_chosen_by_the_tasks_own_metric() -> None:
    """F1 of label 0, which a base's head may have first: a view that knows it beats one that finds label 1."""
    rng = np.random.default_rng(0)
    labels = (np.arange(60) >= 12).astype(int)  # label 0 is rare
    rare = labels[:, None] * 3.0 + rng.normal(size=(60, 1))
    never = np.zeros((60, 1)) + 0.01 * rng.normal(size=(60, 1))

    def f1_of_0(answers: np.ndarray, truth: np.ndarray) -> float:
        hits = ((answers == 0) & (truth == 0)).sum()
        return 2 * hits / max(1, (answers == 0).sum() + (truth == 0).sum())

    asked = []

    def noted(answers: np.ndarray, truth: np.ndarray) -> float:
        asked.append(1)
        return f1_of_0(answers, truth)

    best = fitted({"never": never, "rare": rare}, labels, 2, noted, 0)
    assert best.view == "rare"
    assert asked


@pytest.mark.parametrize("classes", [2, 3])
def test_the_view_that_knows_is_chosen_and_read(classes: int) -> None:
    x, labels = blobs(60, classes)
    noise = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    best = fitted({"noise": noise, "signal": x}, labels, classes, accuracy, 0)
    assert best.view == "signal"
    fresh, truth = blobs(600, classes, seed=2)
    logits = fresh @ best.weight.T + best.bias
    assert (logits.argmax(1) == truth).mean() > 0.97
    own = torch.from_numpy(x @ best.weight.T + best.bias)
    assert nn.functional.cross_entropy(own, torch.from_numpy(labels)).item() == pytest.approx(
        best.loss, rel=1e-3
    )


def test_a_label_without_examples_is_never_answered() -> None:
    x, labels = blobs(40, 2)
    best = fitted({"x": x}, labels * 2, 4, accuracy, 0)
    answers = (x @ best.weight.T + best.bias).argmax(1)
    assert set(answers) == {0, 2}
    with pytest.raises(InapplicableError, match="two training examples"):
        fitted({"x": x[:5]}, np.array([0, 1, 1, 1, 1]), 2, accuracy, 0)


def test_a_broken_last_layer_does_not_hide_what_the_layers_before_it_know(
    base: Model, silhouettes: Task
) -> None:
    """Curvature, dead units and overflow are friction for gradients; a probe takes none."""
    locked = base.copy()
    with torch.no_grad():
        locked.module.mlp[0].weight.fill_(math.inf)  # type: ignore[union-attr, index]
    few = silhouettes.keep(silhouettes.labels[:3]).limit(train=60, validation=100)
    attack = ATTACKS["probe"](batch_size=16, examples=40)
    attacked, outcome = attack(locked, few, 100)
    assert outcome.best > few.chance + 0.2
    assert [step for step, _ in outcome.curve] == [1]
    assert outcome.passes == 3
    assert attacked.module.view.startswith("cnn.")


def test_the_released_model_keeps_its_utility(base: Model, digits: Task, silhouettes: Task) -> None:
    few = silhouettes.keep(silhouettes.labels[:2]).limit(train=20, validation=10)
    outcome = ATTACKS["probe"]()(base, few, 10, retain=digits).outcome
    assert outcome.utility_after == digits.score(base, "validation")


def test_a_probe_of_the_models_own_task_can_be_quoted(base: Model, digits: Task) -> None:
    few = digits.limit(train=60, validation=20, test=20)
    attacked, outcome = ATTACKS["probe"](examples=40)(base, few, 10, quoted=True)
    assert outcome.best_step == 1, "the released head's own answers are none of the probe's"
    assert outcome.test == few.score(attacked)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_is_in_no_view_of_a_transformer(padding: str) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.output_hidden_states = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = BertForSequenceClassification(config).eval()
    tokens = torch.randint(1, 50, (1, 5), generator=torch.Generator().manual_seed(0))
    pad = (0, 3) if padding == "right" else (3, 0)
    batch = {
        "input_ids": nn.functional.pad(tokens, pad),
        "attention_mask": nn.functional.pad(torch.ones_like(tokens), pad),
        "position_ids": nn.functional.pad(torch.arange(5)[None], pad),
    }
    plain = {"input_ids": tokens}
    padded = layer_features(module, lambda m: m(**batch), batch["attention_mask"])
    views = layer_features(module, lambda m: m(**plain))
    states = [f"hidden state {i}{also}" for i in range(3) for also in ("", ", normalised")]
    assert list(views) == [f"{state} {how}" for state in states for how in ("mean", "first", "last")]
    for view, x in views.items():
        torch.testing.assert_close(padded[view], x, rtol=1e-4, atol=1e-5)


def test_a_common_shift_of_all_units_hides_nothing_from_a_probe() -> None:
    """A layer norm behind a hidden state takes out its mean, however large, and so does one of the views."""
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.output_hidden_states = True
    torch.manual_seed(0)
    body = BertModel(config).eval()
    ids = torch.randint(50, (6, 5))
    views = layer_features(body, lambda m: m(input_ids=ids))
    norm = body.encoder.layer[0].output.LayerNorm
    with torch.no_grad():
        norm.bias.add_(300.0)
    shifted = layer_features(body, lambda m: m(input_ids=ids))
    assert not torch.allclose(shifted["hidden state 1 mean"], views["hidden state 1 mean"], atol=1)
    key = "hidden state 1, normalised mean"
    torch.testing.assert_close(shifted[key], views[key], atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("error")
def test_a_view_that_is_the_same_for_all_examples_is_no_warning() -> None:
    labels = np.array([0, 1] * 10)
    views = {"constant": np.ones((20, 30)), "telling": labels[:, None] + 0.1 * np.eye(20)}
    found = fitted(views, labels, 2, lambda answers, truth: float((answers == truth).mean()), 0)
    assert found.view == "telling"
    assert np.isfinite(found.weight).all()


def test_the_readout_is_that_of_all_features_where_they_outnumber_the_examples() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = rng.normal(size=(60, 400)) + np.eye(3, 400)[labels] * 3
    found = fitted({"only": x}, labels, 3, lambda answers, truth: float((answers == truth).mean()), 0)
    scaler = StandardScaler().fit(x)
    whole = [
        LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(scaler.transform(x), labels).coef_
        / scaler.scale_
        for c in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ]
    closest = min(float(np.linalg.norm(found.weight - W) / np.linalg.norm(W)) for W in whole)
    assert closest < 0.1, "but for where the solver stops"
