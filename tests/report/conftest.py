"""A record such as an audit leaves. Fixture data: every number here is made up by a formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from speclock.report import render
from speclock.report.runs import mean_best, strongest

Record = dict[str, Any]

# Per target: the score reached, the learning rate that reaches it, how soon.
PLATEAUS = {
    "base": (0.90, 3e-4, 0.25),
    "scratch": (0.27, 3e-4, 0.5),
    "control": (0.66, 3e-4, 0.5),
    "locked": (0.43, 1e-4, 0.8),
}
# Per optimizer: how much of that it gets, and how much larger its learning rate is.
OPTIMIZERS = {"adamw": (1.0, 1.0), "sgd": (0.62, 30.0), "adafactor": (0.93, 1.0)}
RATES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3)
STEPS, CHANCE = 60, 0.25


def make_record(
    seeds: tuple[int, ...] = (0, 1, 2), rates: tuple[float, ...] = RATES, matrices: int = 40
) -> Record:
    """A four-newsgroups attack on a guard model, with some runs diverged, failed and pruned."""
    draw = random.Random(0)
    runs = [
        make_run(draw, target, optimizer, lr, seed)
        for target in PLATEAUS
        for optimizer in OPTIMIZERS
        for lr in rates
        for seed in seeds
    ]
    for seed in seeds:
        run = make_run(draw, "locked", "adamw", 1e-4, seed)
        runs.append({**run, "attack": "clip", "config": {**run["config"], "to": "median", "warmup": 10}})
    best = {target: mean_best(strongest(runs, target)) for target in PLATEAUS}
    uplift = (best["locked"] - best["scratch"]) / (best["base"] - best["scratch"])
    return {
        "format": "speclock-audit/1",
        "command": "speclock audit guard-locked --base guard --retain-task jailbreak"
        " --attack-task newsgroups-4 --suite quick --seeds 3 --out audit",
        "suite": {"name": "quick", "version": 1, "steps": STEPS, "seeds": list(seeds)},
        "verdict": "The lock costs 1.2% of utility and withstood the budget of 60 steps (slowdown > 4.0×):"
        f" clip, then adamw at lr 1e-4 reached {best['locked']:.1%}, where the unlocked base gives"
        f" {best['base']:.1%} and scratch {best['scratch']:.1%}, which leaves the attacker {uplift:.0%} of"
        f" what the weights are worth (uplift {uplift:.2f}).",
        "base": {
            "name": "guard",
            "fingerprint": "9f2c" * 16,
            "source": {"kind": "package", "origin": "fixture-model==1.0", "sha256": None, "stand_in": None},
        },
        "locked": {
            "name": "guard-locked",
            "fingerprint": "51ab" * 16,
            "source": {"kind": "file", "origin": "guard-locked"},
            "card": make_card(),
        },
        "retain_task": make_task("jailbreak", ["harmless", "harmful"], 1200, 256, 0.5, None),
        "attack_task": make_task(
            "newsgroups-4",
            ["autos", "hockey", "space", "guns"],
            480,
            200,
            CHANCE,
            "the paper's AG News topics",
        ),
        "summary": {
            "utility_base": 1.0,
            "utility_locked": 0.988,
            **{f"best_{target}": score for target, score in best.items()},
            "uplift": uplift,
            "slowdown": "> 4.0",
            "strongest_attack": "clip, then adamw at lr 1e-4",
            "target": best["scratch"] + 0.9 * (best["base"] - best["scratch"]),
            "chance": CHANCE,
            "intervals": {
                f"best_{target}": [score - 0.024, score + 0.024] if len(seeds) > 1 else None
                for target, score in best.items()
            },
        },
        "runs": runs,
        "spectra": make_spectra(draw, matrices),
        "flags": [
            {
                "name": "edge_of_grid",
                "why": "The best learning rate on scratch, 1e-3 with sgd, is the largest of the grid.",
                "next": "Add 3e-3 and 1e-2 to the sweep, or pass --suite standard.",
            },
            {
                "name": "seeds_disagree",
                "why": "On the locked model the three seeds differ by 13 points.",
                "next": "Run five seeds: --seeds 5.",
            },
        ],
        "environment": {
            "python": "3.12.3",
            "torch": "2.13.0",
            "transformers": "4.57.0",
            "device": "cpu",
            "cpu": "fixture CPU",
            "cores": 2,
            "memory_gib": 15.6,
        },
        "seconds": 312.0,
    }


def make_run(draw: random.Random, target: str, optimizer: str, lr: float, seed: int) -> Record:
    """One run: a saturating curve with noise; the corners of the grid diverge, fail or are pruned."""
    plateau, peak, pace = PLATEAUS[target]
    share, shift = OPTIMIZERS[optimizer]
    off = math.log10(lr / shift / peak)
    gain = max(0.0, plateau * share - CHANCE) * math.exp(-0.9 * off**2)
    curve: list[list[float]] = []
    for step in range(0, STEPS + 1, 5):
        score = CHANCE + gain * (1 - math.exp(-step / (STEPS * pace * 0.45))) + draw.gauss(0, 0.012)
        curve.append([step, round(min(1.0, max(0.15, score)), 4)])
    run: Record = {
        "target": target,
        "attack": "finetune",
        "config": {"optimizer": optimizer, "lr": lr, "clip": 1.0},
        "seed": seed,
        "status": "ok",
        "curve": curve,
        "best": max(score for _, score in curve),
        "utility_after": None if target == "scratch" else round(0.99 - 0.2 * draw.random(), 4),
        "seconds": round(20 + 15 * draw.random(), 1),
        "peak_memory_mb": 912.0,
        "pruned_at": None,
        "reason": None,
    }
    if lr >= 1e-3 and optimizer != "sgd" and (target in ("locked", "control") or seed == 2):
        return run | {"status": "diverged", "best": None, "curve": [*curve[:3], [15, None]]}
    if lr <= 1e-6 and seed == 0:
        return run | {"pruned_at": 20, "curve": curve[:5], "best": max(score for _, score in curve[:5])}
    if optimizer == "adafactor" and lr == 1e-5 and target == "scratch":
        return run | {"status": "failed", "best": None, "curve": [], "reason": "ValueError: fixture reason"}
    return run


def make_card() -> Record:
    return {
        "lock": "specdef",
        "config": {
            "alpha": 0.5,
            "top_k": 8,
            "optimizer": "adam",
            "lr": 3e-4,
            "steps": 195,
            "retain": "task",
            "max_utility_drop": 0.02,
        },
        "seed": 0,
        "chosen_step": 180,
        "utility_base": 1.0,
        "utility_locked": 0.988,
        "curve": [
            [step, 1 - 0.012 * (step / 180) ** 2 - 0.004 * (step % 60 == 30), 4.14 + 0.98 * step / 195]
            for step in range(0, 196, 15)
        ],
    }


def make_task(
    name: str, labels: list[str], train: int, test: int, chance: float, stand_in: str | None
) -> Record:
    return {
        "name": name,
        "labels": labels,
        "train": train,
        "test": test,
        "chance": chance,
        "metric": "accuracy",
        "source": {
            "kind": "package",
            "origin": "fixture-data==1.0",
            "sha256": "c0de" * 16,
            "stand_in": stand_in,
        },
    }


def make_spectra(draw: random.Random, matrices: int) -> list[Record]:
    parts = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "intermediate",
        "output",
    )
    entries = []
    for i in range(matrices):
        base = [round((21.0 if i == 0 else 2.2 + 4 * draw.random()) * 0.86**j, 4) for j in range(8)]
        growth = 1.02 + 1.9 * draw.random() ** 3
        entries.append(
            {
                "name": f"encoder.layer.{i // 6}.{parts[i % 6]}.weight" if i else "embeddings.word.weight",
                "shape": [384, 1536 if i % 6 == 4 else 384],
                "base": base,
                "locked": [round(sigma * growth, 4) for sigma in base],
            }
        )
    return entries


@pytest.fixture(name="make_record")
def _make_record() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def small() -> Record:
    """The same at one seed and one learning rate, for what does not depend on the number of runs."""
    return make_record(seeds=(0,), rates=(1e-4,), matrices=3)


@pytest.fixture(scope="session")
def page() -> str:
    """The rendered page of an untouched record."""
    return render(make_record())
