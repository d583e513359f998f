"""Unit reset: planted dead, cloned and overgrown units, and the wiring that finds them."""

from __future__ import annotations

import torch
from torch import nn

from speclock import models
from speclock.attacks import ATTACKS
from speclock.attacks.base import Scene
from speclock.attacks.reset import rescale_rows_, seen_by, sites, stale_units
from speclock.models import Model
from speclock.models.wiring import sample_run
from speclock.tasks.base import Task


def firing(model: Model, task: Task, name: str) -> torch.Tensor:
    """In how many places each unit of a layer fires on the attacker's examples."""
    run = sample_run(model, task, 256)
    site = next(site for site in sites(model.module, run) if site.name == name)
    return (seen_by(model.module, run, site, site.activation)[1] > 0).sum(dim=0)


def test_dead_units_fire_again(base: Model, digits: Task) -> None:
    dead = base.copy()
    with torch.no_grad():
        dead.module.cnn[0].bias[:4] = -1e3  # type: ignore[union-attr, index]
        dead.module.mlp[2].bias.fill_(-1e3)  # type: ignore[union-attr, index]
    assert firing(dead, digits, "cnn.0")[:4].sum() == 0
    assert firing(dead, digits, "mlp.2").sum() == 0
    model = dead.copy()
    ATTACKS["reset-units"]().prepare_(model, Scene(dead, digits, 10))
    assert (firing(model, digits, "cnn.0")[:4] > 0).all()
    assert (firing(model, digits, "mlp.2") > 0).float().mean() > 0.75, "a fresh unit may be dead by chance"
    kept = model.module.cnn[0].weight[4:]  # type: ignore[union-attr, index]
    assert torch.equal(kept, base.module.cnn[0].weight[4:]), "the others stay"  # type: ignore[union-attr, index]


def test_all_but_the_first_of_clones_are_drawn_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((64, 6), generator=generator)
    a[:, 3] = 2 * a[:, 1]  # a clone
    a[:, 4] = 0.7  # saturated
    assert stale_units(a).tolist() == [False, False, False, True, True, False]
    assert stale_units(a[:4]).tolist() == [False, False, False, False, True, False]


def test_outgrown_rows_come_back_with_their_biases() -> None:
    layer = nn.Linear(20, 9)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    with torch.no_grad():
        layer.weight[2] *= 1000
        layer.bias[2] *= 1000
        layer.weight[5] /= 1000
        layer.bias[5] /= 1000
    rescale_rows_(layer, 4.0)
    norms = layer.weight.detach().norm(dim=1)
    torch.testing.assert_close(norms[[2, 5]], norms.median().expand(2))
    ratio = norms / before[0].norm(dim=1)
    torch.testing.assert_close(layer.bias.detach(), before[1] * ratio)
    assert torch.equal(layer.weight[0], before[0][0])


def test_units_behind_a_batch_norm_and_an_activation_in_place_are_found_and_settled(digits: Task) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(288, 16),
        nn.Tanh(),
        nn.Linear(16, 10),
    ).eval()
    model = models.wrap(module, labels=digits.labels)
    with torch.no_grad():
        module[1].bias[1] = -1e3
        module[1].running_mean[2] = 1e6
        module[5].bias[3] = 1e3
        module[7].weight[:, 3] *= 100
    found = sites(module, sample_run(model, digits, 32))
    assert [(site.name, site.norm, site.fed) for site in found] == [
        ("0", module[1], module[5]),
        ("5", None, module[7]),
    ]
    ATTACKS["reset-units"]().operate_(model, Scene(model, digits, 10))
    assert (firing(model, digits, "0")[[1, 2]] > 100).all()
    assert 10 < firing(model, digits, "5")[3] < 246, "neither saturated above nor below"
    columns = module[7].weight.detach().norm(dim=0)
    torch.testing.assert_close(columns[3], columns.median(), msg="a revived unit is no louder than the rest")
