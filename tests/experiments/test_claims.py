"""The rules by which a record's rows become verdicts, each on rows that it must tell apart."""

from __future__ import annotations

from typing import Any

import pytest

from speclock.experiments.claims import FALLS, HOLDS, SILENT, backdoored, curvature, trained_no_more, utility
from speclock.experiments.table3 import PAPER, Table3


def printed(base: float, locked: float, optimizer: str = "adamw") -> list[dict[str, Any]]:
    common = {"block": "as printed", "column": "KMNIST", "optimizer": optimizer, "lr": 0.1, "chance": 0.1}
    return [
        {**common, "target": target, "measured": measured, "paper": paper}
        for target, measured, paper in (("base", base, 0.8), ("locked", locked, 0.1))
    ]


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
            **{"best_base": base, "flags": ["few_seeds"]},
            "strongest_attack": "clip, then adamw at lr 1e-3",
        },
    ]


@pytest.mark.parametrize(
    ("base", "locked", "verdict"),
    [(0.8, 0.12, HOLDS), (0.8, 0.5, FALLS), (0.12, 0.1, f"{SILENT}, the base does not learn either")],
)
def test_a_printed_rate_says_something_only_where_the_base_learns(
    base: float, locked: float, verdict: str
) -> None:
    claim = trained_no_more(printed(base, locked) + searched(0.9, 0.9, 0.5, 1.0), "KMNIST")
    assert claim.claim == "The locked model does not learn KMNIST (paper: 10%)"
    assert claim.printed.startswith(f"adamw at 0.1 {verdict}")


def test_runs_that_diverged_are_counted_beside_the_verdict() -> None:
    rows = printed(0.8, 0.1) + searched(0.9, 0.9, 0.5, 1.0)
    rows[1] |= {"diverged": 2, "seeds": [0.1, 0.1, 0.1]}
    assert "locked 10.0%, 2 of 3 diverged)" in trained_no_more(rows, "KMNIST").printed


def test_every_printed_optimizer_is_judged() -> None:
    rows = printed(0.8, 0.1) + printed(0.8, 0.7, "adadelta") + searched(0.9, 0.9, 0.5, 1.0)
    assert [part.split(" (")[0] for part in trained_no_more(rows, "KMNIST").printed.split("; ")] == [
        f"adamw at 0.1 {HOLDS}",
        f"adadelta at 0.1 {FALLS}",
    ]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (searched(0.9, 0.52, 0.5, 0.05), f"specdef {HOLDS}"),
        (searched(0.9, 0.8, 0.5, 0.75), "specdef falls to clip, then adamw at lr 1e-3 within 64 steps"),
        (searched(0.9, 0.89, 0.95, None), f"specdef {SILENT} about the weights"),
        (searched(0.9, 0.52, 0.5, 0.05, "undo:beta=0.8+specdef:top_k=1"), f"undo+specdef {HOLDS}"),
    ],
)
def test_a_search_counts_from_the_floor(rows: list[dict[str, Any]], verdict: str) -> None:
    assert trained_no_more(printed(0.8, 0.1) + rows, "KMNIST").searched.startswith(verdict)


@pytest.mark.parametrize(("unscored", "what"), [(0, "the base"), (1, "it")])
def test_a_model_on_which_every_run_ends_badly_says_nothing_for_its_lock(unscored: int, what: str) -> None:
    rows = searched(0.9, 0.1, 0.5, None)
    rows[1] |= {"scored": False} if unscored else {"best_base": None}
    said = trained_no_more(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert said == f"specdef {SILENT}: every run on {what} diverged, collapsed or failed"


@pytest.mark.parametrize("flag", ["utility_broken", "only_divergence", "budget_too_small"])
def test_an_audit_with_doubts_of_its_own_finds_no_lock_that_holds(flag: str) -> None:
    rows = searched(0.9, 0.52, 0.5, 0.05)
    rows[1]["flags"].append(flag)
    said = trained_no_more(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert said.startswith(f"specdef {SILENT}, for {flag} (")


def test_a_lock_is_judged_by_its_own_audits_base() -> None:
    rows = [*searched(0.44, 0.4, 0.4, None), *searched(0.6, 0.6, 0.4, 1.0, lock="undo")]
    said = trained_no_more(printed(0.8, 0.1) + rows, "KMNIST").searched
    assert "undo falls to clip, then adamw at lr 1e-3 within 64 steps (base 60.0%" in said


def test_where_the_weights_are_worth_nothing_training_is_judged() -> None:
    said = [
        trained_no_more(printed(0.8, 0.1) + searched(base, locked, 0.95, None), "KMNIST").searched
        for base, locked in ((0.9, 0.3), (0.9, 0.88), (0.15, 0.1))
    ]
    assert "training stalls at every rate" in said[0]
    assert "it trains, by clip" in said[1]
    assert "the base does not train either" in said[2]


@pytest.mark.parametrize(("diverged", "verdict"), [(0, HOLDS), (1, HOLDS), (3, SILENT)])
def test_a_relearning_that_diverged_is_no_lock_that_holds_in_silence(diverged: int, verdict: str) -> None:
    rows = [
        {
            "block": "as printed",
            "model": model,
            "label": label,
            "measured": 0.0,
            "seeds": [0.0] * 3,
            "diverged": 0,
        }
        for model in PAPER
        for label in ("automobile", "cat")
    ]
    for r in rows:
        if r["model"] == "locked, relearned":
            r["diverged"] = diverged
    said = Table3.at("smoke").claims(rows)[-1].printed
    assert said.startswith(f"{verdict}: ")
    assert (f"{diverged} of 3 diverged" in said) == (diverged > 0)


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


def test_a_lock_that_leaves_the_curvature_is_said_to() -> None:
    rows = [
        {"block": block, "measured": measured}
        for block, pair in (("spectrum", (2.0, 9.0)), ("curvature", (30.0, 30.0)))
        for measured in pair
    ]
    assert [claim.printed.partition(":")[0] for claim in curvature(rows)] == [HOLDS, FALLS]


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
                "seeds": [score],
                "collapsed": collapsed,
            }
            rows.append({**common, **found})
    return [*rows, *({**row, "column": "backdoor"} for row in searched(0.95, 0.5, 0.6, -0.2))]


@pytest.mark.parametrize(
    ("base", "locked", "first", "second"),
    [
        ((0.9, 0.94), (1.0, 0.0), HOLDS, HOLDS),
        ((0.9, 0.94), (0.2, 0.94), HOLDS, HOLDS),
        ((0.9, 0.94), (0.85, 0.93), HOLDS, FALLS),
        ((0.9, 0.906), (0.85, 0.85), HOLDS, HOLDS),
        ((0.9, 0.89), (0.85, 0.2), FALLS, SILENT),
        ((0.6, 0.94), (0.6, 0.94), FALLS, SILENT),
    ],
)
def test_a_backdoor_counts_where_the_guard_does_its_task(
    base: tuple[float, float], locked: tuple[float, float], first: str, second: str
) -> None:
    unlocked, kept_out = backdoored(backdoor(base, locked), "backdoor")
    assert unlocked.printed.startswith(f"{first}: ")
    assert kept_out.printed.startswith(second)
    assert ("1 of 1 collapsed" in kept_out.printed) == (locked[1] < 0.95 - 0.05)
    assert kept_out.searched.startswith("specdef holds")
