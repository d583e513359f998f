"""The figures and what they draw from: the strongest runs, the map of a search, labels that do not collide."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclock.audits.compare import Comparison
from speclock.audits.record import FLOOR, TARGETS, Record, RunRecord
from speclock.numbers import interval, percent
from speclock.report import plots, view
from speclock.report.plots.drawing import apart
from speclock.report.runs import MOST_COLUMNS, MOST_ROWS, curve, mean_best, ruined, search_map, strongest


def _run(score: float | None, seed: int = 0, lr: float = 1e-4, status: str = "ok", **more: Any) -> RunRecord:
    fields = {
        "target": "base", "attack": "finetune", "config": {"optimizer": "adamw", "lr": lr}, "seed": seed,
        "status": status, "curve": [(0, 0.2), (10, score or 0.2)], "best": score, "family": "adamw",
        "title": "adamw", "steps": 10,
    }  # fmt: skip
    return RunRecord(**{**fields, **more})


def _record(runs: list[RunRecord], **summary: Any) -> Record:
    found = {"strongest_attacks": {run.target: "adamw" for run in runs}, "chance": 0.25, **summary}
    parts: dict[str, dict[str, Any]] = {
        name: {} for name in ("suite", "base", "locked", "retain_task", "attack_task")
    }
    return Record(**parts, runs=runs, summary=found)


# -- runs ------------------------------------------------------------------------------------------------


def test_the_strongest_is_the_attack_that_the_summary_names_and_no_lucky_search() -> None:
    quoted = [_run(0.8, seed, stage="final") for seed in (1, 2, 3)]
    lucky = [_run(0.95), _run(0.9, 1, stage="final", title="sgd")]
    assert strongest(_record([*lucky, *quoted]), "base") == quoted
    assert strongest(_record([*lucky]), "locked") == []


def test_of_two_budgets_the_better_counts() -> None:
    runs = [
        _run(score, seed, stage="final", target=target, steps=steps)
        for target in ("locked", "public")
        for steps, score in ((10, 0.7), (20, 0.6))
        for seed in (1, 2)
    ]
    record = _record(runs)
    assert {run.steps for run in strongest(record, "locked")} == {10}
    assert {run.steps for run in strongest(record, "public")} == {10}


def test_a_lost_seed_counts_as_what_the_attacker_has_anyway() -> None:
    seeds = [_run(0.9, 1, stage="final"), _run(None, 2, status="diverged", stage="final")]
    assert mean_best(_record(seeds, floor_validation=0.5), seeds) == pytest.approx(0.7)
    for run in seeds:
        run.target = "scratch"
    assert mean_best(_record(seeds, floor_validation=0.5), seeds) == pytest.approx((0.9 + 0.25) / 2)
    assert mean_best(_record(seeds), seeds[1:]) is None


def test_curves_count_from_the_first_label() -> None:
    run = _run(0.6, curve=[(4, 0.2), (12, 0.3), (40, 0.6), (50, None)], first_label=8)
    assert curve(run) == [(-4, 0.2), (4, 0.3), (32, 0.6)]


def test_what_a_collapsed_run_reached_is_no_score() -> None:
    run = _run(None, status="collapsed", curve=[(5, 0.4), (10, 0.8)])
    assert ruined(run) == 0.8
    assert ruined(_run(0.8)) is None
    cell = search_map([run]).cells["base"]["adamw", 1e-4]
    assert (cell.score, cell.ruined, cell.collapsed, cell.lost) == (None, 0.8, 1, 1)


def test_a_cell_counts_its_lost_runs_and_none_of_their_scores() -> None:
    cell = search_map([_run(0.99, status="diverged"), _run(0.4, seed=1)]).cells["base"]["adamw", 1e-4]
    assert (cell.score, cell.runs, cell.diverged) == (0.4, 2, 1)


def test_pruned_cell_is_known_by_its_best_run() -> None:
    cells = search_map([_run(0.4, pruned_at=20), _run(0.6, seed=1), _run(0.7, lr=1e-3, pruned_at=30)]).cells
    assert not cells["base"]["adamw", 1e-4].pruned
    assert cells["base"]["adamw", 1e-3].pruned


@given(st.lists(st.floats(1e-9, 10), min_size=1, max_size=200))
def test_any_learning_rates_fit_the_map(rates: list[float]) -> None:
    found = search_map([_run(0.5, seed, lr) for seed, lr in enumerate(rates)])
    assert len(found.columns) <= MOST_COLUMNS
    assert sum(cell.runs for cell in found.cells["base"].values()) == len(rates)


def test_the_map_is_of_the_search_and_of_its_strongest_families() -> None:
    runs = [_run(i / 100, family=f"family {i:02}", target="locked") for i in range(MOST_ROWS + 3)]
    runs += [_run(0.3, family="adam", target="scratch"), _run(0.9, 1, stage="final", target="locked")]
    found = search_map(runs)
    assert len(found.rows["locked"]) == MOST_ROWS
    assert found.left_out == 3
    assert {"family 00", "family 02"}.isdisjoint(found.rows["locked"])
    assert found.rows["scratch"] == ["adam"]
    assert max(cell.score for cell in found.cells["locked"].values() if cell.score is not None) == 0.26


def test_attack_without_learning_rate_has_its_own_column() -> None:
    found = search_map([_run(0.5), _run(0.6, family="probe", config={})])
    assert found.columns == [1e-4, None]
    assert found.cells["base"]["probe", None].score == 0.6


@given(st.lists(st.floats(-1e3, 1e3), max_size=12), st.floats(1, 40))
def test_labels_stand_apart_in_order_and_balanced(places: list[float], gap: float) -> None:
    moved = apart(places, gap)
    in_order = [moved[i] for i in sorted(range(len(places)), key=lambda i: places[i])]
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(in_order))
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)
    if all(abs(a - b) >= gap for i, a in enumerate(places) for b in places[:i]):
        assert moved == pytest.approx(places)


# -- figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [False, True])
def test_the_picture_has_every_target_and_the_floor_by_name(record: Record, narrow: bool) -> None:
    svg, summary = plots.best_scores(record, narrow=narrow), record.summary
    assert ">released</text>" not in svg, "of most tasks nothing is to be seen before an attack"
    for target in TARGETS:
        if target == "released":
            continue
        assert f">{target}</text>" in svg
        assert f">{percent(summary[f'best_{target}'])}</text>" in svg
        assert f">{interval(summary['intervals'][f'best_{target}'])}</text>" in svg
    assert f">floor {percent(summary['floor'])}, set by classical</text>" in svg
    assert "score on the test split" in svg


def test_what_the_model_does_before_any_attack_is_drawn(make_record: Callable[..., Record]) -> None:
    record = make_record(
        seeds=(1,),
        rates=(1e-4,),
        targets=("base", "released", "scratch", "locked"),
        plateaus={"released": (0.55, 1.0, 0.0)},
    )
    svg = plots.best_scores(record)
    assert ">released</text>" in svg
    assert f">floor {percent(0.55)}, set by released</text>" in svg


def test_the_floor_stands_where_its_score_does(record: Record) -> None:
    svg = plots.best_scores(record)
    # The vertical line in ink, and the dot of the target that sets it.
    (line,) = re.findall(r'd="M ([\d.]+) [\d.]+ ?L \1 [\d.]+ ?"[^>]*stroke: var\(--ink\)', svg)
    (dot,) = re.findall(r'<use [^>]*x="([\d.]+)"[^>]*fill: var\(--classical\)', svg)
    assert float(line) == pytest.approx(float(dot), abs=0.02)


def test_the_picture_says_which_target_has_no_score(
    make_record: Callable[..., Record], summarise_: Callable[[Record], None]
) -> None:
    record = make_record(seeds=(1,), rates=(1e-4,), targets=("base", "scratch", "locked"))
    for run in record.runs:
        if run.target == "locked":
            run.status, run.best, run.test = "diverged", None, None
    summarise_(record)
    svg = plots.best_scores(record)
    assert svg.count(">not attacked</text>") == 4
    assert svg.count(">no score: every run was lost</text>") == 1
    assert ", set by scratch</text>" in svg
    record.summary |= {f"best_{target}": None for target in TARGETS}
    assert plots.best_scores(record) == ""


@pytest.mark.parametrize("narrow", [False, True])
def test_curves_draw_each_target_its_seeds_and_both_levels(record: Record, narrow: bool) -> None:
    svg = plots.score_curves(record, narrow=narrow)
    for target in TARGETS:
        if target == "released":
            continue
        score = mean_best(record, strongest(record, target))
        assert f">{target} {percent(score)}</text>" in svg
        if target == "classical":
            continue
        # A mean of a point at every doubling, and three seeds, each a path in the target's colour.
        lines = re.findall(rf'd="([^"]+)"[^>]*stroke: var\(--{target}\)', svg)
        points = 10 if target == "scratch" else 7
        assert sum(line.count("L") == points - 1 for line in lines) == 4
    assert ">chance 25.0%</text>" in svg
    assert f">target {percent(record.summary['target'])}</text>" in svg
    assert "Validation score" in svg


def test_steps_are_logarithmic(record: Record) -> None:
    line = max(re.findall(r'd="([^"]+)"[^>]*stroke: var\(--base\)', plots.score_curves(record)), key=len)
    places = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", line)]
    widths = [b - a for a, b in itertools.pairwise(places)]
    assert max(widths) - min(widths) < 0.05


def test_map_marks_what_has_no_score(record: Record, collapse_: Callable[..., None]) -> None:
    collapse_(record)
    svg = plots.rate_map(record)
    # Control and locked diverge at 1e-3 with five families each, but for the one that has collapsed; one run on the
    # locked model fails.
    assert svg.count(">div</text>") == 9
    assert svg.count(">fail</text>") == 1
    assert svg.count(">73*</text>") == 5
    assert ">73</text>" not in svg
    assert ">0</text>" not in svg


def test_map_names_the_inert_in_grey(small: Record) -> None:
    record = small
    inert = {row["family"] for row in record.families if row["inert"]}
    assert "zeroth-order" in inert
    svg = plots.rate_map(record)
    muted = re.findall(r"<text[^>]*fill: var\(--muted\)[^>]*>([^<]+)</text>", svg)
    # Five panels list the shared families; scratch has a list of its own, without a word on inertness.
    assert muted.count("zeroth-order") == 5
    assert "clip" not in muted


@pytest.mark.parametrize("part", ["summary", "runs", "families", "locked", "spectra"])
def test_what_the_record_lacks_is_not_drawn(make_record: Callable[..., Record], part: str) -> None:
    record = make_record(seeds=(1,), rates=(1e-4,), matrices=1, targets=("base", "locked"))
    setattr(record, part, type(getattr(record, part))())
    drawn = {draw.__name__ for draw in view.FIGURES if draw(record, narrow=True)}
    missing = {"summary": {"best_scores", "score_curves"}, "runs": {"score_curves", "rate_map"},
               "families": set[str](), "locked": {"lock_curve"}, "spectra": {"sigmas"}}  # fmt: skip
    assert drawn == {draw.__name__ for draw in view.FIGURES} - missing[part]


@pytest.mark.parametrize("matrices", [1, 211])
def test_spectra_draw_every_matrix(record: Record, matrices: int) -> None:
    entry = record.spectra[0]
    record.spectra = [{**entry, "name": str(i)} for i in range(matrices)]
    svg = plots.sigmas(record)
    assert len(re.findall(r"<use [^>]*fill: var\(--base\)", svg)) == matrices
    assert len(re.findall(r"<use [^>]*fill: var\(--locked\)", svg)) == matrices
    assert f"{matrices} weight matrices" in svg


def test_matrices_without_a_pair_are_left_out(record: Record) -> None:
    entry = record.spectra[0]
    broken = [{**entry, "locked": held} for held in ([], None, [0.0], [float("nan")])]
    record.spectra = [*broken, entry]
    assert plots.sigma_pairs(record) == [
        (entry["name"], entry["shape"], entry["base"][0], entry["locked"][0])
    ]
    record.spectra = broken
    assert plots.sigmas(record) == ""


def test_lock_curve_names_the_step_that_was_kept(record: Record) -> None:
    svg = plots.lock_curve(record)
    assert ">kept: step 180, 98.8%</text>" in svg
    record.locked["card"] = None
    assert plots.lock_curve(record) == ""


def test_trade_off_draws_the_locks_that_can_be_judged(comparison: Comparison) -> None:
    svg = plots.trade_off(comparison)
    assert len(re.findall(r"<use [^>]*fill: var\(--locked\)", svg)) == 2
    for row in comparison.locks:
        assert f">{row.name}</text>" in svg
    comparison.locks[0].flags.append("nothing_to_protect")
    comparison.locks[1].uplift = None
    assert plots.trade_off(comparison) == ""


def test_sparkline_keeps_both_ends_of_a_long_curve() -> None:
    points = [(float(step), step / 1000) for step in range(1001)]
    line = re.findall(r'points="([^"]+)"', plots.sparkline(points, 1000, 0, 1))[0].split()
    assert len(line) <= 42
    assert (line[0], line[-1]) == ("2.0,18.0", "70.0,2.0")


def test_every_target_has_a_colour_and_a_floor_target_is_one() -> None:
    assert set(TARGETS) <= set(plots.COLORS)
    assert set(FLOOR) <= set(TARGETS)
    assert len(set(plots.COLORS.values())) == len(plots.COLORS), "two alike cannot be told apart again"
