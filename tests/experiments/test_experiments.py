"""Every experiment at smoke scale: its files, its rows, and what the paper claims of it."""

import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from speclock.cli import main
from speclock.curvature import gradient_descent_steps, nesterov_steps
from speclock.errors import InputError
from speclock.experiments import EXPERIMENTS
from speclock.experiments.base import SCALES, Row, each_once, made_otherwise, reproduce, row, settings_of
from speclock.experiments.claims import name_of
from speclock.experiments.figure2 import ARCHITECTURES, Figure2
from speclock.experiments.figure4 import Figure4
from speclock.experiments.locking import Locking
from speclock.experiments.page import _of_the_weights, page
from speclock.experiments.prediction import RATE, SLOWDOWN, calibrations_in
from speclock.experiments.settings import UNGUARDED
from speclock.experiments.table1_image import LOCK, Table1Image
from speclock.experiments.table1_text import SMOKE, Table1Text, encoder
from speclock.forecast.slowdown import Calibration

SLOW = {"figure3", "prediction", "table1-image", "table1-text", "table2", "table3"}
"""Half a minute or a whole one each. The tables go through the same code as Figure 4, and the prediction's parts are
tested where they are."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke")
    for name in EXPERIMENTS:
        if name not in SLOW:
            reproduce(name, "smoke", out)
    return out


@pytest.fixture(scope="module")
def all_made(made: Path) -> Path:
    for name in SLOW:
        reproduce(name, "smoke", made, jobs=2)
    return made


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        pytest.param(n, "all_made" if n in SLOW else "made", marks=[pytest.mark.slow] * (n in SLOW))
        for n in EXPERIMENTS
    ],
)
def test_an_experiment_leaves_its_record_and_its_figure(
    name: str, folder: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(folder)
    record = json.loads((made / f"{name}.json").read_text())
    assert (record["experiment"], record["scale"]) == (name, "smoke")
    assert record["environment"]["torch"]
    assert record["rows"]
    for entry in record["rows"]:
        assert {"paper", "measured", "ci", "stand_in"} <= set(entry)
        assert math.isfinite(entry["measured"])
    assert (made / f"{name}.svg").read_text().startswith("<?xml")
    with Image.open(made / f"{name}.png") as image:
        assert image.width > 600
    assert not list(made.glob("*.partial"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_scale_has_settings(name: str) -> None:
    assert set(EXPERIMENTS[name].scales) == set(SCALES)


def test_a_finished_record_is_not_made_again(made: Path) -> None:
    before = (made / "figure1.json").read_text()
    with pytest.raises(InputError, match=r"figure1\.json is the record of an earlier run"):
        reproduce("figure1", "smoke", made)
    with pytest.raises(InputError, match=r"figure1\.json is the record of another run"):
        reproduce("figure1", "small", made, resume=True)
    assert reproduce("figure1", "smoke", made, resume=True) == json.loads(before)
    assert (made / "figure1.json").read_text() == before


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, InputError])
def test_a_killed_experiment_goes_on(
    ended_by: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that ends on bad input which shows late."""
    settings = {"multiples": (1.0,), "most_steps": 3, "seeds": 1}
    monkeypatch.setitem(Figure2.scales, "smoke", settings)
    done = []
    carry_out = Figure2._rows_of

    def dies_at_the_second(self: Figure2, name: str, architecture: object) -> object:
        if len(done) == 1:
            raise ended_by
        done.append(name)
        return carry_out(self, name, architecture)

    with monkeypatch.context() as patch:
        patch.setattr(Figure2, "_rows_of", dies_at_the_second)
        with pytest.raises(ended_by):
            reproduce("figure2", "smoke", tmp_path)
    again = []
    monkeypatch.setattr(
        Figure2, "_rows_of", lambda self, name, a: again.append(name) or carry_out(self, name, a)
    )
    resumed = reproduce("figure2", "smoke", tmp_path, resume=True)
    assert [*done, *again] == list(ARCHITECTURES)
    whole = reproduce("figure2", "smoke", tmp_path / "whole")
    assert resumed["rows"] == whole["rows"]


def test_of_several_models_the_record_is_there_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Table1Text(models=(encoder("", **SMOKE), replace(encoder("", **SMOKE), model="minilm")))
    monkeypatch.setattr(Table1Text, "at", classmethod(lambda cls, scale: two))
    utilities = [
        {"block": "utility", "target": target, "lock": lock, "measured": 0.9, "paper": None, "column": None}
        for target, lock in (("base", ""), ("locked", "specdef"))
    ]
    killed = True

    def rows_of(part: Locking, kept: Path, jobs: int = 1) -> list[Row]:
        if killed and part.model == "minilm":
            raise KeyboardInterrupt
        return [{"model": part.model, "instead": None, **found} for found in utilities]

    monkeypatch.setattr(Table1Text, "rows_of", staticmethod(rows_of))
    with pytest.raises(KeyboardInterrupt):
        reproduce("table1-text", "smoke", tmp_path)
    half = json.loads((tmp_path / "table1-text.json").read_text())
    assert half["unfinished"] == ["minilm"]
    text = page({"table1-text": half}, tmp_path, tmp_path / "results.md")
    assert "**Not finished: minilm.**" in text
    assert "bert-l2-h64: " in text
    killed = False
    whole = reproduce("table1-text", "smoke", tmp_path, resume=True)
    assert whole["unfinished"] == []
    assert len(whole["rows"]) == 4


def test_a_setting_that_came_later_and_is_none_changes_nothing() -> None:
    experiment = Table1Text.at("smoke")
    settings = settings_of(experiment)
    record = {"experiment": "table1-text", "scale": "smoke", "settings": settings, "rules": experiment.rules}
    assert not made_otherwise(record)
    (part,) = settings["models"]
    older = {name: value for name, value in part.items() if name != "quoted_epochs"}
    assert not made_otherwise(record | {"settings": settings | {"models": [older]}})
    assert made_otherwise(record | {"settings": settings | {"models": [part | {"quoted_epochs": 2}]}})


def test_gradient_descent_takes_what_its_theory_says_at_most(made: Path) -> None:
    for entry in json.loads((made / "figure1.json").read_text())["rows"]:
        theory = {"gradient descent": gradient_descent_steps, "Nesterov": nesterov_steps}[entry["method"]]
        assert entry["theory"] == theory(entry["kappa"], 1e-6)
        # The worst start needs that many; these start at random. Nesterov's factor that grows linearly may add some.
        assert 0.3 * entry["theory"] <= entry["measured"] <= 1.2 * entry["theory"]


def test_iterations_grow_and_no_bound_is_broken(made: Path) -> None:
    rows = json.loads((made / "figure2.json").read_text())["rows"]
    for name in ARCHITECTURES:
        found = [r for r in rows if r["architecture"] == name]
        iterations = [r["measured"] for r in found if r["quantity"] == "iterations"]
        assert iterations[0] < iterations[1]
        ratios = [ratio for r in found if r["quantity"].startswith("σ_max") for ratio in r["seeds"]]
        assert min(ratios) >= 1
        assert max(ratios) < 100, "a bound that holds by a factor of a hundred explains nothing"


@pytest.mark.slow
def test_a_prediction_is_judged_on_locks_that_it_has_not_seen(all_made: Path) -> None:
    rows = json.loads((all_made / "prediction.json").read_text())["rows"]
    locks = {r["lock"]: r["held_out"] for r in rows if r["quantity"] == SLOWDOWN}
    assert sorted(locks.values()) == [False, False, True, True, True]
    (fresh,) = {r["lock"] for r in rows if r.get("fresh")}
    assert locks[fresh]
    laws = {r["optimizer"]: r["laws"] for r in rows if r["quantity"] == "calibration"}
    assert {name: law["rate"]["points"] for name, law in laws.items()} == {"sgd": 3, "adam": 3}
    assert laws["sgd"]["slowdown"]["points"] == 3, "with those that did not get there"
    verdicts = [r for r in rows if r["quantity"].endswith("held out")]
    assert {r["locks"] for r in verdicts} == {3}
    assert {r["locks"] for r in rows if r["quantity"].endswith("fresh")} == {1}
    for r in rows:
        if r["quantity"] == RATE:
            assert r["bracket"][0] <= r["measured"] <= r["bracket"][1]
        if "predicted" in r:
            assert r["predicted_interval"][0] < r["predicted"] < r["predicted_interval"][1]
    kept = json.loads((all_made / "calibration.json").read_text())
    assert {name: Calibration.from_dict(law) for name, law in kept.items()} == calibrations_in(rows)


def test_one_page_says_what_the_records_say(made: Path) -> None:
    records = {n: json.loads((made / f"{n}.json").read_text()) for n in EXPERIMENTS if n not in SLOW}
    text = page(records, made, made.parent / "docs" / "results.md")
    glance = text.split("\n## ")[1]
    for name, record in records.items():
        assert f"](../{made.name}/{name}.png)" in text
        for claim in EXPERIMENTS[name].at("smoke").claims(record["rows"]):
            (line,) = (
                line for line in glance.splitlines() if line.startswith(f"| {name} | {claim.claim} | ")
            )
            (whole,) = (line for line in text.splitlines() if line.startswith(f"| {claim.claim} | "))
            for finding in (*claim.as_printed, *claim.under_search):
                assert f"**{finding.verdict}**" in line
                assert finding.of in line
                assert finding.marked("**") in whole
    assert "| as printed | sgd at 0.1 | " in text
    assert "| searched, each optimizer | adamw | " in text
    assert "| searched, the best, whether it trains or not | specdef | " in text
    rows = [r for r in records["figure4"]["rows"] if r["block"] == "as printed"]
    assert [(r["optimizer"], r["target"]) for r in rows] == [
        ("sgd", "base"), ("sgd", "locked"), ("adamw", "base"), ("adamw", "locked"),
    ]  # fmt: skip


@pytest.mark.slow
def test_every_class_has_its_accuracy_beside_the_papers(all_made: Path) -> None:
    record = json.loads((all_made / "table3.json").read_text())
    rows = [r for r in record["rows"] if r["block"] == "as printed"]
    assert len(rows) == 50, "five models by ten classes"
    assert all(r["stand_in"] and r["paper"] is not None for r in rows)


@pytest.mark.slow
def test_an_image_table_has_its_four_blocks(all_made: Path) -> None:
    rows = json.loads((all_made / "table1-image.json").read_text())["rows"]
    printed, searched = ([r for r in rows if r["block"] == block] for block in ("as printed", "searched"))
    assert [(r["target"], r["paper"]) for r in printed] == [("base", 0.8), ("locked", 0.1)]
    assert [(r["target"], name_of(r["lock"])) for r in searched] == [
        ("base", ""), ("control", "specdef"), ("locked", "specdef"), ("control", "undo"), ("locked", "undo"),
    ]  # fmt: skip
    for r in searched:
        assert r["floor_by"] in ("scratch", "classical")
        assert 0 <= r["floor"] <= 1
    assert {r["lock"] for r in rows if r["block"] == "curvature"} == {"", *Table1Image.at("smoke").all_locks}
    # The head that reads digits is kept, and knows nothing of these.
    assert all(0 <= r["as_it_is"] <= 0.5 for r in printed)


def test_our_locks_may_be_audited_on_some_columns_alone() -> None:
    small = Table1Image.at("small")
    first, second, _ = small.others
    assert small.audited_on(first) == (small.lock, *small.our_locks)
    assert small.audited_on(second) == (small.lock,)
    assert replace(small, ours_on=None).audited_on(second) == small.all_locks
    assert small.audited_on(replace(first, searched=False)) == ()


@pytest.mark.slow
def test_a_lock_of_ours_that_fell_back_is_not_audited(tmp_path: Path) -> None:
    guarded = Table1Image.at("smoke").our_locks[0].removesuffix(UNGUARDED)
    experiment = replace(Table1Image.at("smoke"), our_locks=(guarded,))
    rows = experiment.rows(tmp_path)
    assert {r["lock"] for r in rows if r["block"] == "searched"} == {"", experiment.lock}
    (said,) = [c.printed for c in experiment.claims(rows) if c.claim.startswith("Not in the paper: undo")]
    assert said.startswith("says nothing, it is the model as it was before")


@pytest.mark.slow
def test_what_was_tuned_and_several_draws_of_a_lock_have_their_rows(tmp_path: Path) -> None:
    tuned = "specdef:retain=task,batch_size=32,optimizer=adam,steps=8,evaluations=2"
    gentler = f"{LOCK.replace('alpha=0.5', 'alpha=0.9')},steps=6,evaluations=2"
    asked = {
        "trials": 3,
        "tuned_first": (gentler,),
        "tuned_from": (tuned,),
        "proxy": "fashion-mnist@40/40/40",
    }
    experiment = replace(Figure4.at("smoke"), seeds=2, **asked)
    rows = experiment.rows(tmp_path)
    (search,) = [r for r in rows if r["block"] == "tuning"]
    assert [trial["lock"] for trial in search["every"]][1] == gentler
    assert {len(r["seeds"]) for r in rows if r["block"] == "utility" and r["lock"] == experiment.lock} == {2}
    assert all(len(r["seeds"]) == 2 for r in rows if r["block"] == "curvature")
    claims = experiment.claims(rows)
    assert any(c.claim.startswith("Not in the paper: the strongest lock of its kind") for c in claims)
    assert "Of the weights" in "".join(_of_the_weights(rows))


@pytest.mark.slow
def test_a_text_table_says_which_model_and_where_it_stands_in(all_made: Path) -> None:
    rows = json.loads((all_made / "table1-text.json").read_text())["rows"]
    assert {r["model"] for r in rows} == {"bert-l2-h64"}
    blocks = ["utility", "spectrum", "as printed", "searched", "at its best", "curvature"]
    assert list(dict.fromkeys(r["block"] for r in rows)) == blocks
    assert all(r["stand_in"] for r in rows if r["block"] in ("utility", "as printed", "searched"))
    claims = Table1Text.at("smoke").claims(rows)
    assert all(claim.claim.startswith("bert-l2-h64: ") for claim in claims)


@pytest.mark.slow
def test_a_guards_table_has_success_and_clean_score_before_and_after(all_made: Path) -> None:
    rows = json.loads((all_made / "table2.json").read_text())["rows"]
    found = {(r["block"], r["target"]): r["paper"] for r in rows if r["paper"] is not None}
    assert found == {
        ("utility", "base"): 0.948, ("utility", "locked"): 1.0,
        ("before", "base"): 0.093, ("before", "locked"): 0.0,
        ("as printed", "base"): 0.883, ("as printed", "locked"): 1.0,
        ("as printed, clean", "base"): 0.906, ("as printed, clean", "locked"): 0.0,
    }  # fmt: skip
    assert all(0 <= r["collapsed"] <= len(r["seeds"]) for r in rows if r["block"].startswith("as printed"))


@pytest.mark.slow
def test_every_rate_is_tried_on_base_and_locked_model(all_made: Path) -> None:
    rows = json.loads((all_made / "figure3.json").read_text())["rows"]
    printed = [(r["lr"], r["target"]) for r in rows if r["block"] == "as printed"]
    assert printed == [(1e-3, "base"), (1e-3, "locked"), (1e-4, "base"), (1e-4, "locked")]


def test_all_makes_what_is_missing_and_the_page(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "paper"
    shutil.copytree(made, out)
    (out / "figure1.json").unlink()
    few = {name: EXPERIMENTS[name] for name in EXPERIMENTS if name not in SLOW}
    monkeypatch.setattr("speclock.cli.reproduce.EXPERIMENTS", few)
    record = json.loads((out / "figure4.json").read_text())
    record["settings"]["epochs"] = 9
    (out / "figure4.json").write_text(json.dumps(record))
    assert main(["reproduce", "all", "--scale", "smoke", "--out", str(out)]) == 0
    assert (out / "figure1.json").exists()
    assert (out / "results.md").read_text().startswith("# The paper, claim by claim")
    assert "figure4.json was made with other settings or rules" in capsys.readouterr().err


def test_a_page_of_the_records_that_there_are_names_those_that_there_are_not(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["reproduce", "all", "--present", "--out", str(tmp_path)]
    assert main(asked) == 2
    assert "holds no record" in capsys.readouterr().err
    shutil.copy(made / "figure1.json", tmp_path)
    assert main(asked) == 0
    text = (tmp_path / "results.md").read_text()
    assert "steps" in text
    assert "Not run yet: figure2, " in text
    assert [path.name for path in tmp_path.glob("*.json")] == ["figure1.json"]
    assert (tmp_path / "figure1.svg").read_text() == (made / "figure1.svg").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_is_made_once_in_one_process_or_several(tmp_path: Path, jobs: int) -> None:
    files = [tmp_path / f"{i}.json" for i in range(3)]
    files[0].write_text("0")
    numbers = each_once(dict.fromkeys(files, os.getpid), jobs)
    assert numbers[0] == 0, "it was there"
    assert (os.getpid() in numbers) == (jobs == 1)
    assert each_once(dict.fromkeys(files, os.getpid), jobs) == numbers
    files[0].unlink()
    files[1].unlink()
    with pytest.raises(ZeroDivisionError):
        each_once(dict.fromkeys(files, partial(divmod, 1, 0)), jobs)


def test_a_row_has_its_interval() -> None:
    entry = row([0.8, 0.9, 1.0], paper=0.9)
    assert entry["measured"] == pytest.approx(0.9)
    assert entry["ci"] == pytest.approx((0.6516, 1.1484), abs=1e-4)
    assert row([0.8])["ci"] is None
