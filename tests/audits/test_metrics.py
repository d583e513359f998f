"""Uplift, slowdown, the attacker's pick and the verdict, on runs whose answers are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from speclock.audits.flags import FLAGS, raised
from speclock.audits.metrics import steps_to, strongest, summarise, uplift, uplift_interval, verdict
from speclock.audits.record import FORMAT, Record, RunRecord, read
from speclock.errors import InputError
from speclock.numbers import short

CARD = {"chosen_step": 9, "fingerprint": "L", "base": {"fingerprint": "B"}, "strength_locked": 5.0}


def run(
    target: str, scores: list[float], *, seed: int = 0, attack: str = "finetune", **fields: Any
) -> RunRecord:
    """A run whose curve has a point every ten steps."""
    config = {"optimizer": "adamw", "lr": 1e-3, **fields.pop("config", {})}
    status = fields.pop("status", "ok")
    curve = [(10 * i, score) for i, score in enumerate(scores)]
    best = max(scores) if status == "ok" else None
    how = f"adamw at lr {short(config['lr'])}"
    fields = {
        "kind": "fine-tuning" if attack == "finetune" else "surgery",
        "title": how if attack == "finetune" else f"{attack}, then {how}",
        "label": attack,
        **fields,
    }
    return RunRecord(target, attack, config, seed, status, curve, best, 0.9, 1.0, 100.0, **fields)


def around(target: str, scores: list[float], attack: str = "finetune") -> list[RunRecord]:
    """The run at lr 1e-3 and worse ones at the rates beside it, so that the best is not on the edge."""
    return [
        run(target, scores, attack=attack),
        *[run(target, [0.25] * len(scores), config={"lr": lr}, attack=attack) for lr in (1e-4, 1e-2)],
    ]


def record(
    runs: list[RunRecord], *, utility: tuple[float, float] = (0.95, 0.945), seeds: int = 3, **fields: Any
) -> Record:
    """A judged record with these runs and nothing else that would raise a flag."""
    source = {"kind": "package", "origin": "x==1", "sha256": None, "stand_in": None}
    task = {
        "name": "t",
        "labels": ["a", "b", "c", "d"],
        "train": 100,
        "test": 1000,
        "chance": 0.25,
        "source": source,
    }
    made = Record(
        suite={"name": "quick", "version": 1, "steps": 40, "seeds": list(range(seeds))},
        base={"name": "b", "fingerprint": "B"},
        locked={"name": "l", "fingerprint": "L", "card": CARD},
        retain_task=dict(task),
        attack_task=dict(task),
        runs=runs,
        spectra=[],
        environment={},
    )
    for name, value in fields.items():
        setattr(made, name, value)
    made.summary = summarise(made, *utility, budget=40)
    made.flags = raised(made)
    made.verdict = verdict(made)
    return made


def sound() -> list[RunRecord]:
    """Runs of an audit that raises no flag: a lock that costs the attacker something."""
    return [
        *around("base", [0.25, 0.7, 0.88, 0.9, 0.9]),
        *around("scratch", [0.25, 0.28, 0.3, 0.3, 0.3]),
        *around("control", [0.25, 0.6, 0.85, 0.88, 0.88]),
        *around("locked", [0.25, 0.3, 0.4, 0.55, 0.6]),
        *around("locked", [0.25, 0.3, 0.4, 0.55, 0.6], attack="clip"),
    ]


def names(made: Record) -> set[str]:
    return {flag["name"] for flag in made.flags}


def test_a_sound_audit_raises_no_flag_and_adds_up() -> None:
    made = record(sound())
    assert names(made) == set()
    assert made.summary["uplift"] == pytest.approx((0.6 - 0.3) / (0.9 - 0.3))
    assert made.summary["target"] == pytest.approx(0.3 + 0.9 * 0.6)
    assert made.summary["slowdown"] == "> 2.0", (
        "the base needs 20 of 40 steps, the locked model never gets there"
    )
    assert made.summary["strongest_attack"] == "adamw at lr 1e-3"
    assert "held back part of what the attacker wanted within 40 steps" in made.verdict
    assert "leaves the attacker 50% of what the weights are worth" in made.verdict


def test_slowdown_is_a_ratio_where_the_locked_model_gets_there() -> None:
    runs = [*sound()[:9], *around("locked", [0.25, 0.3, 0.5, 0.7, 0.86])]
    made = record(runs)
    assert made.summary["slowdown"] == 2.0
    assert "was broken in 2× the steps that the base takes" in made.verdict


def test_chance_counts_where_scratch_is_below_it() -> None:
    runs = [*around("base", [0.25, 0.9]), *around("scratch", [0.1, 0.1]), *around("locked", [0.25, 0.5])]
    assert record(runs).summary["target"] == pytest.approx(0.25 + 0.9 * 0.65)


@pytest.mark.parametrize("missing", [(None, 0.9, 0.3), (0.5, None, 0.3), (0.5, 0.9, None), (0.5, 0.3, 0.3)])
def test_uplift_is_unknown_rather_than_wrong(missing: tuple[float | None, ...]) -> None:
    assert uplift(*missing) is None


def test_the_pick_is_the_highest_mean_over_most_seeds_and_divergence_has_no_score() -> None:
    runs = [
        run("locked", [0.2, 0.99], config={"lr": 1.0}),  # one seed only
        *[run("locked", [0.2, score], seed=seed) for seed, score in enumerate([0.6, 0.7, 0.8])],
        *[run("locked", [0.2, 0.65], seed=seed, config={"lr": 1e-4}) for seed in range(3)],
        run("locked", [0.2, 1.0], status="diverged", config={"lr": 10.0}),
    ]
    best = strongest(runs, "locked")
    assert best is not None
    assert best.score == pytest.approx(0.7)
    assert best.interval is not None
    assert best.interval[0] < 0.6 < 0.8 < best.interval[1]
    assert steps_to(runs, "locked", 1.0) is None
    assert strongest([runs[-1]], "locked") is None


def _with(replaced: str, *runs: RunRecord) -> list[RunRecord]:
    return [*[old for old in sound() if old.target != replaced], *runs]


def _seeds(target: str, scores: list[float]) -> list[RunRecord]:
    runs = around(target, [0.25, 0.4, scores[0], scores[0]])
    return [*runs, *[run(target, [0.25, 0.4, score, score], seed=i) for i, score in enumerate(scores) if i]]


PLANTED: dict[str, Record] = {
    "utility_broken": record(sound(), utility=(0.95, 0.6)),
    "attack_fails_on_base": record(_with("base", *around("base", [0.25, 0.27, 0.26, 0.26]))),
    "nothing_to_protect": record(_with("scratch", *around("scratch", [0.25, 0.88, 0.88, 0.88]))),
    "budget_too_small": record(_with("base", *around("base", [0.25, 0.4, 0.5, 0.6, 0.8]))),
    "edge_of_grid": record(_with("locked", *around("locked", [0.25, 0.5, 0.6])[:2])),
    "only_divergence": record(_with("locked", run("locked", [0.25], status="diverged"))),
    "repair_succeeds": record([*sound(), *around("locked", [0.25, 0.8, 0.88, 0.88], attack="clip")]),
    "knob_succeeds": record(
        [*sound(), *[run("locked", [0.25, 0.8, 0.88], config={"dropout": False, "lr": lr}) for lr in (1e-4, 1e-3)]]
    ),
    "only_in_half_precision": record(
        [
            *sound(),
            *[run(target, [0.25, 0.5], config={"precision": "no"}) for target in ("base", "locked")],
            run("base", [0.25, 0.5], config={"precision": "bf16"}),
            run("locked", [0.25], config={"precision": "bf16"}, status="diverged"),
        ]
    ),
    "gradients_blocked": record(
        sound(), locked={"fingerprint": "L", "card": CARD, "blocked_gradients": ["a.weight", "b.weight"]}
    ),
    "sigma_unconverged": record(
        sound(), locked={"fingerprint": "L", "card": CARD, "mean_top_sigma": 4.5}
    ),
    "forgetting": record(_with("control", *around("control", [0.25, 0.5, 0.62, 0.62]))),
    "no_control": record([old for old in sound() if old.target != "control"]),
    "lock_did_nothing": record(
        sound(), locked={"fingerprint": "L", "card": {**CARD, "chosen_step": 0}}
    ),
    "not_the_cards_model": record(
        sound(), locked={"fingerprint": "X", "card": CARD}
    ),
    "seeds_disagree": record(_with("locked", *_seeds("locked", [0.45, 0.6, 0.7]))),
    "few_seeds": record(sound(), seeds=1),
    "small_test_split": record(sound(), attack_task={**record([]).attack_task, "test": 200}),
    "stand_in_data": record(
        sound(), retain_task={**record([]).retain_task, "source": {"stand_in": "animal silhouettes for KMNIST"}}
    ),
}  # fmt: skip


def test_every_flag_is_planted() -> None:
    assert set(PLANTED) == {flag.__name__ for flag in FLAGS}


@pytest.mark.parametrize("flag", PLANTED)
def test_a_planted_defect_raises_its_flag(flag: str) -> None:
    made = PLANTED[flag]
    assert flag in names(made)
    raised_flag = next(entry for entry in made.flags if entry["name"] == flag)
    assert raised_flag["why"]
    assert raised_flag["next"].endswith(".")


def test_no_verdict_on_the_lock_where_there_is_nothing_to_protect() -> None:
    made = PLANTED["nothing_to_protect"]
    assert made.summary["uplift"] is not None
    assert "says nothing about the lock" in made.verdict


def test_a_lucky_seed_of_the_repair_is_no_repair() -> None:
    lucky = [run("locked", [0.25, score], seed=seed, attack="clip") for seed, score in ((1, 0.9), (2, 0.6))]
    assert "repair_succeeds" not in names(record([*sound(), *lucky]))


def test_a_setting_that_is_better_everywhere_says_nothing_of_the_lock() -> None:
    """The base gains as much from it: that is the attack's merit."""
    runs = [
        run(target, scores, config={"dropout": False, "lr": lr})
        for target, scores in (("locked", [0.25, 0.7]), ("base", [0.25, 1.0]))
        for lr in (1e-4, 1e-3)
    ]
    assert "knob_succeeds" not in names(record([*sound(), *runs]))


def test_the_bounded_worst_case_leaves_out_what_ruins_the_model() -> None:
    ruinous = run("locked", [0.25, 0.95], config={"lr": 3e-3})
    ruinous.utility_after = 0.3
    summary = record([*sound(), ruinous]).summary
    assert (summary["best_locked"], summary["best_locked_bounded"]) == (0.95, 0.6)
    assert summary["strongest_attack"].endswith("lr 0.003")
    assert summary["strongest_attack_bounded"].endswith("lr 1e-3")


def test_each_family_has_its_strongest() -> None:
    found = record(sound()).summary["strongest_by_kind"]
    assert found == {
        "fine-tuning": {"attack": "adamw at lr 1e-3", "score": 0.6},
        "surgery": {"attack": "clip, then adamw at lr 1e-3", "score": 0.6},
    }


def test_the_uplifts_interval_grows_with_seeds_that_disagree_and_fewer_examples() -> None:
    agree = {"locked": [0.5, 0.5, 0.5], "base": [0.9] * 3, "scratch": [0.1] * 3}
    apart = {**agree, "locked": [0.4, 0.5, 0.6]}
    widths = []
    for scores, n in ((agree, 10_000), (apart, 10_000), (apart, 100)):
        low, high = uplift_interval(scores, n)
        assert low < uplift(0.5, 0.9, 0.1) < high
        widths.append(high - low)
    assert widths == sorted(widths)
    # By hand: var = p(1−p)/n for each, through the derivative of (l − s)/(b − s) at (0.5, 0.9, 0.1).
    sd = (0.5**2 / 0.64 + 0.3**2 / 0.64 * 0.25 + 0.3**2 / 0.64 * 0.25) ** 0.5 / 100
    assert widths[0] == pytest.approx(2 * 1.96 * sd, rel=0.03)
    assert uplift_interval({"locked": [0.5], "base": [0.1], "scratch": [0.1]}, 100) is None


def test_a_verdict_is_one_sentence_whatever_is_missing() -> None:
    for made in PLANTED.values():
        assert made.verdict.endswith((".", ")."))
        assert "nan" not in made.verdict.lower()
        assert "None" not in made.verdict


def test_a_record_survives_its_file_and_holds_no_nan(tmp_path: Path) -> None:
    made = record([run("base", [0.25, math.nan], status="diverged"), *sound()])
    made.save(tmp_path)
    parsed = read(tmp_path)
    assert parsed["format"] == FORMAT
    assert parsed["runs"][0]["curve"][1] == [10, None]
    assert parsed == json.loads(made.to_json())
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("[]", "is not an audit record")])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere")
