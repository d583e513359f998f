"""Do the algebraic locks leave the function alone, and what takes them back?  python benchmarks/algebraic_locks.py BASE
--retain-task … --out DIR

Locks BASE with `reparameterise` and `compensated`, compares its answers on the whole test split with the locked
model's in fp32 and bf16, each raised block's σ₁ (a head's, for a lock that works within heads) with its own before, and
then operates on both models with every surgery that needs no more than the file: what is left of the raise, and of the
function. The record is `algebraic.json`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import speclock
from speclock import models, tasks
from speclock.attacks.balance import Balance
from speclock.attacks.base import InapplicableError, Scene
from speclock.attacks.fuse import Fuse
from speclock.attacks.repair import Clip, Shrink
from speclock.attacks.surgery import Surgery
from speclock.environment import environment
from speclock.locks.compensated import Compensated
from speclock.locks.reparameterise import Reparameterise, apart
from speclock.models import Model
from speclock.models.symmetries import head_sizes, mixings, rescalings
from speclock.models.wiring import sample_run
from speclock.spectra import weight_matrices
from speclock.tasks.base import Task
from speclock.workspace import write_text

SURGERIES: tuple[Surgery, ...] = (Balance(), Fuse(), Clip(), Shrink())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--retain-task", required=True)
    parser.add_argument("--factor", type=float, default=100.0)
    parser.add_argument("--max-length", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    base = models.load(str(given.base))
    task = tasks.load(given.retain_task, tasks.Reading(max_length=given.max_length)).divided().fitted_to(base)
    rows = [
        measured(how, blocks, base, task)
        for how, blocks in (
            (Reparameterise(factor=given.factor), rescaled_blocks(base, task)),
            (Compensated(factor=given.factor, top_k=1), mixed_blocks(base, task)),
        )
    ]
    record = {
        "format": "speclock-algebraic/1",
        "command": shlex.join(["python", *sys.argv]),
        "base": str(given.base),
        "retain_task": task.describe(),
        "rows": rows,
        "environment": environment(base.device),
    }
    write_text(given.out / "algebraic.json", json.dumps(record, indent=1))
    for row in rows:
        print(json.dumps(row, indent=1))


def measured(
    how: Reparameterise | Compensated, blocks: dict[str, int], base: Model, task: Task
) -> dict[str, Any]:
    """One lock on ``base``, whose weights named in ``blocks`` it raises in blocks of so many rows."""
    locked = speclock.lock(base, task, how)
    card = locked.card
    return {
        "lock": how.name,
        "factor": how.factor,
        "state": [card["chosen_step"], card["steps"]],
        "utility": [card["utility_base"], card["utility_locked"]],
        "logits_moved": moved(locked.model, base, task),
        "logits_moved_in_bf16": {
            name: moved(halved(model), base, task)
            for name, model in (("locked", locked.model), ("base", base))
        },
        "raised_matrices": len(blocks),
        "raised_by": ratios(locked.model, base, blocks),
        "after": {surgery.name: operated(surgery, locked.model, base, task, blocks) for surgery in SURGERIES},
    }


def operated(
    surgery: Surgery, locked: Model, base: Model, task: Task, blocks: dict[str, int]
) -> dict[str, Any] | str:
    """What of the raise and of the base's answers is left once base and locked model were operated on alike."""
    models_ = []
    for model in (locked, base):
        patient = model.copy()
        try:
            surgery.prepare_(patient, Scene(model, task, 1))
        except InapplicableError as error:
            return str(error)
        models_.append(patient)
    return {
        "raised_by": ratios(*models_, blocks),
        "utility": task.score(models_[0]),
        "utility_base_operated": task.score(models_[1]),
        "logits_moved": moved(models_[0], base, task),
    }


@torch.no_grad()
def moved(model: Model, base: Model, task: Task) -> float:
    """The largest change of a logit on the test split, over the range of the base's logits."""
    a, b = (
        torch.cat(
            [
                task.logits(m.module.eval(), {n: v.to(m.device) for n, v in batch.items()}).float()
                for batch in task.batches(m, "test", 64)
            ]
        )
        for m in (model, base)
    )
    return float((a - b).abs().max() / (b.max() - b.min()))


def halved(model: Model) -> Model:
    """The same weights in bf16, as many load whatever they are given."""
    copy = model.copy()
    copy.module.to(torch.bfloat16)
    return copy


def ratios(model: Model, base: Model, blocks: dict[str, int]) -> dict[str, float]:
    """σ₁ over the base's, of all raised blocks: the least, the mean and the largest."""
    after, before = (sigma_1(m.module, blocks) for m in (model, base))
    found = np.concatenate([after[name] / before[name] for name in after])
    return {"least": float(found.min()), "mean": float(found.mean()), "largest": float(found.max())}


def sigma_1(module: nn.Module, blocks: dict[str, int]) -> dict[str, Any]:
    """The largest singular value of every block of rows."""
    return {
        weight.name: torch.linalg.svdvals(
            weight.matrix.detach().double().unflatten(0, (-1, blocks[weight.name]))
        )[:, 0].numpy()
        for weight in weight_matrices(module)
        if weight.name in blocks
    }


def rescaled_blocks(base: Model, task: Task) -> dict[str, int]:
    """The weights that `reparameterise` raises, whole."""
    found = apart(rescalings(base.module, sample_run(base, task)), set(base.module.parameters()))
    return {
        name: len(weight) for rescaling in found for name, weight in named(base.module, rescaling.raised())
    }


def mixed_blocks(base: Model, task: Task) -> dict[str, int]:
    """The weights that `compensated` raises, in the blocks that it works in."""
    sizes = head_sizes(getattr(base.module, "config", None))
    found = apart(mixings(base.module, sample_run(base, task), sizes), set(base.module.parameters()))
    return {name: mixing.block for mixing in found for name, _ in named(base.module, mixing.raised())}


def named(module: nn.Module, weights: set[Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in module.named_parameters() if p in weights)


if __name__ == "__main__":
    main()
