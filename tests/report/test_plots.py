"""The figures and what they draw from: the strongest runs, the map of a sweep, labels that do not collide."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclock.audits.record import TARGETS
from speclock.report import plots
from speclock.report.runs import MOST_COLUMNS, mean_best, strongest, sweep

Record = dict[str, Any]


def _run(score: float | None, seed: int = 0, lr: float = 1e-4, status: str = "ok", **more: object) -> Record:
    config = {"optimizer": "adamw", "lr": lr}
    return {"target": "base", "attack": "finetune", "config": config, "seed": seed, "status": status,
            "best": score, "curve": [[0, 0.2], [10, score]], **more}  # fmt: skip


def test_strongest_is_a_configuration_and_not_a_lucky_seed() -> None:
    lucky = [_run(0.95, lr=1e-2)]
    steady = [_run(0.8, seed, lr=1e-3) for seed in (0, 1, 2)]
    weak = [_run(0.5, seed, lr=1e-4) for seed in (0, 1, 2)]
    assert strongest([*lucky, *weak, *steady], "base") == steady
    assert mean_best(steady) == pytest.approx(0.8)
    assert strongest([*lucky], "locked") == []


def test_a_diverged_run_is_never_the_strongest() -> None:
    diverged = _run(0.99, status="diverged")
    assert strongest([diverged], "base") == []
    cell = sweep([diverged, _run(0.4, seed=1)]).cells["base"]["adamw", 1e-4]
    assert (cell.score, cell.runs, cell.diverged) == (0.4, 2, 1)


def test_cell_of_diverged_runs_has_no_score() -> None:
    cell = sweep([_run(None, status="diverged")]).cells["base"]["adamw", 1e-4]
    assert cell.score is None
    assert not cell.pruned


def test_pruned_cell_is_known_by_its_best_run() -> None:
    cells = sweep([_run(0.4, pruned_at=20), _run(0.6, seed=1), _run(0.7, lr=1e-3, pruned_at=30)]).cells[
        "base"
    ]
    assert not cells["adamw", 1e-4].pruned
    assert cells["adamw", 1e-3].pruned


@given(st.lists(st.floats(1e-9, 10), min_size=1, max_size=200))
def test_any_learning_rates_fit_the_map(rates: list[float]) -> None:
    found = sweep([_run(0.5, seed, lr) for seed, lr in enumerate(rates)])
    assert len(found.columns) <= MOST_COLUMNS
    assert sum(cell.runs for cell in found.cells["base"].values()) == len(rates)


def test_attack_without_learning_rate_has_its_own_column() -> None:
    found = sweep([_run(0.5), {**_run(0.6), "attack": "fuse", "config": {}}])
    assert found.columns == [1e-4, None]
    assert found.cells["base"]["fuse", None].score == 0.6


@given(st.lists(st.floats(-1e3, 1e3), max_size=12), st.floats(1, 40))
def test_labels_stand_apart_in_order_and_balanced(places: list[float], gap: float) -> None:
    moved = plots.apart(places, gap)
    in_order = [moved[i] for i in sorted(range(len(places)), key=lambda i: places[i])]
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(in_order))
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)
    if all(abs(a - b) >= gap for i, a in enumerate(places) for b in places[:i]):
        assert moved == pytest.approx(places)


@pytest.mark.parametrize("narrow", [False, True])
def test_curves_draw_each_target_its_seeds_and_both_levels(record: Record, narrow: bool) -> None:
    svg = plots.score_curves(record, narrow=narrow)
    for target in TARGETS:
        score = mean_best(strongest(record["runs"], target))
        assert f">{target} {100 * score:.1f}%</text>" in svg
        # A mean of 13 points and three seeds, each a path in the target's colour.
        lines = re.findall(rf'd="([^"]+)"[^>]*stroke: var\(--{target}\)', svg)
        assert sum(line.count("L") == 12 for line in lines) == 4
    assert ">chance 25.0%</text>" in svg
    assert f">target {100 * record['summary']['target']:.1f}%</text>" in svg


def test_map_marks_what_has_no_score(record: Record) -> None:
    svg = plots.sweep_map(record)
    # Control and locked diverge at 1e-3 with adamw and adafactor; scratch fails once.
    assert svg.count(">div</text>") == 4
    assert svg.count(">fail</text>") == 1
    assert ">0</text>" not in svg


@pytest.mark.parametrize("matrices", [1, 40, 211])
def test_spectra_draw_every_matrix(record: Record, matrices: int) -> None:
    entry = record["spectra"][0]
    record["spectra"] = [{**entry, "name": str(i)} for i in range(matrices)]
    svg = plots.spectra(record)
    assert len(re.findall(r"<use [^>]*fill: var\(--base\)", svg)) == matrices
    assert len(re.findall(r"<use [^>]*fill: var\(--locked\)", svg)) == matrices
    assert f"{matrices} weight matrices" in svg


def test_matrices_without_a_pair_are_left_out(record: Record) -> None:
    entry = record["spectra"][0]
    broken = [{**entry, "locked": held} for held in ([], None, [0.0], [float("nan")])]
    assert plots.sigma_pairs({"spectra": [*broken, entry]}) == [
        (entry["name"], entry["shape"], entry["base"][0], entry["locked"][0])
    ]
    assert plots.spectra({"spectra": broken}) == ""


def test_lock_curve_names_the_step_that_was_kept(record: Record) -> None:
    svg = plots.lock_curve(record)
    assert ">kept: step 180, 98.8%</text>" in svg
    record["locked"]["card"] = None
    assert plots.lock_curve(record) == ""


def test_sparkline_keeps_both_ends_of_a_long_curve() -> None:
    points = [(float(step), step / 1000) for step in range(1001)]
    line = re.findall(r'points="([^"]+)"', plots.sparkline(points, 1000, 0, 1))[0].split()
    assert len(line) <= 42
    assert (line[0], line[-1]) == ("2.0,18.0", "70.0,2.0")
