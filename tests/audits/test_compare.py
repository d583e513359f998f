"""Several audits of one base side by side: what may be compared, and what a row says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speclock.audits.compare import FORMAT, compare, proportion
from speclock.audits.record import TARGETS, Flag, Record
from speclock.errors import InputError


def audited(**summary: Any) -> Record:
    """A judged record without its runs; every number is made up."""
    task = {"name": "t", "digest": "D", "chance": 0.25, "test": 1000, "metric": "accuracy"}
    best = dict(zip(TARGETS, (0.9, None, 0.3, 0.5, 0.4, 0.55, 0.85, 0.6), strict=True))
    record = Record(
        suite={"name": "quick", "version": 2, "steps": 32, "budget": 32, "seeds": [1, 2, 3],
               "public_base": None, "siblings": []},
        base={"name": "base", "fingerprint": "B"},
        locked={"card": {"lock": "specdef", "config": {"alpha": 0.5}, "strength_base": 4.0,
                         "strength_locked": 5.0}},
        retain_task={**task, "digest": "R"},
        attack_task=task,
        runs=[],
        flags=[Flag(name="few_seeds", why="one", next="more")],
        verdict="It held.",
    )  # fmt: skip
    record.summary = {
        "utility_base": 0.95, "utility_locked": 0.94, **{f"best_{name}": score for name, score in best.items()},
        "floor": 0.5, "floor_by": "classical", "worth": 0.4, "uplift": 0.25, "uplift_uninformed": 0.1,
        "excess": 0.14, "slowdown": 4.0, "slowdown_interval": (2.0, 8.0), "slowdown_examples": 4.5,
        "slowdown_tflops": "> 12.0", "strongest_attack": "clip, then adamw at lr 1e-4",
        "price": {"passes": 40.0, "tflops": 1.5},
        "intervals": {**dict.fromkeys([f"best_{name}" for name in TARGETS], (0.1, 0.2)),
                      "uplift": (0.1, 0.4), "excess": (0.0, 0.3)},
        **summary,
    }  # fmt: skip
    return record


def test_a_row_says_what_its_record_says(tmp_path: Path) -> None:
    records = {"gentle": audited(), "harsh": audited(uplift=0.1, worth=0.02)}
    records["harsh"].flags.append(Flag(name="nothing_to_protect", why="little", next="choose"))
    found = compare(records, {"command": "audit"})
    assert [row.name for row in found.locks] == ["gentle", "harsh"]
    row = found.locks[0]
    summary = records["gentle"].summary
    for key in ("utility_base", "floor", "floor_by", "worth", "uplift", "uplift_uninformed", "excess",
                "slowdown", "slowdown_interval", "slowdown_tflops", "strongest_attack", "price"):  # fmt: skip
        assert getattr(row, key) == summary[key]
    assert row.best == {target: summary[f"best_{target}"] for target in TARGETS}
    assert (row.uplift_interval, row.excess_interval) == ((0.1, 0.4), (0.0, 0.3))
    assert (row.lock, row.config, row.strength) == ("specdef", {"alpha": 0.5}, (4.0, 5.0))
    assert row.utility_interval[0] < 0.94 < row.utility_interval[1]
    assert (row.flags, row.verdict) == (["few_seeds"], "It held.")
    assert [row.judged for row in found.locks] == [True, False]
    found.save(tmp_path)
    read = json.loads((tmp_path / "compare.json").read_text())
    assert read["format"] == FORMAT == "speclock-compare/2"
    assert read == json.loads(json.dumps(found.to_dict()))


def test_a_lock_without_a_card_or_a_score_has_a_row() -> None:
    record = audited(uplift=None, best_locked=None, slowdown=None)
    record.locked = {"card": None, "card_problem": "no JSON"}
    (row,) = compare({"bare": record}, {}).locks
    assert (row.lock, row.strength, row.uplift, row.judged) == (None, (None, None), None, False)
    assert row.best["locked"] is None


Change = Callable[[Record], object]

OTHERS: dict[str, Change] = {
    "with another suite": lambda r: r.suite.update(name="standard"),
    "with another budget": lambda r: r.suite.update(steps=64),
    "under other seeds": lambda r: r.suite.update(seeds=[1]),
    "by an attacker who knows other models": lambda r: r.suite.update(public_base={"fingerprint": "P"}),
    "with another retain task": lambda r: r.retain_task.update(digest="other"),
    "with another attack task": lambda r: r.attack_task.update(digest="other"),
    "against another base": lambda r: r.base.update(fingerprint="C"),
}


@pytest.mark.parametrize("why", OTHERS)
def test_what_does_not_compare_is_refused(why: str) -> None:
    one = audited()
    two = copy.deepcopy(one)
    OTHERS[why](two)
    with pytest.raises(InputError, match=f"two was audited {why}"):
        compare({"one": one, "two": two}, {})


def test_names_and_an_extended_budget_do_not_stand_in_the_way() -> None:
    one, two = audited(), audited()
    two.base["name"] = two.attack_task["name"] = "elsewhere"
    two.suite["budget"] = 64
    assert [row.budget for row in compare({"one": one, "two": two}, {}).locks] == [32, 64]


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="no audit was named"):
        compare({}, {})


def test_wilson_stays_within_the_unit_interval() -> None:
    for p in (0.0, 0.01, 0.5, 1.0):
        low, high = proportion(p, 20)
        assert -1e-12 <= low <= p <= high + 1e-12
        assert high <= 1 + 1e-12


def test_the_headline_names_the_lock_that_leaves_least_and_the_one_that_leaves_most() -> None:
    locks = {
        "falls": audited(uplift=0.9),
        "middling": audited(),
        "holds": audited(uplift=-0.02, utility_locked=0.943),
    }
    assert compare(locks, {}).headline == (
        "holds leaves the attacker 0% (10% to 40%) of the 40 points that the weights are worth, at −0.7 points of "
        "utility, with 1 flag; falls leaves the attacker 90% (10% to 40%) of the 40 points that the weights are "
        "worth, at −1.0 points of utility, with 1 flag."
    )
    writers = {"one": audited(uplift=0.9, worth=0.031)}
    writers["one"].retain_task["metric"] = writers["one"].attack_task["metric"] = "likelihood"
    assert compare(writers, {}).headline == (
        "one leaves the attacker 90% (10% to 40%) of the 3.1% of a byte's likelihood that the weights are worth, at "
        "−1.0% of a byte's likelihood, with 1 flag."
    )
    assert compare(writers, {}).locks[0].utility_interval is None, "of a single passage there is none"
    nothing = {"lock": audited(uplift=None)}
    assert "leaves the attacker." in compare(nothing, {}).headline
