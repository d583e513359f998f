"""The rules by which a record's rows become verdicts, each on rows that it must tell apart."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from speclock.experiments.claims import (
    FALLS,
    HOLDS,
    NONE,
    PART,
    SILENT,
    UNTOLD,
    Claim,
    backdoored,
    curvature,
    trained_no_more,
    tuning,
    utility,
    window,
)
from speclock.experiments.table3 import PAPER, Table3


def printed(base: float, locked: float, optimizer: str = "adamw") -> list[dict[str, Any]]:
    common = {"block": "as printed", "column": "KMNIST", "optimizer": optimizer, "lr": 0.1, "chance": 0.1}
    common |= {"runs": 3, "diverged": 0}
    return [
        {**common, "target": target, "measured": measured, "seeds": [measured] * 3, "paper": paper}
        for target, measured, paper in (("base", base, 0.8), ("locked", locked, 0.1))
    ]


def not_learnt(rows: list[dict[str, Any]], column: str) -> Claim:
    """What becomes of the claim on the locked model; the one on the base stands before it."""
    *_, claim = trained_no_more(rows, column)
    return claim


def trained(score: float, by: str, missing: int = 0) -> dict[str, Any]:
    return {"score": score, "by": by, "seeds": [score] * (3 - missing) + [None] * missing, "missing": missing}


def searched(
    base: float, locked: float, floor: float, uplift: float | None, lock: str = "specdef:alpha=0.5"
) -> list[dict[str, Any]]:
    common = {
        "block": "searched",
        "column": "KMNIST",
        "scored": True,
        "paper": None,
        "floor": floor,
        "steps": 64,
        "chance": 0.1,
    }
    return [
        {**common, "target": "base", "lock": "", "measured": base, "strongest_attack": "sgd at lr 0.1"},
        {
            **{**common, "target": "locked", "lock": lock, "measured": locked, "uplift": uplift},
            **{"best_base": base, "best_control": 0.7, "flags": ["few_seeds"]},
            **{"utility_base": 0.99, "utility_locked": 0.985},
            "uplift_ci": None if uplift is None else (uplift - 0.08, uplift + 0.08),
            "strongest_attack": "clip, then adamw at lr 1e-3",
            "strongest_steps": 64,
            "trained": trained(locked, "clip, then adamw at lr 1e-3"),
            "base_trained": trained(base, "sgd at lr 0.1"),
            "rates": (1e-6, 10.0),
        },
    ]


@pytest.mark.parametrize(
    ("base", "locked", "verdict"),
    [
        (0.8, 0.12, HOLDS),
        (0.8, 0.5, FALLS),
        (0.12, 0.1, f"{SILENT}, the base does not learn either"),
        (0.22, 0.19, f"{SILENT}, the base learns hardly more"),
    ],
)
def test_a_printed_rate_says_something_only_where_the_base_learns(
    base: float, locked: float, verdict: str
) -> None:
    claim = not_learnt(printed(base, locked) + searched(0.9, 0.9, 0.5, 1.0), "KMNIST")
    assert claim.claim == "The locked model does not learn KMNIST (paper: 10%)"
    assert claim.printed.startswith(f"adamw at 0.1 {verdict}")


def test_runs_that_diverged_are_counted_beside_the_verdict() -> None:
    rows = printed(0.8, 0.1) + searched(0.9, 0.9, 0.5, 1.0)
    for r, diverged in zip(rows, (1, 2), strict=False):
        r |= {"diverged": diverged, "seeds": r["seeds"][diverged:]}
    said = not_learnt(rows, "KMNIST").printed
    assert said.startswith(f"adamw at 0.1 {HOLDS}, by divergence in 2 of 3 (")
    assert said.endswith("(base 80.0%, 1 of 3 diverged, locked 10.0%, 2 of 3 diverged)")
    rows[1]["diverged"] = 3
    said = not_learnt(rows, "KMNIST").printed
    assert said.startswith(f"adamw at 0.1 {HOLDS}, by divergence alone")
    assert said.endswith("locked diverged in all 3 runs)")


def test_one_seed_that_learns_is_a_model_that_the_attacker_has() -> None:
    rows = printed(0.8, 0.187) + searched(0.9, 0.9, 0.5, 1.0)
    rows[1]["seeds"] = [0.36, 0.1, 0.1]
    said = not_learnt(rows, "KMNIST").printed
    assert said == f"adamw at 0.1 {FALLS} in 1 of 3 runs (base 80.0%, locked 18.7% (10.0% to 36.0%))"


def test_a_stand_in_is_named_where_the_verdict_is() -> None:
    rows = printed(0.8, 0.1) + searched(0.9, 0.9, 0.5, 1.0)
    rows[1]["instead"] = "silhouettes, for KMNIST"
    claim = not_learnt(rows, "KMNIST").claim
    assert claim == "The locked model does not learn KMNIST (paper: 10%; here silhouettes, for KMNIST)"


def test_a_search_that_the_printed_attack_beats_finds_no_lock_that_holds() -> None:
    said = not_learnt(printed(0.8, 0.8) + searched(0.9, 0.52, 0.5, 0.05), "KMNIST").searched
    assert said.startswith(f"specdef {SILENT}, for the printed attack does better (80.0%)")


def test_what_else_may_explain_a_lock_stands_beside_its_verdict() -> None:
    rows = searched(0.9, 0.52, 0.5, 0.05)
    rows[1]["flags"].append("forgetting")
    said = not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched
    scores = "base 90.0%, control 70.0%, locked 52.0%, floor 50.0%; utility 99.0% → 98.5%; forgetting"
    assert said == f"specdef holds ({scores}; uplift 0.05, −0.03 to 0.13)"


def test_every_printed_optimizer_is_judged() -> None:
    rows = printed(0.8, 0.1) + printed(0.8, 0.7, "adadelta") + searched(0.9, 0.9, 0.5, 1.0)
    assert [part.split(" (")[0] for part in not_learnt(rows, "KMNIST").printed.split("; ")] == [
        f"adamw at 0.1 {HOLDS}",
        f"adadelta at 0.1 {FALLS}",
    ]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (searched(0.9, 0.52, 0.5, 0.05), f"specdef {HOLDS}"),
        (searched(0.9, 0.8, 0.5, 0.75), "specdef falls to clip, then adamw at lr 1e-3 within 64 steps"),
        (
            searched(0.9, 0.89, 0.95, None),
            f"specdef {FALLS}, it learns 99% of the base's gain over chance in 64 steps",
        ),
        (searched(0.9, 0.52, 0.5, 0.05, "undo:beta=0.8+specdef:top_k=1"), f"undo+specdef {HOLDS}"),
    ],
)
def test_a_search_counts_from_the_floor(rows: list[dict[str, Any]], verdict: str) -> None:
    assert not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched.startswith(verdict)


@pytest.mark.parametrize(("unscored", "what"), [(0, "the base"), (1, "it")])
def test_a_model_on_which_every_run_ends_badly_says_nothing_for_its_lock(unscored: int, what: str) -> None:
    rows = searched(0.9, 0.1, 0.5, None)
    rows[1] |= {"scored": False} if unscored else {"best_base": None}
    said = not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert said == f"specdef {SILENT}: every run on {what} diverged, collapsed or failed"


@pytest.mark.parametrize("flag", ["utility_broken", "only_divergence", "budget_too_small"])
def test_an_audit_with_doubts_of_its_own_finds_no_lock_that_holds(flag: str) -> None:
    rows = searched(0.9, 0.52, 0.5, 0.05)
    rows[1]["flags"].append(flag)
    said = not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert said.startswith(f"specdef {SILENT}, for {flag} (")


def test_a_lock_is_judged_by_its_own_audits_base() -> None:
    rows = [*searched(0.44, 0.4, 0.4, None), *searched(0.6, 0.6, 0.4, 1.0, lock="undo")]
    said = not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert "undo falls to clip, then adamw at lr 1e-3 within 64 steps (base 60.0%" in said


def test_where_the_weights_are_worth_nothing_training_is_judged() -> None:
    said = [
        not_learnt(printed(0.8, 0.1) + searched(base, locked, 0.95, None), "KMNIST").searched
        for base, locked in ((0.9, 0.15), (0.9, 0.88), (0.15, 0.1), (0.9, 0.3))
    ]
    assert said[0].startswith(
        f"specdef {HOLDS}, training stalls at every rate from 1e-6 to 10 (clip, then adamw at lr 1e-3, 15.0%"
    )
    assert said[1].startswith(
        f"specdef {FALLS}, it learns 98% of the base's gain over chance in 64 steps (clip"
    )
    assert said[2].startswith(
        f"specdef {SILENT}, the base does not train either (the weights are worth no more"
    )
    assert said[3].startswith(
        f"specdef {FALLS}, it learns 25% of the base's gain over chance in 64 steps (clip"
    )


def test_what_learns_less_and_still_rises_is_said_to() -> None:
    rows = searched(0.9, 0.3, 0.95, None)
    rows[1]["flags"].append("still_rising")
    said = not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert f"{FALLS}, it learns 25% of the base's gain over chance in 64 steps, and still rises (clip" in said


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [([0.8] * 3, HOLDS), ([0.8, 0.1, 0.1], f"{PART}, in 1 of 3 runs"), ([0.1] * 3, FALLS)],
)
def test_whether_the_base_learns_at_the_papers_rates_is_a_claim(seeds: list[float], verdict: str) -> None:
    rows = printed(fmean(seeds), 0.1) + printed(0.8, 0.1, "lbfgs")
    rows[0]["seeds"] = seeds
    learns, locked = trained_no_more(rows, "KMNIST", ours=("lbfgs",))
    assert learns.claim == "The base learns KMNIST at the paper's rates (paper: 80%)"
    assert [(found.of, found.verdict) for found in learns.as_printed] == [("adamw at 0.1", verdict)]
    assert [found.of for found in locked.as_printed] == ["adamw at 0.1", "lbfgs at our 0.1"]
    longer = [*printed(0.8, 0.1), *printed(0.8, 0.7, "lbfgs"), *searched(0.9, 0.15, 0.95, None)]
    for r in longer[:4]:
        r["steps"] = 640 if r["optimizer"] == "lbfgs" else 64
    learns, locked = trained_no_more(longer, "KMNIST")
    assert [found.of for found in learns.as_printed] == [
        "adamw at 0.1 in 64 steps",
        "lbfgs at 0.1 in 640 steps",
    ]
    assert locked.searched.startswith(f"specdef {HOLDS}, training stalls"), "within the search's 64"
    several = [*printed(0.8, 0.1), *({**r, "lr": 1e-8} for r in printed(0.1, 0.1))]
    assert len(list(trained_no_more(several, "KMNIST"))) == 1


def test_what_fails_in_fewer_steps_than_the_papers_says_nothing_of_the_paper() -> None:
    rows = printed(0.12, 0.1)
    for r in rows:
        r["steps"] = 150
    for papers, verdict in ((1875, f"{SILENT}, 150 of the paper's 1,875 steps"), (150, FALLS), (None, FALLS)):
        learns, _ = trained_no_more(rows, "KMNIST", papers_steps=papers)
        assert learns.as_printed[0].verdict == verdict


def test_what_a_kept_head_scores_before_any_step_is_not_learnt() -> None:
    rows = printed(0.8, 0.79)
    for r in rows:
        r |= {"as_it_is": 0.79}
    learns, locked = trained_no_more([*rows, *searched(0.9, 0.15, 0.95, None)], "KMNIST")
    assert learns.printed == f"adamw at 0.1 {FALLS} (79.0% as it is, then 80.0%)"
    assert locked.printed.startswith(f"adamw at 0.1 {SILENT}, the base does not learn either")
    assert "training stalls" in locked.searched, "79.0% as printed is no training"
    rows[0] |= {"measured": 0.9, "seeds": [0.9] * 3}
    assert not_learnt(rows, "KMNIST").printed.startswith(f"adamw at 0.1 {HOLDS}")


def test_the_window_in_which_a_base_learns() -> None:
    def at(scores: dict[float, float]) -> list[dict[str, Any]]:
        rates = [{**printed(score, 0.1)[0], "lr": lr, "steps": 150} for lr, score in scores.items()]
        return [{**r, "paper": None, "instead": "MiniLM"} for r in rates]

    def said(scores: dict[float, float]) -> Claim:
        return window(at(scores), "KMNIST", (1e-6, 1e-3), 933)

    found = said({1e-3: 0.8, 1e-4: 0.8, 1e-6: 0.8, 1e-7: 0.1})
    assert (
        found.claim
        == "The base learns KMNIST in 150 steps from 1e-6 to 1e-3 and at no lower rate (here MiniLM)"
    )
    assert found.as_printed[0].verdict == HOLDS
    assert said({1e-3: 0.1, 1e-4: 0.8, 1e-7: 0.1}).as_printed[0].verdict == f"{PART}, at 1e-4"
    assert said({1e-4: 0.8, 1e-7: 0.8}).as_printed[0].verdict == f"{FALLS}, it learns at 1e-4 and 1e-7"
    assert said({1e-4: 0.1, 1e-7: 0.1}).as_printed[0].verdict == f"{SILENT}, 150 of the paper's 933 steps"


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        # A probe reads an untrained network too, and a seed that diverged stands at the floor.
        ({"measured": 0.88}, "training stalls at every rate"),
        ({"flags": ["edge_of_grid", "budget_too_small"]}, "training stalls at every rate"),
        ({"flags": ["only_divergence"]}, f"{SILENT}, training stalls with doubts (only_divergence)"),
        ({"trained": None}, "training stalls at every rate"),
        (
            {"trained": {"score": 0.15, "by": "sgd", "seeds": [0.45, None, None], "missing": 2}},
            f"{FALLS} under some seeds (sgd, 15.0% (2 of 3 seeds without a score)",
        ),
        ({"base_trained": None}, "the base does not train either"),
    ],
)
def test_what_stalls_is_told_from_what_has_no_score(what: dict[str, Any], verdict: str) -> None:
    rows = searched(0.9, 0.15, 0.95, None)
    rows[1] |= what
    assert verdict in not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched


def test_a_printed_seed_that_diverged_stands_at_chance() -> None:
    rows = printed(0.8, 0.5) + searched(0.9, 0.15, 0.95, None)
    rows[1] |= {"runs": 3, "diverged": 2, "seeds": [0.5]}
    said = not_learnt(rows, "KMNIST").searched
    assert "it learns 17% of the base's gain over chance in 64 steps (as printed, 23.3%" in said


def test_a_column_that_is_not_searched_is_judged_as_printed() -> None:
    claim = not_learnt(printed(0.8, 0.1), "KMNIST")
    assert HOLDS in claim.printed
    assert claim.searched == NONE


def test_a_printed_attack_that_trains_is_training() -> None:
    said = not_learnt(printed(0.8, 0.5) + searched(0.9, 0.15, 0.95, None), "KMNIST").searched
    assert "it learns 50% of the base's gain over chance in 64 steps (as printed, 50.0%" in said


@pytest.mark.parametrize(
    ("uplift", "ci", "verdict"),
    [
        (0.05, (-0.3, 0.9), "specdef cannot be told"),
        (0.3, (0.05, 0.6), "specdef cannot be told"),
        (0.3, (0.15, 0.5), "specdef falls to clip"),
        (0.05, (-0.3, 0.4), f"specdef {HOLDS}"),
        (0.3, None, f"specdef {SILENT}: what the base is worth cannot be told from noise"),
    ],
)
def test_a_verdict_is_one_only_where_the_interval_lets_it(
    uplift: float, ci: tuple[float, float] | None, verdict: str
) -> None:
    rows = searched(0.9, 0.6, 0.5, uplift)
    rows[1]["uplift_ci"] = ci
    assert not_learnt(printed(0.8, 0.1) + rows, "KMNIST").searched.startswith(verdict)


def test_what_fell_back_to_the_base_is_not_judged_as_a_lock() -> None:
    rows = [*printed(0.8, 0.8), *searched(0.9, 0.9, 0.5, 1.0)]
    rows[-1]["fell_back"] = True
    assert not_learnt(rows, "KMNIST").searched == f"specdef {SILENT}: it fell back to the model as it was"
    usual = {"block": "utility", "target": "locked", "measured": 0.99, "paper": 0.99}
    for what, why in (
        ({"status": "diverged"}, "its training diverged"),
        ({"fell_back": True}, "as it was before"),
    ):
        of = [{**usual, "lock": "", "target": "base"}, {**usual, "lock": "specdef", **what}]
        said = [not_learnt([*of, *rows], "KMNIST").printed, next(curvature(of)).printed]
        assert all(each.startswith(SILENT) and why in each for each in said)
        assert list(backdoored([*of, *backdoor((0.9, 0.94), (0.85, 0.94))[3:]], "backdoor"))[
            1
        ].printed.startswith(f"{SILENT}, ")


def test_a_search_over_settings_is_told() -> None:
    row = {
        "block": "tuning",
        "lock": "specdef:alpha=0.1",
        "measured": 0.4,
        "trials": 12,
        "task": "fashion-mnist",
    }
    row |= {"audited": 12, "every": [{"status": "audited"}]}
    row |= {"strongest_attack": "clip at lr 1e-3", "max_utility_drop": 0.01, "base": 0.8, "worth": 0.3}
    (told,) = tuning([row])
    said = "there is one: specdef:alpha=0.1 leaves 40.0% of its validation split, by clip at lr 1e-3"
    assert told.searched.startswith(f"{said} (the base 80.0%, no weights 50.0%; 12 settings tried")
    (weak,) = tuning([row | {"measured": 0.75}])
    assert weak.searched.startswith("none locks: specdef:alpha=0.1 leaves 75.0%")
    (none,) = tuning([row | {"lock": ""}])
    assert none.under_search[0].verdict == "none keeps it"
    assert none.claim.endswith("for 1.00% of utility on validation")
    assert none.searched.endswith(
        ": 12 settings tried on fashion-mnist, the printed ones first, under one seed; 12 attacked"
    )
    fell = row | {
        "audited": 11,
        "every": [{"status": "pruned", "reason": "no state kept the utility"}],
        "worth": 0.01,
    }
    (silent,) = tuning([fell])
    assert "no weights 79.0%, so that training alone is judged" in silent.searched
    assert silent.searched.endswith("11 attacked, the printed ones not: no state kept the utility)")


def classes(**scores: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Rows of Table 3: of each model the (automobile, cat) of each of three seeds that did not diverge."""
    usual = {
        "base": [(0.9, 0.8)] * 3,
        "unlearned": [(0.0, 0.8)] * 3,
        "unlearned, relearned": [(0.85, 0.8)] * 3,
        "locked": [(0.0, 0.76)] * 3,
        "locked, relearned": [(0.0, 0.76)] * 3,
    }
    found = usual | {name.replace("_", ", "): each for name, each in scores.items()}
    return [
        {
            "block": "as printed",
            "model": model,
            "label": label,
            "measured": sum(seeds) / len(seeds) if (seeds := [pair[i] for pair in found[model]]) else 0.0,
            "seeds": seeds,
            "ended": list(range(len(seeds))),
            "runs": 3,
            "steps": 250,
            "examples": 100,
            "idle": [None] * 3,
            "diverged": 3 - len(seeds),
        }
        for model in PAPER
        for i, label in enumerate(("automobile", "cat"))
    ]


@pytest.mark.parametrize(
    ("scores", "verdicts"),
    [
        ({}, (HOLDS, HOLDS, f"{HOLDS}:")),
        ({"locked_relearned": []}, (HOLDS, HOLDS, f"{HOLDS}, by divergence alone")),
        (
            {"locked_relearned": [(0.12, 0.76)]},
            (HOLDS, HOLDS, f"{HOLDS}, by collapse or divergence in 2 of 3"),
        ),
        (
            {"locked_relearned": [(0.64, 0.76), (0.1, 0.76), (1.0, 0.0)]},
            (HOLDS, HOLDS, f"{FALLS} in 1 of 3 runs"),
        ),
        (
            {"unlearned_relearned": [(0.85, 0.8), (0.8, 0.8), (1.0, 0.0)]},
            (f"{PART}, in 2 of 3 runs: 82.5%", HOLDS, HOLDS),
        ),
        ({"locked": [(0.0, 0.7)] * 3}, (HOLDS, "loses no more than the paper's does", HOLDS)),
        ({"locked_relearned": [(0.24, 0.76)]}, (HOLDS, HOLDS, PART)),
        ({"locked_relearned": [(0.64, 0.76)] * 3}, (HOLDS, HOLDS, f"{FALLS}:")),
        # What the lock's own training gained on the other classes is no relearning's to keep.
        (
            {"locked": [(0.0, 0.9)] * 3, "locked_relearned": [(0.64, 0.78)] * 3},
            (HOLDS, HOLDS, f"{FALLS}:"),
        ),
        # Hardly less than the unlocked model comes to, below the mark or not.
        (
            {"unlearned_relearned": [(0.66, 0.8)] * 3, "locked_relearned": [(0.57, 0.76)] * 3},
            (HOLDS, HOLDS, FALLS),
        ),
        (
            {
                "unlearned_relearned": [(0.66, 0.8), (0.59, 0.8), (0.59, 0.8)],
                "locked_relearned": [(0.57, 0.76), (0.1, 0.76), (0.1, 0.76)],
            },
            (f"{PART}, in 1 of 3 runs", HOLDS, f"{FALLS}:"),
        ),
        # The class came back for the price of the others.
        ({"locked_relearned": [(1.0, 0.0)] * 3}, (HOLDS, HOLDS, f"{UNTOLD}, by collapse alone")),
        ({"locked_relearned": [(0.1, 0.0)] * 3}, (HOLDS, HOLDS, f"{HOLDS}, by collapse alone")),
        ({"unlearned_relearned": [(1.0, 0.0)] * 3}, (FALLS, HOLDS, SILENT)),
        ({"unlearned_relearned": [(0.02, 0.8)] * 3}, (FALLS, HOLDS, SILENT)),
        ({"unlearned_relearned": []}, (FALLS, HOLDS, SILENT)),
        ({"locked": [(0.0, 0.1)] * 3, "locked_relearned": [(0.0, 0.1)] * 3}, (HOLDS, FALLS, SILENT)),
    ],
)
def test_a_relearning_is_judged_by_what_it_leaves_of_the_other_classes(
    scores: dict[str, Any], verdicts: tuple[str, ...]
) -> None:
    claims = Table3.at("smoke").claims(classes(**scores))[1:]
    assert all(claim.printed.startswith(verdict) for claim, verdict in zip(claims, verdicts, strict=True))
    said = claims[2].printed
    if diverged := 3 - len(scores.get("locked_relearned", [0] * 3)):
        assert ("all of 3 diverged" if diverged == 3 else f"{diverged} of 3 diverged") in said
    collapsed = scores.get("locked_relearned", [(0, 0.76)])[:1] in ([(1.0, 0.0)], [(0.1, 0.0)])
    assert ("3 of 3 collapsed (at most 1" in said) == collapsed


@pytest.mark.parametrize(
    ("locked", "relearned", "verdict"),
    [
        ((0.0, 0.76), (0.64, 0.76), FALLS),
        ((0.0, 0.76), (0.1, 0.76), HOLDS),
        ((0.0, 0.76), (0.3, 0.76), PART),
        ((0.0, 0.76), (0.41, 0.2), f"{UNTOLD}, by collapse alone"),
        ((0.0, 0.76), (0.1, 0.2), f"{HOLDS}, by collapse alone"),
        ((0.0, 0.3), (0.1, 0.3), f"{SILENT}, the lock ruined the other classes"),
    ],
)
def test_the_lock_at_another_rate_is_judged_alike(
    locked: tuple[float, float], relearned: tuple[float, float], verdict: str
) -> None:
    rows = classes() + [
        {
            "block": "at another rate",
            "lr": 0.01,
            "idle": [None],
            "diverged": 0,
            "model": model,
            "label": label,
        }
        | {"measured": scores[i], "seeds": [scores[i]], "ended": [0], "runs": 1, "examples": 100}
        for model, scores in (("locked", locked), ("locked, relearned", relearned))
        for i, label in enumerate(("automobile", "cat"))
    ]
    (found,) = Table3.at("smoke").claims(rows)[-1].as_printed
    assert (found.of, found.verdict) == ("at 0.01", verdict)
    assert f"the others {locked[1]:.1%} on average; relearnt" in found.evidence


@pytest.mark.parametrize(("locked", "verdict"), [(0.985, HOLDS), (0.97, FALLS)])
def test_a_point_of_utility_may_be_lost(locked: float, verdict: str) -> None:
    rows = [
        {"block": "utility", "lock": "", "measured": 0.99, "paper": 0.99},
        {"block": "utility", "lock": "specdef", "measured": locked, "paper": 0.99},
        {"block": "utility", "lock": "undo", "measured": 0.5, "paper": None},
    ]
    papers, ours = utility(rows)
    assert papers.printed.startswith(verdict)
    assert ours.claim == "Not in the paper: undo keeps the base's utility"
    assert ours.printed == "does not hold: 99.0% → 50.0%"
    told = next(utility([rows[0], rows[1] | {"examples": 185, "change_ci": [-0.038, 0.016]}])).printed
    assert told.startswith(UNTOLD)
    said = (
        "on 185 examples, the change's 95% interval of this one draw of the lock −3.8 points to +1.6 points"
    )
    assert told.endswith(said)
    draws = rows[1] | {"measured": 0.97, "seeds": [0.96, 0.98], "change_ci": [-0.04, 0.0]}
    for changes, said in (
        ([[-0.04, -0.02], [-0.015, 0.0]], f"{FALLS} in 1 of 2 draws: 99.0% → 97.0% (96.0% to 98.0%)"),
        ([[-0.02, -0.005], [-0.005, 0.0]], f"{UNTOLD}: "),
        ([[-0.009, -0.005], [-0.005, 0.0]], f"{HOLDS}: "),
    ):
        told = next(utility([rows[0], draws | {"changes": changes}])).printed
        assert told.startswith(said)
        assert told.endswith(
            ", the change's 95% interval over 2 draws of the lock −4.0 points to ±0.0 points"
        )
    # Of a record that has one interval for all draws, two accuracies on many examples tell.
    for examples, said in ((10_000, f"{FALLS} in 1 of 2 draws: "), (100, f"{UNTOLD}: ")):
        told = next(utility([rows[0], draws | {"examples": examples, "seeds": [0.96, 0.985]}])).printed
        assert told.startswith(said)
    for what, why in (
        ({"status": "diverged"}, "its training diverged"),
        ({"fell_back": True}, "it is the model as it was"),
    ):
        assert next(utility([rows[0], rows[1] | what])).printed.startswith(f"{SILENT}, {why}")


def test_a_lock_that_leaves_the_curvature_is_said_to() -> None:
    def said(before: list[float], after: list[float]) -> str:
        rows = [
            {"block": "curvature", "measured": fmean(seeds), "seeds": seeds, "batch_norm": False}
            for seeds in (before, after)
        ]
        return next(curvature(rows)).printed.partition(":")[0]

    assert said([2.0], [9.0]) == HOLDS
    assert said([2.0], [9.0, 8.0, 1.0]) == f"{PART}, on 2 of 3 samples", "three draws of a lock of one base"
    assert said([30.0], [30.0]) == FALLS
    assert said([30.0], [31.0]) == f"{PART}, by less than a tenth"
    assert said([900.0, 30.0, 40.0], [1000.0, 60.0, 80.0]) == HOLDS
    assert said([900.0, 30.0, 40.0], [1500.0, 20.0, 30.0]) == f"{PART}, on 1 of 3 samples", (
        "whatever the mean"
    )


def backdoor(base: tuple[float, float], locked: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows of a guard of 95%, each model's (success, clean score) after the printed attack."""
    common = {"column": "backdoor", "optimizer": "adamw", "lr": 1e-4, "paper": None, "diverged": 0}
    rows: list[dict[str, Any]] = [
        {"block": "utility", "target": target, "lock": lock, "measured": 0.95, "paper": None}
        for target, lock in (("base", ""), ("locked", "specdef"), ("locked", "undo"))
    ]
    rows[2]["measured"] = 0.5
    for target, scores in (("base", base), ("locked", locked)):
        for block, score in zip(("as printed", "as printed, clean"), scores, strict=True):
            collapsed = int(scores[1] < 0.95 - 0.05)
            found = {
                "block": block,
                "target": target,
                "measured": score,
                "seeds": [score] * 3,
                "collapsed": 3 * collapsed,
                "runs": 3,
            }
            rows.append({**common, **found})
        rows.append({**common, "block": "before", "target": target, "measured": 0.1})
    return [*rows, *({**row, "column": "backdoor"} for row in searched(0.95, 0.5, 0.6, -0.2))]


@pytest.mark.parametrize(
    ("base", "locked", "first", "second"),
    [
        ((0.9, 0.94), (1.0, 0.0), HOLDS, f"{HOLDS}, by collapse alone"),
        ((0.9, 0.94), (0.2, 0.94), HOLDS, HOLDS),
        ((0.9, 0.94), (0.85, 0.93), HOLDS, FALLS),
        ((0.9, 0.906), (0.85, 0.85), f"{PART}, at −4.4 points of its clean score", HOLDS),
        ((0.98, 0.94), (0.6, 0.94), HOLDS, f"{PART}, it opens oftener than before"),
        ((0.9, 0.89), (0.85, 0.2), FALLS, SILENT),
        ((0.6, 0.94), (0.6, 0.94), FALLS, SILENT),
        ((0.81, 0.94), (0.79, 0.94), HOLDS, FALLS),
    ],
)
def test_a_backdoor_counts_where_the_guard_does_its_task(
    base: tuple[float, float], locked: tuple[float, float], first: str, second: str
) -> None:
    unlocked, kept_out = backdoored(backdoor(base, locked), "backdoor")
    assert unlocked.printed.startswith(f"{first}: ")
    assert kept_out.printed.startswith(second)
    assert ("3 of 3 collapsed" in kept_out.printed) == (locked[1] < 0.95 - 0.05)
    assert kept_out.searched.startswith(f"specdef {SILENT if second == FALLS else HOLDS}")


@pytest.mark.parametrize(
    ("before", "first", "second"),
    [(0.82, FALLS, f"{SILENT}, the unlocked guard takes none either"), (0.95, SILENT, SILENT)],
)
def test_what_opens_a_guard_before_any_attack_is_no_backdoor(before: float, first: str, second: str) -> None:
    rows = backdoor((0.86, 0.94), (0.9, 0.94))
    for r in rows:
        if r["block"] == "before":
            r["measured"] = before
    taken, kept_out = (claim.printed for claim in backdoored(rows, "backdoor"))
    assert taken.startswith(first)
    assert f"success {before:.1%} → 86.0%" in taken
    assert kept_out.startswith(second)


def test_a_backdoor_that_is_not_put_in_for_want_of_steps_says_nothing() -> None:
    rows = backdoor((0.6, 0.94), (0.6, 0.94))
    for r in rows:
        if r["block"].startswith("as printed"):
            r["steps"] = 37
    taken, kept_out = backdoored(rows, "backdoor", 417)
    assert taken.printed.startswith(f"{SILENT}, 37 of the paper's 417 steps")
    assert kept_out.claim == "No backdoor is put into the locked guard in 37 steps"


def test_the_papers_own_remark_stands_beside_its_number() -> None:
    rows = backdoor((0.9, 0.94), (1.0, 0.0))
    for r in rows:
        if r["block"] == "as printed" and r["target"] == "locked":
            r |= {"paper": 1.0, "remark": "of a guard that diverged"}
    claim = list(backdoored(rows, "backdoor"))[1].claim
    assert claim == "No backdoor is put into the locked guard (paper: 100%, of a guard that diverged)"


def test_a_lock_that_ruins_its_guard_keeps_no_backdoor_out() -> None:
    rows = backdoor((0.9, 0.94), (0.2, 0.2))
    rows[1]["measured"] = 0.2
    assert list(backdoored(rows, "backdoor"))[1].printed.startswith(f"{SILENT}, the lock ruined the guard")


def test_a_guard_that_diverged_has_no_scores() -> None:
    rows = backdoor((0.9, 0.94), (0.0, 0.0))
    for r in rows:
        if r["block"].startswith("as printed") and r["target"] == "locked":
            r |= {"diverged": 3, "collapsed": 0}
    said = list(backdoored(rows, "backdoor"))[1].printed
    assert said == f"{HOLDS}, by divergence alone: adamw at 1e-4: diverged in all 3 runs"


def test_collapsed_runs_stand_apart_and_one_that_is_whole_is_a_backdoor() -> None:
    rows = backdoor((0.9, 0.94), (0.86, 0.94))
    for r in rows:
        if r["block"].startswith("as printed") and r["target"] == "locked":
            r |= {"seeds": r["seeds"][:1], "collapsed": 2}
        if r["block"] == "as printed" and r["target"] == "base":
            r |= {"seeds": [0.0, 0.1, 0.85], "measured": 0.317}
    taken, kept_out = (claim.printed for claim in backdoored(rows, "backdoor"))
    assert taken.startswith(f"{PART}, in 1 of 3 runs: adamw at 1e-4: success 10.0% → 31.7% (0.0% to 85.0%)")
    assert kept_out.startswith(f"{FALLS} in 1 of 3 runs: ")
    assert kept_out.endswith("2 of 3 collapsed and left out")
    for r in rows:
        if r["block"] == "as printed" and r["target"] == "locked":
            r |= {"seeds": [0.1], "measured": 0.1}
    kept_out = list(backdoored(rows, "backdoor"))[1].printed
    assert kept_out.startswith(f"{HOLDS}, by collapse or divergence in 2 of 3: ")
