"""The whole of it on an accelerator: `make gpu` runs these, wherever there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import speclock
from speclock import models, tasks
from speclock.audits.record import read
from speclock.audits.suite import QUICK
from speclock.cli import main
from speclock.forecast.measurement import measure
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator"),
]


@pytest.fixture(scope="module")
def digits() -> Task:
    return tasks.load("mnist@2000/1000/500")


@pytest.fixture(scope="module")
def on_device(digits: Task) -> Model:
    model = models.load("cnn-mlp", labels=digits.labels)
    train(model, digits, TrainingRecipe(optimizer="adam", lr=1e-3, epochs=2, batch_size=32))
    assert digits.score(model) > 0.85
    return model


def test_a_model_is_loaded_onto_the_accelerator(on_device: Model) -> None:
    assert on_device.device.type == torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    for derived in (on_device.copy(), on_device.scratch(0), on_device.with_head(("a", "b"), 0)):
        assert derived.device == on_device.device


@pytest.mark.parametrize("retain", ["task", "kl", "task+kl"])
def test_a_lock(on_device: Model, digits: Task, retain: str) -> None:
    lock = speclock.SpecDef(
        alpha=0.5, top_k=1, lr=1e-3, steps=20, evaluations=2, retain=retain, max_utility_drop=1.0
    )
    locked = speclock.lock(on_device, digits, lock)
    assert locked.card["status"] == "ok"
    assert locked.card["strength_locked"] > locked.card["strength_base"]
    assert locked.model.device == on_device.device


def test_an_audit_has_no_failed_run(on_device: Model, digits: Task) -> None:
    lock = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, steps=20, evaluations=2)
    record = speclock.audit(
        base=on_device,
        locked=speclock.lock(on_device, digits, lock),
        retain=digits,
        attack=tasks.load("kmnist@200/500"),
        suite=QUICK,
        steps=16,
    )
    assert {run.status for run in record.runs if run.target == "locked"} <= {"ok", "diverged"}
    assert record.environment["device"] != "cpu"
    assert record.summary["best_locked"] is not None


def test_curvature(on_device: Model, digits: Task) -> None:
    host = measure(on_device.to("cpu"), digits, samples=32, batch_size=16)
    found = measure(on_device, digits, samples=32, batch_size=16)
    assert found.spectrum.sigma_max.value == pytest.approx(host.spectrum.sigma_max.value, rel=1e-3)


def test_the_demo(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    for lock in ("specdef", "undo"):
        record = read(tmp_path / "demo" / "audit" / lock)
        assert not [run for run in record.runs if run.status == "failed" and run.target == "locked"]
