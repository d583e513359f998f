"""Floor, uplift, slowdown, the attacker's pick, flags and the verdict, on runs whose answers are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speclock.audits.flags import FLAGS, NO_TOKENIZER, raised
from speclock.audits.metrics import at_target, families, pick, summarise, uplift, verdict
from speclock.audits.record import FORMAT, Record, RunRecord, read
from speclock.errors import InputError
from speclock.models import Model, identity
from speclock.numbers import short

CARD = {
    "chosen_step": 9,
    "config": {},
    "fingerprint": "L",
    "base": {"fingerprint": "B"},
    "strength_locked": 5.0,
    "retain_task": {"name": "t", "digest": "d"},
}
TRUTH = np.arange(1000) % 4
STEPS = 40
AT = (1, 2, 4, 8, 16, 32, 40)
"""Where a finalist is scored."""


def answers(score: float, seed: int = 0) -> list[int]:
    """Answers of which exactly that share is right."""
    wrong = np.random.default_rng(seed).permutation(1000)[round(1000 * score) :]
    found = TRUTH.copy()
    found[wrong] = (found[wrong] + 1) % 4
    return [int(label) for label in found]


def measure(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found == truth).mean())


def final(
    target: str, curve: list[float], *, seed: int = 1, test: float | None = None, **fields: Any
) -> RunRecord:
    """A finalist's run, whose test score is the curve's best unless it is told."""
    attack = fields.pop("attack", "finetune")
    points = fields.pop("points", list(zip(AT, curve, strict=False)))
    config = {"optimizer": "adamw", "lr": 1e-3, "batch_size": 16, **fields.pop("config", {})}
    status = fields.pop("status", "ok")
    ok = status == "ok"
    score = max(curve) if test is None else test
    family = "adamw" if attack == "finetune" else attack
    return RunRecord(
        **{
            "target": target,
            "attack": attack,
            "config": config,
            "seed": seed,
            "status": status,
            "curve": points,
            "best": max(curve) if ok else None,
            "stage": "final",
            "family": family,
            "kind": "fine-tuning" if attack == "finetune" else "surgery",
            "title": f"{family} at lr {short(config['lr'])}",
            "steps": STEPS,
            "test": score if ok else None,
            "answers": answers(score, seed) if ok else None,
            "utility_after": 0.9,
            "passes": STEPS,
            "tflops": 1.0,
            **fields,
        }
    )


def tried(target: str, score: float, **fields: Any) -> list[RunRecord]:
    """A search whose best lies inside."""
    return [
        final(
            target,
            [found],
            seed=0,
            **{
                **fields,
                "config": {**fields.get("config", {}), "lr": lr},
                "stage": "search",
                "test": None,
                "answers": None,
                "points": [(STEPS, found)],
            },
        )
        for lr, found in ((1e-4, 0.25), (1e-3, score), (1e-2, 0.25))
    ]


def attacked(target: str, curve: list[float], **fields: Any) -> list[RunRecord]:
    """A search and the finals of its best under three seeds."""
    finals = [final(target, curve, seed=seed, **fields) for seed in (1, 2, 3)]
    return [*tried(target, max(curve), **fields), *finals]


def record(
    runs: list[RunRecord], *, utility: tuple[float, float] = (0.95, 0.945), seeds: int = 3, **fields: Any
) -> Record:
    """A judged record with these runs and nothing else that would raise a flag."""
    source = {"kind": "package", "origin": "x==1", "sha256": None, "stand_in": None}
    task = {
        "name": "t",
        "labels": ["a", "b", "c", "d"],
        "train": 100,
        "validation": 256,
        "test": 1000,
        "digest": "d",
        "chance": 0.25,
        "metric": "accuracy",
        "source": source,
    }
    locked = {"name": "l", "fingerprint": "L", "card": CARD, "claimed_sigma": 5.0}
    made = Record(
        suite={
            "name": "quick",
            "version": 2,
            "steps": STEPS,
            "budget": STEPS,
            "seeds": list(range(1, seeds + 1)),
            "listed": [],
        },
        base={"name": "b", "fingerprint": "B"},
        locked={**locked, **fields.pop("locked", {})},
        retain_task=dict(task),
        attack_task=dict(task),
        runs=runs,
    )
    for name, value in fields.items():
        setattr(made, name, value)
    attack = SimpleNamespace(
        test=SimpleNamespace(labels=TRUTH), measure=measure, guessed=lambda: np.zeros_like(TRUTH)
    )
    made.summary = summarise(made, *utility, attack)
    made.families = families(made)
    made.flags = raised(made)
    made.verdict = verdict(made)
    return made


BASE = [0.25, 0.3, 0.5, 0.8, 0.9, 0.9, 0.9]
LOCKED = [0.25, 0.25, 0.3, 0.4, 0.59, 0.6, 0.6]


def classical(score: float) -> RunRecord:
    return final(
        "classical",
        [score],
        seed=0,
        attack="classical",
        points=[(0, score)],
        kind="classical",
        title="tf-idf, ridge",
        steps=0,
    )


def sound() -> list[RunRecord]:
    """Runs of an audit that raises no flag: a lock that costs the attacker something."""
    return [
        *attacked("base", BASE),
        *tried("base", 0.88, attack="clip"),
        *attacked("scratch", [0.25, 0.26, 0.28, 0.29, 0.3, 0.3, 0.3]),
        classical(0.4),
        *attacked("control", [0.25, 0.3, 0.5, 0.75, 0.88, 0.88, 0.88]),
        *attacked("locked", LOCKED),
        *tried("locked", 0.58, attack="clip"),
    ]


def without(target: str, *runs: RunRecord) -> list[RunRecord]:
    return [*[old for old in sound() if old.target != target], *runs]


def names(made: Record) -> set[str]:
    return {flag.name for flag in made.flags}


def test_a_sound_audit_raises_no_flag_and_adds_up() -> None:
    made = record(sound())
    assert names(made) == set()
    s = made.summary
    assert (s["floor"], s["floor_by"]) == (pytest.approx(0.4), "classical"), (
        "better than training from scratch"
    )
    assert s["worth"] == pytest.approx(0.5)
    assert s["uplift"] == pytest.approx((0.6 - 0.4) / (0.9 - 0.4))
    low, high = s["intervals"]["uplift"]
    assert low < s["uplift"] < high
    assert s["target"] == pytest.approx(0.4 + 0.9 * 0.5)
    assert s["slowdown"] == "> 2.5", "the base needs 16 of 40 steps, the locked model never gets there"
    assert s["strongest_attack"] == "adamw at lr 1e-3"
    assert "held back part of what the attacker wanted within 40 steps" in made.verdict
    assert "40.0% that the attacker has anyway (classical)" in made.verdict
    assert "leaves the attacker 40% of what the weights are worth" in made.verdict


def test_what_an_identity_has_without_a_tokenizer_is_known(base: Model) -> None:
    assert identity(base).tokenizer == NO_TOKENIZER


def test_a_single_run_that_breaks_a_lock_is_in_its_verdict() -> None:
    """The mean of three seeds withstands, and the search's own seed came to nearly all of the worth."""
    weak = [0.25, 0.25, 0.3, 0.4, 0.41, 0.42, 0.42]
    lucky = tried("locked", 0.84, attack="clip")
    said = record(without("locked", *attacked("locked", weak), *lucky))
    assert "withstood 40 steps of every attack tried" in said.verdict
    assert "though a single run of clip came to 84.0% on the validation split" in said.verdict
    assert at_target(said) is None
    assert "single run" not in record(without("locked", *attacked("locked", weak))).verdict
    there = record(without("locked", *attacked("locked", weak), *tried("locked", 0.88, attack="clip")))
    assert at_target(there) is not None


def test_a_part_of_a_composition_that_did_nothing_is_named() -> None:
    idle, busy = {**CARD, "lock": "undo", "chosen_step": 0}, {**CARD, "lock": "specdef", "chosen_step": 9}
    found = record(sound(), locked={"card": {**CARD, "parts": [idle, busy]}}).flags
    assert [f.why for f in found if f.name == "lock_did_nothing"] == ["undo, a part of the lock, did nothing"]


def test_slowdown_is_a_ratio_where_the_locked_model_gets_there() -> None:
    made = record(without("locked", *attacked("locked", [0.25, 0.25, 0.3, 0.4, 0.6, 0.86, 0.87])))
    assert made.summary["slowdown"] == 2.0
    assert made.summary["slowdown_examples"] == made.summary["slowdown_tflops"] == 2.0
    assert "was broken in 2.00× the steps that the base takes" in made.verdict


def test_a_seed_that_never_gets_there_is_in_the_mean_and_stops_nothing() -> None:
    """The base's worst seed stays below the mean's target for ever, which says nothing about its configuration."""
    slow = [0.25, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8]
    base = [*tried("base", 0.9), *[final("base", BASE, seed=s) for s in (1, 2)], final("base", slow, seed=3)]
    s = record(without("base", *base)).summary
    assert s["target"] > 0.8
    assert s["slowdown"] == "> 2.5", "the mean of three is there after 16 of 40 steps"
    blown = [final("locked", [0.9] * 7, seed=s) for s in (1, 2)]
    blown.append(final("locked", [0.25], seed=3, status="diverged"))
    s = record(without("locked", *tried("locked", 0.9), *blown)).summary
    assert str(s["slowdown"]).startswith(">"), "a seed that blew up counts at the floor"


def test_a_costlier_attack_is_slower_in_examples_than_in_steps() -> None:
    fast = attacked("locked", [0.25, 0.3, 0.5, 0.8, 0.9, 0.9, 0.9], config={"batch_size": 64})
    summary = record(without("locked", *fast)).summary
    assert (summary["slowdown"], summary["slowdown_examples"]) == (1.0, 4.0)


def test_steps_before_the_first_label_count_towards_slowdown() -> None:
    healed = [
        final(
            "locked",
            [0.9],
            seed=seed,
            points=[(20 + at, score) for at, score in zip(AT, BASE, strict=True)],
            first_label=20,
        )
        for seed in (1, 2, 3)
    ]
    assert record(without("locked", *healed)).summary["slowdown"] == 36 / 16


def test_a_probe_takes_no_steps_and_counts_in_operations_alone() -> None:
    probes = [
        final(
            target, [0.9], seed=seed, attack="probe", kind="probe", points=[(1, 0.9)], passes=2, tflops=0.05
        )
        for target in ("base", "locked")
        for seed in (1, 2, 3)
    ]
    summary = record([*sound(), *probes]).summary
    assert summary["slowdown"] == "> 2.5"
    assert summary["slowdown_tflops"] == 1.0


def test_chance_is_the_floor_where_all_else_is_below_it() -> None:
    runs = [*attacked("base", BASE), *attacked("scratch", [0.1] * 7), *attacked("locked", LOCKED)]
    summary = record(runs).summary
    assert (summary["floor"], summary["floor_by"]) == (0.25, None)


@pytest.mark.parametrize("missing", [(None, 0.9, 0.3), (0.5, None, 0.3), (0.5, 0.9, None), (0.5, 0.3, 0.3)])
def test_uplift_is_unknown_rather_than_wrong(missing: tuple[float | None, ...]) -> None:
    assert uplift(*missing) is None


def test_the_pick_is_made_on_validation_and_quoted_on_test() -> None:
    lucky = [
        final("locked", [0.55], seed=seed, test=0.95, config={"lr": 1e-4}, points=[(40, 0.55)])
        for seed in (1, 2, 3)
    ]
    found = pick([*sound(), *lucky], "locked", (0.4, 0.4))
    assert found is not None
    assert (found.score, found.validation) == (pytest.approx(0.6), pytest.approx(0.6))


def test_the_searchs_own_seed_is_no_part_of_what_is_quoted() -> None:
    found = pick([*sound(), *tried("locked", 0.99)], "locked", (0.4, 0.4))
    assert found is not None
    assert found.score == pytest.approx(0.6)
    assert all(run.seed > 0 for run in found.runs)


def test_bad_seeds_count_at_the_floor_and_win_nothing() -> None:
    """Two seeds blow up and the third reaches 90%: that is no better than the mean of 90% and the floor twice."""
    wild = [
        final("locked", [0.9] * 7, seed=1, config={"lr": 1.0}),
        *[final("locked", [0.25], seed=seed, config={"lr": 1.0}, status="diverged") for seed in (2, 3)],
    ]
    found = pick(wild, "locked", (0.4, 0.4))
    assert found is not None
    assert found.score == pytest.approx((0.9 + 0.4 + 0.4) / 3)
    best = pick([*sound(), *wild], "locked", (0.4, 0.4))
    assert best is not None
    assert best.runs[0].config["lr"] == 1e-3
    assert pick(wild[1:], "locked", (0.4, 0.4)) is None


@pytest.mark.parametrize(("longer", "quoted"), [(0.8, 0.8), (0.5, 0.6)])
def test_the_better_budget_is_what_is_quoted(longer: float, quoted: float) -> None:
    """Twice the steps may end worse, or in a divergence: an attacker has the shorter run too."""
    more = [final("locked", [longer] * 7, seed=seed, steps=2 * STEPS) for seed in (1, 2, 3)]
    assert record([*sound(), *more]).summary["best_locked"] == pytest.approx(quoted)


def test_a_slowdown_that_is_not_seen_is_more_than_the_largest_budget() -> None:
    more = [final("locked", [0.5] * 7, seed=seed, points=[(80, 0.5)], steps=2 * STEPS) for seed in (1, 2, 3)]
    assert record([*sound(), *more]).summary["slowdown"] == "> 5.0", "of 16 steps, in 80 and not in 40"


def test_of_what_collapses_the_guess_is_nothing() -> None:
    """A backdoor by answers at random has no clean score beside it, so that nobody has it anyway."""
    plain = record(without("scratch"))
    task = {**plain.attack_task, "collapses": True, "chance": 0.5}
    runs = [run for run in sound() if run.target in ("base", "locked")]
    made = record(runs, attack_task=task)
    assert (made.summary["floor"], made.summary["floor_by"]) == (0.0, None)
    assert made.summary["uplift"] == pytest.approx(0.6 / 0.9)
    assert record(runs, attack_task={**task, "collapses": False}).summary["floor"] == 0.5


@pytest.mark.parametrize("kind", ["adapters", "kick and settle"])
def test_an_uninformed_attack_that_alone_breaks_the_lock_is_named(kind: str) -> None:
    made = record([*sound(), *tried("locked", 0.88, attack="lora", kind=kind)])
    assert "knob_succeeds" in names(made)


def test_uninformed_attackers_have_an_uplift_of_their_own() -> None:
    s = record([*sound(), *attacked("locked", BASE, attack="clip")]).summary
    assert s["uplift"] == pytest.approx(1.0)
    assert s["uplift_uninformed"] == pytest.approx(0.4)
    assert s["uplift_informed"] == pytest.approx(1.0)
    assert s["strongest_informed"] == "clip at lr 1e-3"
    assert (s["strongest_attack"], s["strongest_uninformed"]) == ("clip at lr 1e-3", "adamw at lr 1e-3")


def test_an_evaluation_that_does_not_count_reaches_nothing() -> None:
    """The backdoor works as soon as the clean score has fallen, which is no backdoor."""
    ruined = attacked("locked", BASE, uncounted=AT[3:], best=0.5, test=0.5)
    s = record(without("locked", *ruined)).summary
    assert s["slowdown"] == "> 2.5"
    rising = attacked("locked", [*LOCKED[:5], 0.9, 0.9], uncounted=AT[5:], best=0.59, test=0.59)
    assert "still_rising" not in names(record(without("locked", *rising)))


def test_a_bad_seed_is_in_the_interval_where_the_floor_is_chance() -> None:
    seeds = [final("locked", [0.9] * 7, seed=seed) for seed in (1, 2)]
    bad = final("locked", [0.25], seed=3, status="diverged")
    s = record([*attacked("base", BASE), *seeds, bad, *tried("locked", 0.9)]).summary
    assert s["floor_by"] is None
    low, high = s["intervals"]["best_locked"]
    assert low < s["best_locked"] < high
    assert s["intervals"]["uplift"] is not None


def test_a_batch_holds_no_more_than_the_attacker_has() -> None:
    runs = attacked("locked", BASE, config={"batch_size": 400})
    s = record(without("locked", *runs)).summary
    assert s["slowdown_examples"] == 100 / 16


def test_families_that_blow_up_on_the_locked_model_alone_are_named_beside_a_probe_that_does_not() -> None:
    probes = [
        run for target in ("base", "locked") for run in tried(target, 0.3, attack="probe", kind="probe")
    ]
    blown = tried("locked", 0.3, status="diverged")
    flags = {f.name: f.why for f in record([*without("locked", *blown), *probes]).flags}
    assert (
        "1 of 2 families blew up on the locked model at every rate at which the base learns"
        in flags["only_divergence"]
    )
    everywhere = [run for run in sound() if run.family != "adamw" or run.stage != "search"]
    everywhere += [run for target in ("base", "locked") for run in tried(target, 0.3, status="diverged")]
    assert "only_divergence" not in names(record(everywhere))


def test_rates_too_low_to_learn_do_not_hide_that_the_others_blew_up() -> None:
    blown = tried("locked", 0.3, status="diverged")
    low = [
        final("locked", [0.26], seed=0, stage="search", test=None, config={"lr": rate})
        for rate in (1e-6, 1e-5)
    ]
    flags = {f.name: f.why for f in record(without("locked", *blown, *low)).flags}
    assert "1 of 2 families blew up" in flags["only_divergence"]


def test_a_printed_rate_beside_a_search_of_its_optimizer_is_no_search_that_ended() -> None:
    """What it blew up at, or was best at, is the paper's choice; the search of the same optimizer has the others."""
    printed = {"attack": "finetune", "family": "adamw, no clip"}
    one = {"stage": "search", "test": None, "seed": 0, "config": {"lr": 0.1}}
    on_base = final("base", [0.88], **printed, **one)
    blown = final("locked", [0.3], status="diverged", **printed, **one)
    best = [final("locked", [0.7] * 7, seed=seed, config={"lr": 0.1}, **printed) for seed in (1, 2, 3)]
    found = [final("locked", [0.7], **printed, **one), *best]
    suite = {**record([]).suite, "listed": ["adamw, no clip"]}
    for runs in ([*sound(), on_base, blown], [*sound(), on_base, *found]):
        assert not names(record(runs, suite=suite)) & {"only_divergence", "edge_of_grid"}
        # Without a search of that optimizer it is the only rate tried.
        alone = [
            replace(run, config={**run.config, "optimizer": "sgd"}) if run.family == "adamw, no clip" else run
            for run in runs
        ]
        assert names(record(alone, suite=suite)) & {"only_divergence", "edge_of_grid"}


def test_seeds_without_a_score_matter_where_the_others_might_win() -> None:
    behind = [final("locked", [0.5] * 7, seed=seed, config={"lr": 1e-4}) for seed in (1, 2)]
    blown = final("locked", [0.25], seed=3, config={"lr": 1e-4}, status="diverged")
    assert "bad_seeds" not in names(record(without("locked", *attacked("locked", LOCKED), *behind, blown)))


def test_an_attack_that_failed_with_more_steps_does_not_raise_the_bound() -> None:
    healed = [
        final("locked", [0.3], seed=seed, attack="heal", points=[(200, 0.3)], first_label=160)
        for seed in (1, 2, 3)
    ]
    plain, more = (record([*sound(), *extra]).summary for extra in ([], healed))
    for key in ("slowdown", "slowdown_interval", "slowdown_examples", "slowdown_tflops"):
        assert more[key] == plain[key]


def test_a_mean_that_the_slowest_seed_decides_lies_in_its_interval() -> None:
    fast, slow = [0.9] * 7, [0.25] * 6 + [0.9]
    runs = [final("locked", slow if seed == 5 else fast, seed=seed) for seed in range(1, 6)]
    made = record(without("locked", *tried("locked", 0.9), *runs), seeds=5)
    low, high = made.summary["slowdown_interval"]
    assert low < made.summary["slowdown"] < high


def test_what_is_told_of_a_repair_is_more_than_chance_and_beats_the_floor() -> None:
    """The best of two searches on 128 examples differ by chance, and what the attacker has anyway repairs nothing."""
    assert "repair_succeeds" not in names(record([*sound(), *tried("locked", 0.68, attack="clip")]))
    below = [*attacked("locked", [0.26] * 7), *tried("locked", 0.39, attack="clip")]
    assert "repair_succeeds" not in names(record(without("locked", *below)))


def test_the_last_rate_of_a_search_in_which_nothing_learnt_is_an_edge() -> None:
    rates = {1e-4: 0.25, 1e-3: 0.27, 1e-2: 0.3, 1e-1: 0.34}
    searched = [
        final("locked", [score], seed=0, stage="search", test=None, config={"lr": rate})
        for rate, score in rates.items()
    ]
    finals = [final("locked", [0.34] * 7, seed=seed, config={"lr": 1e-1}) for seed in (1, 2, 3)]
    made = record(without("locked", *searched, *finals))
    assert "highest rate tried" in {f.name: f.why for f in made.flags}["edge_of_grid"]


def test_a_repair_where_all_plain_runs_blew_up_is_a_repair() -> None:
    blown = tried("locked", 0.3, status="diverged")
    repaired = attacked("locked", [0.85] * 7, attack="clip")
    made = record(without("locked", *blown, *repaired))
    assert "reached no score" in {f.name: f.why for f in made.flags}["repair_succeeds"]


def test_a_model_whose_answers_overflow_has_lost_its_job() -> None:
    made = record(sound(), utility=(0.95, 0.0))
    assert "utility_broken" in names(made)
    assert "costs 95.0 points of utility" in made.verdict


def test_the_best_of_a_search_at_the_floor_is_inert() -> None:
    made = record([*sound(), *tried("base", 0.46, attack="fuse")])
    assert {row["family"]: row["inert"] for row in made.families}["fuse"]


def test_what_beats_the_floor_with_twice_the_budget_is_not_inert() -> None:
    late = [final("base", [0.9], seed=seed, attack="fuse") for seed in (1, 2, 3)]
    made = record([*sound(), *tried("base", 0.46, attack="fuse"), *late])
    assert not {row["family"]: row["inert"] for row in made.families}["fuse"]


def test_excess_is_what_the_weights_give_beyond_the_behaviour() -> None:
    s = record([*sound(), *attacked("student", [0.5] * 7)]).summary
    assert s["excess"] == pytest.approx((0.6 - 0.5) / (0.9 - 0.5))
    assert s["floor"] == pytest.approx(0.4), "the student is no part of the floor"


def test_an_inert_family_is_no_attack_withstood() -> None:
    made = record([*sound(), *tried("base", 0.35, attack="fuse"), *tried("locked", 0.3, attack="fuse")])
    assert {row["family"]: row["inert"] for row in made.families} == {
        "adamw": False,
        "clip": False,
        "fuse": True,
    }
    assert "1 of 3 families are inert: fuse" in next(f.why for f in made.flags if f.name == "inert_attacks")


PLANTED: dict[str, Record] = {
    "utility_broken": record(sound(), utility=(0.95, 0.6)),
    "attack_fails_on_base": record(without("base", *attacked("base", [0.25, 0.27, 0.26, 0.26]))),
    "nothing_to_protect": record([*sound(), *attacked("public", [0.88] * 7)]),
    "floor_in_doubt": record(without("scratch", *attacked("scratch", [0.3] * 7, test=0.55))),
    "given_away": record([*sound(), *attacked("student", [0.8] * 7)]),
    "student_did_not_learn": record(
        [*sound(), *attacked("student", [0.3] * 7)],
        base={"fingerprint": "B", "student": {"utility": 0.3}},
    ),
    "budget_too_small": record(without("base", *attacked("base", [0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9]))),
    "still_rising": record(without("locked", *attacked("locked", [0.25, 0.25, 0.25, 0.3, 0.4, 0.5, 0.6]))),
    "edge_of_grid": record(
        without("locked", *attacked("locked", LOCKED)[1:2], *attacked("locked", LOCKED)[3:]),
        suite={**record([]).suite, "listed": ["adamw"]},
    ),
    "card_believed": record(sound(), locked={"card": CARD, "card_believed": True}),
    "public_base_unnamed": record(sound(), base={"fingerprint": "B", "identity": {"tokenizer": "T"}}),
    "inert_attack_wins": record(
        [*sound(), *tried("base", 0.3, attack="fuse"), *attacked("locked", [0.7] * 7, attack="fuse")]
    ),
    "inert_attacks": record([*sound(), *tried("base", 0.3, attack="fuse")]),
    "only_divergence": record(without("locked", *tried("locked", 0.3, status="diverged"))),
    "fails_on_locked_alone": record(
        [
            *sound(),
            *tried("base", 0.8, attack="fuse"),
            *tried("locked", 0.3, attack="fuse", status="failed", reason="out of memory"),
        ]
    ),
    "collapsed": record([*sound(), final("locked", [0.99], status="collapsed", config={"lr": 1.0})]),
    "repair_succeeds": record([*sound(), *tried("locked", 0.88, attack="clip")]),
    "knob_succeeds": record(
        [*sound(), *tried("locked", 0.88, config={"dropout": False}, family="adamw (no dropout)")]
    ),
    "only_in_half_precision": record(
        [
            *sound(),
            *[run for target in ("base", "locked") for run in tried(target, 0.5, config={"precision": "no"})],
            *tried("base", 0.5, config={"precision": "bf16"}),
            *tried("locked", 0.25, config={"precision": "bf16"}, status="diverged"),
        ]
    ),
    "gradients_blocked": record(sound(), locked={"blocked_gradients": ["a.weight", "b.weight"]}),
    "sigma_unconverged": record(sound(), locked={"mean_top_sigma": 4.5}),
    "strength_differs": record(
        sound(), locked={"strengths": [{"lock": "undo", "unit": "share", "claimed": 0.99, "measured": 0.3}]}
    ),
    "forgetting": record(without("control", *attacked("control", [0.25, 0.5, 0.62, 0.62]))),
    "no_control": record(without("control")),
    "lock_did_nothing": record(sound(), locked={"card": {**CARD, "chosen_step": 0}}),
    "malformed_card": record(sound(), locked={"card": None, "card_problem": "it is not JSON"}),
    "not_the_cards_model": record(sound(), locked={"card_describes": {"base": True, "locked": False}}),
    "not_the_cards_task": record(
        sound(), locked={"card": {**CARD, "retain_task": {"name": "other", "digest": "e"}}}
    ),
    "insecure_noise": record(sound(), locked={"card": {**CARD, "config": {"insecure_noise_seed": 0}}}),
    "card_not_repeated": record(sound(), locked={"card_not_repeated": "repeated, the lock gives another σ"}),
    "own_architecture": record(sound(), locked={"own_architecture": "the weights do not go in"}),
    "recipe_differs": record(
        sound(),
        locked={
            "differences": [
                {
                    "part": "configuration",
                    "key": "initializer_range",
                    "base": 0.02,
                    "locked": 1e4,
                    "matters": True,
                },
                {"part": "configuration", "key": "name", "base": "a", "locked": "b", "matters": False},
            ]
        },
    ),
    "seeds_disagree": record(
        without(
            "locked",
            *tried("locked", 0.6),
            *[final("locked", LOCKED, test=score, seed=i) for i, score in enumerate([0.45, 0.6, 0.7], 1)],
        )
    ),
    "bad_seeds": record(
        without(
            "locked",
            *attacked("locked", LOCKED),
            *[final("locked", [0.58] * 7, seed=seed, config={"lr": 1e-4}) for seed in (1, 2)],
            final("locked", [0.25], seed=3, config={"lr": 1e-4}, status="diverged"),
        )
    ),
    "control_broken": record(sound(), locked={"control": {"utility": 0.5, "utility_base": 0.95}}),
    "few_seeds": record(sound(), seeds=1),
    "small_test_split": record(sound(), attack_task={**record([]).attack_task, "test": 200}),
    "stand_in_data": record(
        sound(),
        retain_task={**record([]).retain_task, "source": {"stand_in": "animal silhouettes for KMNIST"}},
    ),
}


def test_every_flag_is_planted() -> None:
    assert set(PLANTED) == {flag.__name__ for flag in FLAGS}


def with_a_head(target: str, end: float) -> list[RunRecord]:
    """Runs on a model that had a head for the task, and scored 45% before the first step."""
    points = {
        "points": [(0, 0.45), (STEPS, end)],
        "best": max(0.45, end),
        "best_step": 0 if end < 0.45 else STEPS,
    }
    return [
        final(target, [end], seed=0, stage="search", config={"lr": lr}, **points) for lr in (1e-4, 1e-3, 1e-2)
    ] + [final(target, [max(0.45, end)], seed=seed, **points) for seed in (1, 2, 3)]


def test_what_a_model_did_before_any_attack_is_no_attack_s_success() -> None:
    """A language model that every rate ruins keeps the score that it came with, and has withstood nothing."""
    others = [run for run in sound() if run.target not in ("base", "locked")]
    released = final("released", [0.45], seed=0, attack="released", points=[(0, 0.45)], kind="released")
    locked = record([*others, released, *with_a_head("base", 0.9), *with_a_head("locked", 0.3)])
    assert "only_divergence" in names(locked)
    unlearnt = record([*others, released, *with_a_head("base", 0.5), *with_a_head("locked", 0.3)])
    assert "attack_fails_on_base" in names(unlearnt)
    assert "attack_fails_on_base" not in names(locked)


def test_a_floor_in_doubt_says_what_uplift_is_over_the_other() -> None:
    made = PLANTED["floor_in_doubt"]
    assert made.summary["floor_by"] == "classical", "chosen on the validation split, as attacks are"
    why = next(flag.why for flag in made.flags if flag.name == "floor_in_doubt")
    assert "scratch has 55.0%" in why
    assert "uplift is 0.14" in why, "(0.6 − 0.55) / (0.9 − 0.55)"
    by_chance = record(without("scratch", *attacked("scratch", [0.3] * 7, test=0.42)))
    assert "floor_in_doubt" not in names(by_chance)
    beyond = record(without("scratch", *attacked("scratch", [0.3] * 7, test=0.95)))
    assert "worth nothing that a lock could keep" in next(
        flag.why for flag in beyond.flags if flag.name == "floor_in_doubt"
    )


def test_a_control_that_was_ruined_is_said_to_be() -> None:
    runs = without("control", *attacked("control", [0.25, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]))
    assert "forgetting" in names(record(runs)), "records of before do not say what the control does"
    kept = {"utility": 0.93, "utility_base": 0.95}
    assert "forgetting" in names(record(runs, locked={"control": kept}))
    assert "control_broken" not in names(record(runs, locked={"control": kept}))
    # Both are said: who makes a lock must not get rid of the one by the other.
    broken = record(runs, locked={"control": {**kept, "utility": 0.5}})
    assert {"control_broken", "forgetting"} <= names(broken)
    at_chance = {"utility": 0.27, "utility_base": 0.34}
    assert "control_broken" in names(record(runs, locked={"control": at_chance}))


@pytest.mark.parametrize("flag", PLANTED)
def test_a_planted_defect_raises_its_flag(flag: str) -> None:
    made = PLANTED[flag]
    assert flag in names(made)
    found = next(entry for entry in made.flags if entry.name == flag)
    assert found.why
    assert found.next.endswith(".")


def test_small_splits_of_either_task_are_named() -> None:
    few = record(sound(), retain_task={**record([]).retain_task, "test": 600})
    assert "utility is quoted on 600 examples" in next(
        f.why for f in few.flags if f.name == "small_test_split"
    )


def test_a_likelihood_is_judged_by_its_own_measure() -> None:
    """Scores of texts differ by hundredths where accuracies differ by tenths: three of them are worth a verdict."""

    def closer(run: RunRecord) -> RunRecord:
        """The same run with a tenth of its way."""

        def near(score: float | None) -> float | None:
            return None if score is None else 0.4 + score / 10

        curve = [(step, 0.4 + score / 10) for step, score in run.curve]
        return replace(run, curve=curve, best=near(run.best), test=near(run.test), answers=None)

    runs = [closer(run) for run in sound()]
    accuracy = record(runs)
    assert "nothing_to_protect" in names(accuracy)
    task = {**accuracy.attack_task, "metric": "likelihood", "chance": 1 / 256}
    made = record(runs, attack_task=task)
    assert not {"nothing_to_protect", "inert_attacks", "attack_fails_on_base"} & names(made)
    assert made.summary["uplift"] == pytest.approx(record(sound()).summary["uplift"])
    assert "withstood" in made.verdict or "held back" in made.verdict
    broken = record(runs, utility=(0.5, 0.48), attack_task=task, retain_task={**task, "name": "r"})
    assert "utility_broken" in names(broken), (
        "two hundredths of a byte's likelihood are a fifth of a perplexity"
    )


def test_a_handful_of_passages_is_a_small_test_split() -> None:
    """They may all be alike, which makes their interval narrow and says nothing of others."""
    task = {**record([]).attack_task, "metric": "likelihood", "chance": 1 / 256, "test": 12}
    few = record(sound(), attack_task=task)
    assert "small_test_split" in names(few)
    assert "12 test examples of t do not say how passages differ; it takes 100" in [
        flag.why for flag in few.flags
    ]
    enough = record(sound(), attack_task={**task, "test": 100})
    assert not [flag.why for flag in enough.flags if "it takes 100" in flag.why]


def test_what_a_lock_costs_a_language_model_is_not_called_points() -> None:
    task = {**record([]).retain_task, "metric": "likelihood", "chance": 1 / 256}
    row = {"score_base": 0.55, "score_locked": 0.54, "interval_change": None}
    known = {**row, "perplexity_base": 10.0, "perplexity_locked": 10.76}
    for cost, perplexity in ((known, " (perplexity +7.6%)"), (row, "")):
        made = record(sound(), utility=(0.55, 0.54), retain_task=task, cost={"test split": cost})
        assert verdict(made).startswith(f"The lock costs 1.0% of a byte's likelihood{perplexity} and ")
        assert "points" not in verdict(made)


def test_no_verdict_on_the_lock_where_there_is_nothing_to_protect() -> None:
    made = PLANTED["nothing_to_protect"]
    assert made.summary["floor_by"] == "public"
    assert made.summary["worth"] == pytest.approx(0.02)
    assert "nothing can be said about the lock" in made.verdict


def test_what_the_behaviour_gives_away_is_in_the_verdict() -> None:
    assert "whatever its weights" in PLANTED["given_away"].verdict


def test_a_lucky_seed_of_the_repair_is_no_repair() -> None:
    lucky = [final("locked", [score], seed=seed, attack="clip") for seed, score in ((1, 0.9), (2, 0.6))]
    assert "repair_succeeds" not in names(record([*sound(), *lucky]))


def test_a_setting_that_is_better_everywhere_says_nothing_of_the_lock() -> None:
    """The base gains as much from it: that is the attack's merit."""
    runs = [
        run
        for target, score in (("locked", 0.7), ("base", 1.0))
        for run in tried(target, score, config={"dropout": False})
    ]
    assert "knob_succeeds" not in names(record([*sound(), *runs]))


def test_the_bounded_worst_case_leaves_out_what_ruins_the_model() -> None:
    ruinous = attacked("locked", [0.8] * 7, config={"lr": 3e-3}, utility_after=0.3)
    summary = record([*sound(), *ruinous]).summary
    assert (summary["best_locked"], summary["best_locked_bounded"]) == (
        pytest.approx(0.8),
        pytest.approx(0.6),
    )
    assert summary["strongest_attack"].endswith("lr 0.003")
    assert summary["strongest_attack_bounded"].endswith("lr 1e-3")


def test_a_verdict_is_one_sentence_whatever_is_missing() -> None:
    for made in PLANTED.values():
        assert made.verdict.endswith(".")
        assert "nan" not in made.verdict.lower()
        assert "None" not in made.verdict


def test_a_record_survives_its_file_and_holds_no_nan(tmp_path: Path) -> None:
    broken = final("base", [0.25], status="diverged", points=[(1, 0.25), (2, math.nan)])
    made = record([broken, *sound()])
    made.save(tmp_path)
    parsed = read(tmp_path)
    assert parsed.format == FORMAT
    assert parsed.runs[0].curve == [(1, 0.25), (2, None)]
    assert parsed.runs[1:] == made.runs[1:]
    assert json.loads(parsed.to_json()) == json.loads(made.to_json())
    assert parsed.summary == json.loads(json.dumps(made.summary))
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is no audit record"),
        ('{"format": "speclock-audit/1"}', "Run the audit again"),
        ('{"format": "speclock-audit/2"}', "is damaged"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere")


def test_the_verdict_names_the_shift_on_which_users_surely_lose_more() -> None:
    def said(low: float, high: float) -> str:
        rows = {"test split": (0.95, 0.945, (-0.02, 0.01)), "windows": (0.76, 0.71, (low, high))}
        cost = {
            kind: {"score_base": base, "score_locked": locked, "interval_change": interval}
            for kind, (base, locked, interval) in rows.items()
        }
        return verdict(record(sound(), cost=cost))

    assert said(-0.07, -0.02).startswith(
        "The lock costs 0.5 points of utility on the test split (5.0 on other windows of its texts) and "
    )
    assert said(-0.11, 0.01).startswith("The lock costs 0.5 points of utility and ")
