"""Records such as audits leave. Fixture data: every number here is made up by a formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import pytest

from speclock.audits.compare import Comparison, compare
from speclock.audits.record import FLOOR, TARGETS, Flag, Record, RunRecord
from speclock.report import render

# Per target: the test score reached, the learning rate that reaches it, how soon.
PLATEAUS = {
    "base": (0.90, 3e-4, 0.25),
    "control": (0.86, 3e-4, 0.3),
    "locked": (0.63, 1e-4, 0.8),
    "student": (0.58, 3e-4, 0.4),
    "scratch": (0.31, 1e-3, 0.5),
    "classical": (0.49, 1.0, 0.0),
    "public": (0.44, 3e-4, 0.5),
}
# Per family: its kind, how much of the plateau it gets, and how much larger its learning rate is.
FAMILIES = {
    "adamw": ("fine-tuning", 1.0, 1.0),
    "sgd-momentum": ("fine-tuning", 0.83, 100.0),
    "zeroth-order": ("fine-tuning", 0.35, 0.1),
    "adamw (parameters norms, no dropout)": ("fine-tuning", 0.8, 10.0),
    "lora, then adamw": ("adapters", 0.93, 3.0),
    "clip, then adamw": ("surgery", 1.04, 1.0),
}
RATES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3)
STEPS, CHANCE, GAP = 64, 0.25, 0.015
"""``GAP`` is how far validation scores lie above test scores, so that a page cannot mix them up unseen."""


def make_record(
    seeds: tuple[int, ...] = (1, 2, 3),
    rates: tuple[float, ...] = RATES,
    matrices: int = 40,
    targets: Iterable[str] = tuple(PLATEAUS),
    plateaus: dict[str, tuple[float, float, float]] | None = None,
) -> Record:
    """A four-newsgroups attack on a guard model, with some runs diverged, failed and pruned."""
    draw = random.Random(0)
    plateaus = PLATEAUS | (plateaus or {})
    runs = []
    for target in targets:
        if target in ("classical", "released"):
            runs.append(make_answered(target, plateaus[target][0]))
            continue
        families = list(FAMILIES)[: 2 if target == "scratch" else None]
        for family in families:
            runs += [make_run(draw, plateaus, target, family, lr, 0, "search") for lr in rates]
        finalists = ["adamw"] if target == "scratch" else ["adamw", "clip, then adamw"]
        lr = min(rates, key=lambda lr: abs(math.log(lr / plateaus[target][1])))
        runs += [
            make_run(draw, plateaus, target, family, lr, seed, "final")
            for family in finalists
            for seed in seeds
        ]
    record = Record(
        command="speclock audit guard-locked --base guard --retain-task jailbreak"
        " --attack-task newsgroups-4 --suite quick --seeds 3 --out audit",
        suite={
            "name": "quick",
            "version": 2,
            "steps": STEPS,
            "budget": STEPS,
            "seeds": list(seeds),
            "listed": [],
            "public_base": None,
            "siblings": [],
        },
        base={
            "name": "guard",
            "fingerprint": "9f2c" * 16,
            "source": {"kind": "package", "origin": "fixture-model==1.0", "sha256": None, "stand_in": None},
            "student": {"utility": 0.967, "lr": 1e-3, "steps": 1000, "rates_tried": 5},
        },
        locked={
            "name": "guard-locked",
            "fingerprint": "51ab" * 16,
            "source": {"kind": "file", "origin": "guard-locked"},
            "card": make_card(),
            "card_problem": None,
            "claimed_sigma": 5.12,
            "mean_top_sigma": 5.118,
            "blocked_gradients": [],
            "differences": [
                {
                    "part": "configuration",
                    "key": "initializer_range",
                    "base": 0.02,
                    "locked": 10000.0,
                    "matters": True,
                },
                {
                    "part": "configuration",
                    "key": "torch_dtype",
                    "base": "float32",
                    "locked": "bfloat16",
                    "matters": False,
                },
            ],
            "no_control": None,
        },
        retain_task=make_task("jailbreak", ["harmless", "harmful"], (1200, 256, 1024), 0.5, None),
        attack_task=make_task(
            "newsgroups-4",
            ["autos", "hockey", "space", "guns"],
            (48, 256, 800),
            CHANCE,
            "the paper's AG News topics",
        ),
        runs=runs,
        spectra=make_spectra(draw, matrices),
        flags=[
            Flag(
                name="given_away",
                why="a fresh network taught the base's answers gives the attacker much of it",
                next="Lock what the model knows beyond its retain task.",
            ),
            Flag(
                name="seeds_disagree",
                why="seeds range from 52.0% to 71.3% on locked",
                next="Run more seeds, and quote the interval rather than the mean.",
            ),
        ],
        environment={
            "python": "3.12.3",
            "torch": "2.13.0",
            "transformers": "4.57.0",
            "device": "cpu",
            "cpu": "fixture CPU",
            "cores": 2,
            "memory_gib": 15.6,
        },
        seconds=312.0,
    )
    summarise_(record)
    return record


def summarise_(record: Record) -> None:
    """Fill in what follows from the runs, by plain means in place of the audit's own statistics."""
    tests: dict[str, float | None] = dict.fromkeys(TARGETS)
    held, picks = {}, {}
    for target in TARGETS:
        groups: dict[str, list[RunRecord]] = {}
        for run in record.runs:
            if run.target == target and run.stage == "final" and run.test is not None:
                groups.setdefault(run.title, []).append(run)
        if groups:
            title = max(groups, key=lambda title: fmean(run.best or 0.0 for run in groups[title]))
            picks[target] = title
            tests[target] = fmean(run.test or 0.0 for run in groups[title])
            held[target] = fmean(run.best or 0.0 for run in groups[title])
    floor_by = max((name for name in FLOOR if name in held), key=lambda name: held[name], default=None)
    floor = CHANCE if floor_by is None else tests[floor_by]
    base, locked, student = tests["base"], tests["locked"], tests["student"]
    assert base is not None
    assert floor is not None

    def over(what: float | None, mark: float | None) -> float | None:
        return None if what is None or mark is None or base <= mark else (what - mark) / (base - mark)

    uplift = over(locked, floor)
    record.summary = {
        "utility_base": 1.0,
        "utility_locked": 0.988,
        **{f"best_{target}": score for target, score in tests.items()},
        "floor": floor,
        "floor_validation": held.get(floor_by or "", CHANCE),
        "floor_by": floor_by,
        "worth": base - floor,
        "uplift": uplift,
        "uplift_uninformed": None if uplift is None else uplift - 0.11,
        "excess": over(locked, student),
        "slowdown": 5.333,
        "slowdown_interval": (3.1, None),
        "slowdown_examples": 6.125,
        "slowdown_tflops": 7.75,
        "target": floor + 0.9 * (held["base"] - floor),
        "strongest_attack": picks.get("locked"),
        "strongest_attacks": picks,
        "strongest_uninformed": "adamw at lr 1e-4",
        "price": {"passes": 211.0, "tflops": 38.25},
        "utility_bound": 0.1,
        "best_locked_bounded": 0.5725,
        "strongest_attack_bounded": "adamw at lr 1e-4",
        "chance": CHANCE,
        "complete": {
            target: {
                "runs": sum(run.target == target for run in record.runs),
                "to_the_end": sum(run.target == target and run.complete for run in record.runs),
            }
            for target in TARGETS
        },
        "intervals": {
            **{
                f"best_{target}": None if score is None else (score - 0.024, score + 0.031)
                for target, score in tests.items()
            },
            "uplift": None if uplift is None else (uplift - 0.17, uplift + 0.19),
            "excess": None,
        },
    }
    record.families = make_families(record.runs, held.get(floor_by or "", CHANCE))
    record.verdict = (
        f"The lock costs 1.2 points of utility and held back part of what the attacker wanted within {STEPS} steps:"
        f" {picks.get('locked')} reached {locked or 0:.1%} where the unlocked base gives {base:.1%} and the floor is"
        f" the {floor:.1%} that the attacker has anyway ({floor_by})."
    )


def make_families(runs: list[RunRecord], floor: float) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.stage != "search" or run.target == "scratch":
            continue
        row = rows.setdefault(
            run.family, {"family": run.family, "kind": run.kind, "informed": run.informed, "targets": {}}
        )
        seen = row["targets"].setdefault(
            run.target, {"best": None, "at": None, "runs": 0, "to_the_end": 0, "failed": 0, "diverged": 0}
        )
        seen["runs"] += 1
        seen["to_the_end"] += run.complete
        if run.status in ("failed", "diverged"):
            seen[run.status] += 1
        if run.best is not None and run.best > (seen["best"] or 0.0):
            seen["best"], seen["at"] = run.best, run.title
    for row in rows.values():
        row["inert"] = (row["targets"].get("base", {}).get("best") or 0.0) <= floor
    return list(rows.values())


def make_run(
    draw: random.Random,
    plateaus: dict[str, tuple[float, float, float]],
    target: str,
    family: str,
    lr: float,
    seed: int,
    stage: str,
) -> RunRecord:
    """One run: a saturating curve with noise; the corners of the grid diverge, fail or are pruned."""
    plateau, peak, pace = plateaus[target]
    kind, share, shift = FAMILIES[family]
    off = math.log10(lr / shift / peak)
    gain = max(0.0, plateau * share - CHANCE) * (1.0 if stage == "final" else math.exp(-0.4 * off**2))
    budget = STEPS * (8 if target == "scratch" else 1)
    first = 8 if kind == "surgery" else 0
    due = [2**i for i in range(int(math.log2(budget)) + 1)]
    due = due if stage == "final" else [budget // 4, budget // 2, 3 * budget // 4, budget]
    curve = []
    for step in due:
        score = CHANCE + GAP + gain * (1 - math.exp(-step / (budget * pace * 0.45))) + draw.gauss(0, 0.008)
        curve.append((first + step, round(min(1.0, max(0.15, score)), 4)))
    best = max(score for _, score in curve)
    run = RunRecord(
        target=target,
        attack="lora" if kind == "adapters" else "clip" if kind == "surgery" else "finetune",
        config={"optimizer": family.split(" ")[-1], "lr": lr, "clip": 1.0, "batch_size": 8},
        seed=seed,
        status="ok",
        curve=curve,
        best=best,
        stage=stage,
        family=family,
        kind=kind,
        title=f"{family} at lr {lr:.0e}".replace("e-0", "e-"),
        steps=budget,
        best_step=max(curve, key=lambda point: point[1])[0],
        utility_after=round(0.99 - 0.2 * draw.random(), 4) if target == "locked" else None,
        first_label=first,
        seconds=round(20 + 15 * draw.random(), 1),
        peak_memory_mb=912.0,
        passes=budget,
        tflops=1.5,
    )
    if stage == "final":
        run.test = round(best - GAP, 4)
        run.answers = [draw.randrange(4) for _ in range(10)]
        return run
    if lr >= 1e-3 and kind != "surgery" and target in ("locked", "control"):
        run.status, run.best, run.best_step = "diverged", None, None
        run.curve, run.reason = curve[:1], "at step 20"
    elif family.startswith("lora") and lr == 1e-5 and target == "locked":
        run.status, run.best, run.best_step, run.curve = "failed", None, None, []
        run.reason = "ValueError: fixture reason"
    elif lr <= 1e-6:
        run.pruned_at, run.curve = curve[1][0], curve[:2]
        run.best = max(score for _, score in run.curve)
    return run


def make_answered(target: str, score: float) -> RunRecord:
    title = "TF-IDF, ridge" if target == "classical" else "as released"
    return RunRecord(
        target=target,
        attack=target,
        config={"pipeline": title},
        seed=0,
        status="ok",
        curve=[(0, score + GAP)],
        best=score + GAP,
        best_step=0,
        stage="final",
        family=target,
        kind=target,
        title=title,
        test=score,
        answers=[0] * 10,
        seconds=2.0,
        peak_memory_mb=300.0,
    )


def collapse_(record: Record, family: str = "sgd-momentum") -> None:
    """Make a family's search on the locked model one whose scores were reached by ruining it."""
    for run in record.runs:
        if run.target == "locked" and run.family == family and run.stage == "search":
            run.status, run.best, run.best_step, run.pruned_at = "collapsed", None, None, None
            run.curve = [(16, 0.4), (32, 0.7325)]
            run.beside, run.reason = {"clean": 0.31}, "no evaluation kept what stands beside it at 80.0%"
    summarise_(record)


def make_card() -> dict[str, Any]:
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
        "strength_base": 4.14,
        "strength_locked": 5.12,
        "curve": [
            [step, 1 - 0.012 * (step / 180) ** 2 - 0.004 * (step % 60 == 30), 4.14 + 0.98 * step / 195]
            for step in range(0, 196, 15)
        ],
    }


def make_task(
    name: str, labels: list[str], sizes: tuple[int, int, int], chance: float, stand_in: str | None
) -> dict[str, Any]:
    return {
        "name": name,
        "labels": labels,
        **dict(zip(("train", "validation", "test"), sizes, strict=True)),
        "digest": f"d16e57-{name}",
        "chance": chance,
        "metric": "accuracy",
        "source": {
            "kind": "package",
            "origin": "fixture-data==1.0",
            "sha256": "c0de" * 16,
            "stand_in": stand_in,
        },
    }


def make_spectra(draw: random.Random, matrices: int) -> list[dict[str, Any]]:
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


def make_comparison() -> Comparison:
    """Two locks of one base, the second with its budget extended and nothing but a bound for its slowdown."""
    gentle, harsh = make_record(), make_record(plateaus={"locked": (0.52, 1e-4, 0.8)})
    harsh.suite["budget"] = 2 * STEPS
    harsh.summary |= {"slowdown": "> 12.0", "utility_locked": 0.941}
    found = compare({"gentle": gentle, "harsh": harsh}, {"command": "audit"})
    found.command = "speclock audit gentle harsh --base guard --out compared"
    return found


@pytest.fixture(name="make_record")
def _make_record() -> Callable[..., Record]:
    return make_record


@pytest.fixture(name="collapse_")
def _collapse() -> Callable[..., None]:
    return collapse_


@pytest.fixture(name="summarise_")
def _summarise() -> Callable[[Record], None]:
    return summarise_


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def small() -> Record:
    """The same at one seed and one learning rate, for what does not depend on the number of runs."""
    return make_record(seeds=(1,), rates=(1e-4,), matrices=3)


@pytest.fixture
def comparison() -> Comparison:
    return make_comparison()


@pytest.fixture(scope="session")
def page() -> str:
    """The rendered page of an untouched record."""
    return render(make_record())
