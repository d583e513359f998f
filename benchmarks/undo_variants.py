"""Which way of drawing anew pays?  python benchmarks/undo_variants.py BASE --retain-task … --attack-task … --out DIR

Locks BASE with `undo`, with `undo` under other settings (`--lock undo:beta=0.9`, as often as wanted) and with variants
of it that differ in what is drawn anew, and when: at once, in portions while the model is taught, block by block, all
of every block, all but the coefficients that K-FAC says carry the retain loss, and at once after the features of each
class were drawn together. Each meets the families of quick/2, against the floor of the classical models;
`variants.json` has utility, strength and uplift of each. The attack task should be one that no record quotes: a variant
is chosen by it. What was finished is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import speclock
from speclock import models, tasks
from speclock.audits.suite import QUICK
from speclock.environment import environment
from speclock.locks.base import Run
from speclock.locks.composition import lock_named
from speclock.locks.retain import Teacher, divergence
from speclock.locks.undo import Undo
from speclock.models import Model
from speclock.models.initial import head_names, named_noise
from speclock.tasks.base import Batch, Task
from speclock.training import Step, fit
from speclock.workspace import write_text

SUITE = replace(QUICK, name="variants", version=1, steps=32, scratch=())
"""Training from scratch, whose long runs would take most of the time, is left out: on texts it is no floor."""

Removal = Callable[[Model, Model, Task], None]
"""What is done to (the model, its base, the retain task) in place."""


@dataclass(frozen=True, kw_only=True)
class Staged(Undo):
    """Removal by steps of the teaching, the first before it begins; one noise for all of them."""

    def removals(self, task: Task, blocks: list[str]) -> dict[int, Removal]:
        raise NotImplementedError

    def trajectory(self, model: Model, task: Task, *, spectral: bool, run: Run) -> Iterator[Step]:
        base = model.copy()
        due = self.removals(task, blocks_of(model.module)) if spectral else {}
        for step in super().trajectory(model, task, spectral=False, run=run):
            yield step
            if step.index in due:
                due[step.index](model, base, task)

    def removing(self, seed: int, **changed: Any) -> Removal:
        """`undo`'s own removal with other settings."""
        how = Undo(**{**vars(self), "insecure_noise_seed": seed, **changed})
        return lambda model, base, task: how._remove_(model, base, task, task.train.inputs)


@dataclass(frozen=True, kw_only=True)
class Gradual(Staged):
    """The noise in five portions over the first 60% of the teaching, β of the weights in the end as at once."""

    def removals(self, task: Task, blocks: list[str]) -> dict[int, Removal]:
        portions, seed = 5, secrets.randbits(32)
        share = 1 - (1 - self.beta) ** (1 / portions)
        at = [round(0.6 * self.total_steps(task) * i / portions) for i in range(portions)]
        first = self.removing(seed, beta=share)
        return {step: first if step == 0 else self.removing(seed, beta=share, bottleneck=1.0) for step in at}


@dataclass(frozen=True, kw_only=True)
class Regrowth(Staged):
    """The embedding first, then a block after the other, from the input on, over the first 70% of the teaching."""

    def removals(self, task: Task, blocks: list[str]) -> dict[int, Removal]:
        seed = secrets.randbits(32)
        parts = [{"exclude": tuple(f"{block}.*" for block in blocks)}]
        parts += [{"include": (f"{block}.*",)} for block in blocks]
        last = 0.7 * self.total_steps(task)
        return {
            round(last * i / (len(parts) - 1)): self.removing(seed, **part) for i, part in enumerate(parts)
        }


@dataclass(frozen=True, kw_only=True)
class KFac(Staged):
    """In the eigenvectors of a layer's inputs and gradients the coefficients that carry the retain loss stay, as many
    as 1 − β of them; the rest is drawn anew."""

    def removals(self, task: Task, blocks: list[str]) -> dict[int, Removal]:
        seed = secrets.randbits(32)
        # Every matrix of the body is left out of undo's own removal, which does the embedding.
        narrow = self.removing(seed, exclude=(*self.exclude, *(f"{block}.*" for block in blocks)))

        def remove_(model: Model, base: Model, task: Task) -> None:
            narrow(model, base, task)
            fresh = dict(base.scratch(0).module.named_parameters())
            factors = kfac(base, task)
            for name, layer in model.module.named_modules():
                if name not in factors or not any(name.startswith(f"{block}.") for block in blocks):
                    continue
                inputs, gradients = (torch.linalg.eigh(factor) for factor in factors[name])
                with torch.no_grad():
                    assert isinstance(layer, nn.Linear)
                    W = layer.weight
                    noise = named_noise(name, W, float(fresh[f"{name}.weight"].std()), seed).double()
                    U, V = gradients.eigenvectors, inputs.eigenvectors
                    C = U.T @ W.double() @ V
                    carried = C.square() * gradients.eigenvalues[:, None] * inputs.eigenvalues
                    least = carried.flatten().kthvalue(round(self.beta * carried.numel())).values
                    W.copy_(U @ torch.where(carried > least, C, U.T @ noise @ V) @ V.T)

        return {0: remove_}


@dataclass(frozen=True, kw_only=True)
class Collapsed(Staged):
    """A hundred steps that draw the features of each class together, then removal at once."""

    def removals(self, task: Task, blocks: list[str]) -> dict[int, Removal]:
        at_once = self.removing(secrets.randbits(32))

        def remove_(model: Model, base: Model, task: Task) -> None:
            teacher = Teacher(base, task, repeats=False)
            head = model.module.get_submodule(head_names(model.module)[0])
            seen: list[Tensor] = []
            hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

            def loss(module: nn.Module, batch: Batch) -> Tensor:
                seen.clear()
                kept = divergence(teacher.logits(batch), task.logits(module, batch).float(), self.temperature)
                features, labels = seen[-1].flatten(1), batch["labels"]
                own = torch.stack([features[labels == label].mean(0) for label in labels])
                within = (features - own).square().sum() / (features - features.mean(0)).square().sum()
                return kept + within

            for step in fit(model, task, self, steps=100, loss=loss, title="collapsing"):
                assert not step.diverged
            hook.remove()
            at_once(model, base, task)

        return {0: remove_}


def variants(**settings: Any) -> dict[str, Undo]:
    return {
        "undo": Undo(**settings),
        "all of every block": Undo(**settings, beta=1.0),
        "in portions": Gradual(**settings),
        "block by block": Regrowth(**settings),
        "all but K-FAC's": KFac(**settings),
        "classes drawn together first": Collapsed(**settings),
    }


def blocks_of(module: nn.Module) -> list[str]:
    """Names of the parts of the longest list of layers."""
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    name, layers = max(lists.items(), key=lambda item: len(item[1]))
    return [f"{name}.{i}" for i in range(len(layers))]


def kfac(base: Model, task: Task, samples: int = 256) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each linear layer Σ xxᵀ over its inputs and Σ ggᵀ over gradients at its outputs, with labels that the base
    draws itself."""
    sums: dict[str, list[Any]] = {}
    layers = {name: part for name, part in base.module.named_modules() if isinstance(part, nn.Linear)}

    def add(name: str, which: int, value: Tensor) -> None:
        flat = value.detach().flatten(0, -2).double()
        sums.setdefault(name, [0, 0])[which] += flat.T @ flat

    hooks = [
        hook
        for name, part in layers.items()
        for hook in (
            part.register_forward_pre_hook(lambda _, x, name=name: add(name, 0, x[0])),
            part.register_full_backward_hook(lambda _, __, g, name=name: add(name, 1, g[0])),
        )
    ]
    base.module.eval().requires_grad_(True)
    torch.manual_seed(0)
    for start in range(0, min(samples, len(task.train)), 32):
        rows = np.arange(start, min(start + 32, samples, len(task.train)))
        batch = task.encode(task.train.take(rows), base)
        logits = task.logits(base.module, batch).float()
        drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
        nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    base.module.zero_grad(set_to_none=True)
    return {name: (pair[0], pair[1]) for name, pair in sums.items() if all(torch.is_tensor(s) for s in pair)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--retain-task", required=True)
    parser.add_argument("--attack-task", required=True, help="a proxy, which no record quotes")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--lock", action="append", default=[], help="undo under other settings of its own")
    parser.add_argument("--only", nargs="+", help="some of the variants, by name")
    parser.add_argument("--max-utility-drop", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    reading = tasks.Reading(max_length=given.max_length)
    base = models.load(str(given.base))
    retain, proxy = tasks.load(given.retain_task, reading), tasks.load(given.attack_task, reading)
    kept = given.out / "runs"
    rows = []
    # A guard that gives nothing back would leave nothing to compare: what a variant costs is in its row.
    named = variants(
        steps=given.steps, lr=given.lr, warmup=given.warmup, max_utility_drop=given.max_utility_drop
    )
    if given.only is not None:
        named = {name: named[name] for name in given.only}
    others = {
        f"--lock {spec}": lock_named(spec, {"max_utility_drop": given.max_utility_drop})
        for spec in given.lock
    }
    for name, how in {**named, **others}.items():
        asked = [repr(how), given.seeds, models.fingerprint(base), retain.digest(), proxy.digest()]
        place = kept / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "row.json").exists():
            locked = speclock.lock(base, retain, how)
            # A card names a lock that speclock has; a variant's control is not asked for, so that it need not be one.
            audited = speclock.audit(
                base=base,
                locked=locked.model,
                retain=retain,
                attack=proxy,
                suite=SUITE,
                seeds=given.seeds,
                jobs=given.jobs,
                shared=kept,
                floors=kept,
            )
            write_text(place / "row.json", json.dumps(row(name, how, locked.card, audited.summary)))
        rows.append({**json.loads((place / "row.json").read_text()), "variant": name})
        print(
            "{variant}: utility {utility:.1%}, {strength:.2f} drawn anew, uplift {uplift}".format(**rows[-1]),
            flush=True,
        )
    record = {
        "format": "speclock-variants/1",
        "command": shlex.join(["python", *sys.argv]),
        "suite": [family.name for family in SUITE.families],
        "rows": rows,
        "environment": environment(base.device),
    }
    write_text(given.out / "variants.json", json.dumps(record, indent=1))


def row(name: str, how: Any, card: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "variant": name,
        "settings": repr(how),
        "utility_base": card["utility_base"],
        "utility": card["utility_locked"],
        "strength": card["strength_locked"],
        "chosen_step": card["chosen_step"],
        "epochs_worth": card["epochs_worth"],
        "seconds": card["seconds"],
        "best_base": summary["best_base"],
        "floor": summary["floor"],
        "locked": summary["best_locked"],
        "uplift": summary["uplift"],
        "uplift_uninformed": summary["uplift_uninformed"],
        "interval": summary["intervals"]["uplift"],
        "strongest_attack": summary["strongest_attack"],
    }


if __name__ == "__main__":
    main()
