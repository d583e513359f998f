"""Several locks of one base, side by side, through the command line and back from the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import speclock
from speclock import models
from speclock.audits import run as audit_run
from speclock.audits.compare import compare, proportion
from speclock.cli import cli
from speclock.errors import InputError
from speclock.models import Model
from speclock.tasks.base import Task

from .test_run import SUITE


@pytest.fixture(scope="module")
def folders(base: Model, digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two locks of it, as `speclock lock` leaves them."""
    root = tmp_path_factory.mktemp("locks")
    models.save(base, root / "base")
    for name, factor in (("gentle", 1.2), ("harsh", 3.0)):
        how = speclock.Rescale(factor=factor, top_k=1, max_utility_drop=1.0)
        locked = speclock.lock(base, digits, how)
        models.save(locked.model, root / name, extra={"speclock.json": json.dumps(locked.card)})
    return root


def test_one_table_and_one_picture(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    carry_out = audit_run._Work._carry_out

    def counted(self, target, model, attack, watch):  # type: ignore[no-untyped-def]
        calls.append(target)
        return carry_out(self, target, model, attack, watch)

    monkeypatch.setattr(audit_run._Work, "_carry_out", counted)
    monkeypatch.setattr(audit_run, "SUITES", {"quick": SUITE})
    out = tmp_path / "out"
    words = [
        "audit", str(folders / "gentle"), str(folders / "harsh"), "--base", str(folders / "base"),
        "--retain-task", "mnist@800/300", "--attack-task", "kmnist@400/200", "--steps", "12", "--out", str(out),
    ]  # fmt: skip
    cli.main(words, standalone_mode=False)
    found = json.loads((out / "compare.json").read_text())
    assert [row["name"] for row in found["locks"]] == ["gentle", "harsh"]
    gentle, harsh = found["locks"]
    assert gentle["strength"][1] < harsh["strength"][1]
    assert gentle["utility_interval"][0] < gentle["utility_locked"] < gentle["utility_interval"][1]
    assert gentle["best_base"] == harsh["best_base"]
    assert calls.count("base") == calls.count("scratch") == len(SUITE.attacks), "attacked once for both"
    assert calls.count("locked") == 2 * len(SUITE.attacks)
    for name in ("gentle", "harsh"):
        assert json.loads((out / name / "audit.json").read_text())["summary"]["uplift"] == pytest.approx(
            found["locks"][name == "harsh"]["uplift"]
        )
        assert (out / name / "report.html").exists()
    page = (out / "compare.html").read_text()
    assert "gentle/report.html" in page
    assert "<svg" in page
    assert "://" not in page.replace("http://www.w3.org", "")


def test_what_does_not_compare_is_refused(folders: Path) -> None:
    record = {
        "suite": {"name": "quick"}, "retain_task": {"test": 10}, "attack_task": {}, "base": {"fingerprint": "B"},
    }  # fmt: skip
    with pytest.raises(InputError, match="two was audited with another suite"):
        compare({"one": record, "two": {**record, "suite": {"name": "standard"}}}, {})
    with pytest.raises(InputError, match="two was audited against another base"):
        compare({"one": record, "two": {**record, "base": {"fingerprint": "C"}}}, {})


def test_wilson_stays_within_the_unit_interval() -> None:
    for p in (0.0, 0.01, 0.5, 1.0):
        low, high = proportion(p, 20)
        assert -1e-12 <= low <= p <= high + 1e-12
        assert high <= 1 + 1e-12
