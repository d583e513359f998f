"""Locks that change no answer: whose σ they raise, by how much, and what takes it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.locks.test_locks import paired
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import speclock
from speclock import wrap
from speclock.attacks.balance import Balance
from speclock.attacks.base import Scene
from speclock.attacks.fuse import Fuse
from speclock.errors import InputError
from speclock.locks.base import Lock
from speclock.locks.compensated import Compensated
from speclock.locks.reparameterise import Reparameterise
from speclock.models import Model, load, save
from speclock.models.symmetries import Mixing, mixings
from speclock.spectra import weight_matrices
from speclock.tasks.base import Task


@pytest.fixture(scope="module")
def vit(digits: Task) -> Model:
    """A transformer that norms first; what it answers does not matter here."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=28,
        patch_size=7, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip
    torch.manual_seed(0)
    return wrap(ViTForImageClassification(config).eval(), labels=digits.labels)


def moved(lock: Lock, model: Model, task: Task, folder: Path) -> Model:
    """The model at the end of the lock's path, whatever its utility."""
    from speclock.locks.base import Run

    own = model.copy()
    for _ in lock.trajectory(own, task, spectral=True, run=Run.in_folder(folder)):
        pass
    return own


def ratios(after: nn.Module, before: nn.Module) -> dict[str, float]:
    """σ₁ of each linear layer over what it was."""
    theirs = dict(before.named_modules())
    return {
        name: float(
            torch.linalg.matrix_norm(layer.weight, 2) / torch.linalg.matrix_norm(theirs[name].weight, 2)
        )
        for name, layer in after.named_modules()
        if isinstance(layer, nn.Linear)
    }


def answers(model: Model, task: Task) -> torch.Tensor:
    with torch.no_grad():
        return task.logits(model.module.eval(), next(task.batches(model, "test", 64)))


def assert_same_function(one: Model, other: Model, task: Task) -> None:
    a, b = answers(one, task), answers(other, task)
    assert float((a - b).abs().max()) <= 1e-3 * float(b.max() - b.min())


@torch.no_grad()
def test_a_norms_gain_goes_into_its_readers_whose_sigma_is_the_factor_larger(
    vit: Model, digits: Task, tmp_path: Path
) -> None:
    task = digits.divided()
    locked = moved(Reparameterise(factor=50.0, evaluations=2), vit, task, tmp_path)
    assert_same_function(locked, vit, task)
    found = ratios(locked.module, vit.module)
    raised = {name for name, ratio in found.items() if ratio == pytest.approx(50, rel=1e-3)}
    assert len(raised) >= 4, (
        "in each of two layers what reads the first norm, or values, and what reads the second"
    )
    assert all(
        any(ratio == pytest.approx(wanted, rel=1e-3) for wanted in (50, 1, 1 / 50))
        for ratio in found.values()
    )
    save(locked, tmp_path / "folder")
    assert_same_function(load(str(tmp_path / "folder")), vit, task)
    again = type(vit.module).from_pretrained(tmp_path / "folder")
    assert isinstance(again, PreTrainedModel)
    undone, plain = locked.copy(), vit.copy()
    for model in (undone, plain):
        Balance().operate_(model, Scene(model, task, 4))
    assert ratios(undone.module, plain.module) == pytest.approx(dict.fromkeys(found, 1.0), rel=0.05)


@torch.no_grad()
def test_heads_values_are_raised_and_lowered_in_the_output_projection(
    vit: Model, digits: Task, tmp_path: Path
) -> None:
    task = digits.divided()
    locked = moved(Compensated(factor=30.0, top_k=1, evaluations=3), vit, task, tmp_path)
    assert_same_function(locked, vit, task)
    theirs = dict(vit.module.named_modules())
    raised = 0
    for name, layer in locked.module.named_modules():
        if (
            isinstance(layer, nn.Linear)
            and layer.weight.shape == (16, 16)
            and layer.weight is not theirs[name].weight
        ):
            heads = [
                torch.linalg.svdvals(w.unflatten(0, (2, 8)))[:, 0]
                for w in (layer.weight, theirs[name].weight)
            ]
            raised += bool(torch.allclose(heads[0], 30 * heads[1], rtol=1e-3))
    assert raised >= 4, "queries and values, in two layers"


@pytest.mark.parametrize("factor", [30.0, 1e4])
def test_what_heads_compensate_for_falls_to_balancing(
    vit: Model, digits: Task, tmp_path: Path, factor: float
) -> None:
    """A head's product is all that the model uses, and has none of the raise."""
    task = digits.divided()
    locked = moved(Compensated(factor=factor, top_k=2, evaluations=2), vit, task, tmp_path)
    undone, plain = locked.copy(), vit.copy()
    for model in (undone, plain):
        Balance().operate_(model, Scene(model, task, 4))
    assert_same_function(undone, vit, task)
    spectra = [
        [torch.linalg.svdvals(w.matrix.detach()) for w in weight_matrices(m.module)] for m in (undone, plain)
    ]
    # Up to a rotation of each head, which no spectrum shows.
    for one, other in zip(*spectra, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_a_value_head_that_several_query_heads_read_is_found(digits: Task) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    module = LlamaForSequenceClassification(config).eval()
    ids = torch.randint(1, 20, (4, 6))
    found = list(mixings(module, lambda m: m(input_ids=ids), [4]))
    attention = module.model.layers[0].self_attn
    assert Mixing(attention.v_proj, attention.o_proj, 4, serial=True) in found
    assert not any(m.A is attention.q_proj for m in found), "rotary positions stand between queries and keys"
    before = module(input_ids=ids).logits
    with torch.no_grad():
        attention.v_proj.weight[0] *= 1000
        attention.o_proj.weight[:, [0, 4]] /= 1000
    (only,) = found
    after = [only.balance_() for _ in range(2)]
    assert after[0] > 1
    assert after[1] < 1e-3, "what is balanced stays"
    torch.testing.assert_close(module(input_ids=ids).logits, before, rtol=1e-3, atol=1e-5)
    assert attention.v_proj.weight.detach().norm() < 2


@torch.no_grad()
def test_a_compensated_pair_of_layers_falls_to_fusing(base: Model, digits: Task, tmp_path: Path) -> None:
    pair = paired(base)
    locked = moved(Compensated(factor=100.0, top_k=2, evaluations=2), pair, digits.divided(), tmp_path)
    assert_same_function(locked, pair, digits)
    sigma, before = (torch.linalg.svdvals(m.module.mlp[0][0].weight) for m in (locked, pair))
    torch.testing.assert_close(sigma[:2], 100 * before[:2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sigma[2:10], before[2:10], rtol=1e-2, atol=1e-3)
    Fuse().operate_(locked, Scene(locked, digits, 4))
    torch.testing.assert_close(
        torch.linalg.svdvals(locked.module.mlp[0][0].weight)[:2], before[:2], rtol=1e-2, atol=1e-3
    )


def test_where_nothing_can_take_it_back_that_is_said(base: Model, digits: Task) -> None:
    with pytest.raises(InputError, match="no two layers of which one could take back"):
        speclock.lock(base, digits, Compensated())
