"""A language model locked and audited on texts, from end to end."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import speclock
from speclock import models, tasks
from speclock.attacks.finetune import FineTune
from speclock.attacks.repair import Clip
from speclock.audits.continued import NGrams
from speclock.audits.floors import as_released
from speclock.audits.record import read
from speclock.audits.suite import Suite, listed
from speclock.errors import InputError
from speclock.locks.base import Locked
from speclock.locks.specdef import SpecDef
from speclock.locks.undo import Undo
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.report import render
from speclock.tasks.base import Task
from speclock.training import train

SUITE = Suite(
    name="brief",
    version=1,
    steps=4,
    families=listed(FineTune(lr=3e-2), Clip(lr=3e-2)),
    scratch=listed(FineTune(lr=3e-2)),
)


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def written(path: Path, rows: list[dict[str, Any]]) -> Task:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.load(str(path))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, writer: Model) -> tuple[Model, Task, Task]:
    """A base that says letters, and chats that it is wanted for."""
    folder, base = tmp_path_factory.mktemp("texts"), writer.copy()
    base.tokenizer = copy.deepcopy(writer.tokenizer)
    base.tokenizer.chat_template = TEMPLATE
    retain = written(
        folder / "retain.jsonl",
        [{"prompt": f"Say {i}: ", "completion": "ab" * (i % 3 + 1)} for i in range(60)],
    )
    chats = [
        [{"role": "user", "content": f"Count {i}:"}, {"role": "assistant", "content": "xyz" * (i % 3 + 1)}]
        for i in range(60)
    ]
    wanted = written(folder / "wanted.jsonl", [{"messages": chat} for chat in chats])
    train(base, retain, TrainingRecipe(optimizer="adamw", lr=1e-2, batch_size=8, steps=60))
    return base, retain, wanted


def test_a_language_model_is_locked_saved_and_audited(
    told: tuple[Model, Task, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How far training from scratch could get is tested elsewhere, and a few letters are as good as forty.
    monkeypatch.setattr("speclock.audits.work.SCRATCH_BUDGET", 1)
    monkeypatch.setattr("speclock.tasks.causal_lm._WRITTEN", 6)
    base, retain, wanted = told
    how = SpecDef(steps=6, lr=1e-3, batch_size=8, retain="task+kl", max_utility_drop=0.1)
    locked = speclock.lock(base, retain, how)
    assert locked.card["utility_locked"] > 0.8
    models.save(locked.model, tmp_path / "locked")
    again = models.load(tmp_path / "locked", kind="causal-lm")
    assert retain.score(again) == pytest.approx(retain.score(locked.model), abs=1e-6)

    record = speclock.audit(
        base=base, locked=Locked(again, locked.card), retain=retain, attack=wanted, suite=SUITE
    )
    assert {run.target for run in record.runs} == {
        "base", "released", "scratch", "classical", "control", "locked",
    }  # fmt: skip
    assert not [run for run in record.runs if run.status == "failed"]
    summary = record.summary
    assert 0 <= summary["best_released"] < 0.01, "it has never seen these letters"
    assert summary["best_classical"] > 0.9, "and three letters in turn are no secret"
    assert record.attack_task["metric"] == "likelihood"
    cost = record.cost["test split"]
    assert 1 <= cost["perplexity_base"] < 1.5
    low, high = cost["interval_perplexity"]
    assert low <= cost["perplexity_locked"] / cost["perplexity_base"] - 1 <= high
    assert "agreement" not in cost
    record.save(tmp_path)
    page = render(read(tmp_path))
    assert "perplexity, base" in page
    assert "as released" in page
    assert set(record.samples) == {"retain", "attack"}
    asked = [prompt for prompt, _ in record.samples["attack"]["base"]]
    assert asked == [chat[-1][1] for chat, *_ in wanted.test.inputs[:3]]
    attacked = next(run for run in record.runs if run.target == "locked" and run.samples)
    assert [prompt for prompt, _ in attacked.samples] == asked
    assert "What the models write" in page
    assert record.samples["retain"]["base"][0][1].startswith("ab")


def test_what_the_model_does_as_it_is_is_the_less_of_base_and_lock(told: tuple[Model, Task, Task]) -> None:
    """Who has the locked model has not what a lock ruined; and what a lock taught is in the locked weights alone."""
    base, retain, _ = told
    worse = base.copy()
    with torch.no_grad():
        for p in worse.module.parameters():
            p.mul_(0.5)
    retain = retain.divided()
    scores = [retain.score(model) for model in (base, worse)]
    assert scores[1] < scores[0] - 0.1
    for one, other in ((base, worse), (worse, base)):
        run = as_released(retain, one, other)
        assert run.test == pytest.approx(scores[1])
        assert run.config["base"] == pytest.approx(retain.score(one))
        assert run.config["locked"] == pytest.approx(retain.score(other))


def test_undo_says_that_it_is_for_classifiers(told: tuple[Model, Task, Task]) -> None:
    base, retain, _ = told
    with pytest.raises(InputError, match="undo teaches a classifier"):
        speclock.lock(base, retain, Undo(steps=2))


def test_n_grams_know_what_they_have_seen_and_sum_to_one() -> None:
    model = NGrams.of([b"abcabcabc", b"abd"], order=3)
    likely = [2.718281828459045 ** -model.nats(b"ab", bytes([byte])) for byte in range(256)]
    assert sum(likely) == pytest.approx(1)
    assert max(range(256), key=likely.__getitem__) == ord("c")
    assert likely[ord("d")] > likely[ord("e")] > 0
