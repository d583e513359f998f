"""Everything derived from a model stays on its device, shown without one: see the ``elsewhere`` fixture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from speclock.attacks.chain import factored
from speclock.attacks.fuse import product
from speclock.errors import InputError
from speclock.locks.retain import retain_loss
from speclock.locks.specdef import SpecDef
from speclock.models import Model, fingerprint, load, transplanted, wrap
from speclock.models.tensors import chosen_device, placed, tensors
from speclock.spectra import frobenius, in_float64, singular_values, topk
from speclock.tasks.base import Batch, Examples, Source, Task
from speclock.tasks.image import ImageClassification

LABELS = ("a", "b", "c")


def devices(model: Model) -> set[str]:
    return {tensor.device.type for _, tensor in tensors(model.module)}


def net() -> Model:
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )
    return wrap(nn.Sequential(*layers).eval(), labels=LABELS)


def bert() -> Model:
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    return wrap(BertForSequenceClassification(config).eval(), modality="text")


def a_batch(device: torch.device) -> Batch:
    batch = {"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.zeros(2, dtype=torch.int64)}
    return {name: value.to(device) for name, value in batch.items()}


@pytest.fixture
def task() -> ImageClassification:
    """Its labels and its loss are what matters here."""
    pixels, labels = np.zeros((3, 8, 8, 3), dtype=np.uint8), np.arange(3)
    rows = Examples(pixels, labels)
    return ImageClassification("tiny", rows, rows, labels=LABELS, source=Source("built", "tiny"))


DERIVED: dict[str, Callable[[Model], Model]] = {
    "copy": lambda model: model.copy(),
    "scratch": lambda model: model.scratch(0),
    "with_head": lambda model: model.with_head(("p", "q"), 0),
    "with_head_of": lambda model: model.with_head(("p", "q"), 0).with_head_of(model),
    "with_head_of one on the CPU": lambda model: model.with_head(("p", "q"), 0).with_head_of(model.to("cpu")),
    "in_fp32": lambda model: model.in_fp32(),
    "transplant": lambda model: transplanted(model, model.to("cpu")).model,
}


@pytest.mark.parametrize("derived", DERIVED)
@pytest.mark.parametrize("build", [net, bert])
def test_what_is_derived_from_a_model_stays_with_it(
    build: Callable[[], Model], derived: str, elsewhere: torch.device
) -> None:
    model = build().to(elsewhere)
    made = DERIVED[derived](model)
    assert devices(made) == devices(model) == {"xpu"}
    assert made.device == elsewhere
    if model.modality == "image":
        # BERT cuts its positions to length, and to cut is more than the stand-in can.
        assert made.module(torch.zeros(2, 3, 8, 8).to(elsewhere)).device == elsewhere


def test_a_move_is_a_copy_and_no_move_is_none(elsewhere: torch.device) -> None:
    model = net()
    there = model.to(elsewhere)
    assert (devices(model), devices(there)) == ({"cpu"}, {"xpu"})
    assert there.to("xpu") is there
    assert model.to("cpu") is model


def test_the_fixture_sees_a_tensor_on_the_wrong_device(elsewhere: torch.device) -> None:
    model = net().to(elsewhere)
    with pytest.raises(RuntimeError, match="found at least two devices"):
        model.module(torch.zeros(2, 3, 8, 8))
    with pytest.raises(TypeError, match="has no float64"):
        next(model.module.parameters()).double()


def test_the_teacher_lives_with_its_student(task: ImageClassification, elsewhere: torch.device) -> None:
    """The loss is made before the training loop moves the model."""
    model = net()
    loss = retain_loss(model, task, "task+kl")
    student = model.to(elsewhere).module
    for _ in range(2):
        assert loss(student, a_batch(elsewhere)).device == elsewhere


def test_the_tasks_own_loss_runs_where_the_model_is(
    task: ImageClassification, elsewhere: torch.device
) -> None:
    assert task.loss(net().to(elsewhere).module, a_batch(elsewhere)).device == elsewhere


# -- float64 where the device has none -------------------------------------------------------------------------


def test_products_and_chains_of_layers_are_computed_and_put_back(elsewhere: torch.device) -> None:
    first, second = (placed(nn.Linear(6, 6), torch.zeros(0).to(elsewhere)) for _ in range(2))
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    for made in (product(second, first), factored(first, 3)):
        assert {(p.device, p.dtype) for p in made.parameters()} == {(elsewhere, torch.float32)}


def test_spectra_are_measured(elsewhere: torch.device) -> None:
    W = torch.zeros(6, 4).to(elsewhere)
    sigma = singular_values(W, 2)
    assert (sigma.device.type, sigma.dtype, sigma.shape) == ("cpu", torch.float64, (2,))
    assert frobenius(W) == 1.0, "which is what the stand-in says of every number"
    values, vectors = topk._gram_svd(W)
    assert {(t.device, t.dtype) for t in (values, vectors)} == {(elsewhere, torch.float32)}


def test_a_device_with_float64_keeps_it() -> None:
    wide = in_float64(torch.ones(2, dtype=torch.bfloat16))
    assert (wide.dtype, wide.device.type) == (torch.float64, "cpu")
    assert in_float64(wide) is wide


# -- the device at load --------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert load("cnn-mlp").device == load("cnn-mlp", device="cpu").device == torch.device("cpu")
    with pytest.raises(InputError, match=r"no device 'cuda' here\. Choose one of: cpu\."):
        load("cnn-mlp", device="cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert chosen_device(None) == torch.device("xpu")
    assert chosen_device("xpu:1") == torch.device("xpu", 1)
    for name in ("xpu:2", "gpu", "meta"):
        with pytest.raises(InputError, match=r"Choose one of: cpu, xpu, xpu:0, xpu:1\."):
            chosen_device(name)


@pytest.mark.gpu
def test_a_model_comes_on_the_accelerator() -> None:
    model = load("cnn-mlp", seed=1)
    assert model.device.type != "cpu"
    assert fingerprint(model) == fingerprint(load("cnn-mlp", seed=1, device="cpu"))
    assert {made(model).device for made in DERIVED.values()} == {model.device}


@pytest.mark.gpu
def test_a_lock_with_a_teacher_runs_on_the_accelerator(base: Model, digits: Task) -> None:
    there = base.to(chosen_device(None))
    locked, card = SpecDef(retain="task+kl", steps=4, evaluations=1, max_utility_drop=1.0)(there, digits)
    assert card["status"] == "ok"
    assert locked.device == there.device
