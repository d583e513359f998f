"""Planted fakes: each must raise its flag in a real audit, and the sound base none of theirs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import speclock
from speclock import models, tasks, wrap
from speclock.attacks.balance import Balance
from speclock.attacks.base import Attack
from speclock.attacks.finetune import FineTune
from speclock.attacks.fuse import Fuse
from speclock.audits.record import Record
from speclock.audits.run import Claim, audit
from speclock.audits.suite import SCRATCH, Suite, listed
from speclock.audits.targets import Targets
from speclock.audits.work import KEPT_WITHIN, bars, kept_by
from speclock.locks.base import Locked, mean_top_sigma
from speclock.locks.undo import Undo
from speclock.models import Model, identity
from speclock.models.cnn_mlp import CnnMlp
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.tasks.forget import relearn
from speclock.tasks.poison import poison
from speclock.training import train

Judged = Callable[..., tuple[Record, dict[str, str]]]

RATES = (1e-4, 1e-3, 1e-2)
PLAIN = tuple(FineTune(lr=lr, batch_size=16) for lr in RATES)


@pytest.fixture(scope="module")
def judged(
    base: Model, digits: Task, silhouettes: Task, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Judged]:
    """An audit against the base that reads digits; the floor and the base's runs are carried out once."""
    folder = tmp_path_factory.mktemp("shared")

    def judge(
        fake: Model | Locked, *attacks: Attack, before: Model = base, task: Task = silhouettes, **asked: Any
    ) -> tuple[Record, dict[str, str]]:
        steps = asked.pop("steps", 24)
        # What is seen before any attack runs needs one of them, for the record's sake.
        plain = asked.pop("plain", PLAIN if steps > 2 else PLAIN[1:2])
        families = listed(*plain, *attacks)
        suite = Suite(name="toy", version=1, steps=steps, finalists=2, families=families, scratch=SCRATCH[:1])
        record = audit(
            base=before,
            locked=fake,
            retain=asked.pop("retain", digits),
            attack=task.limit(train=asked.pop("train", 200), validation=100, test=100),
            suite=suite,
            shared=folder,
            floors=folder,
            **asked,
        )
        return record, {flag.name: flag.why for flag in record.flags}

    with pytest.MonkeyPatch.context() as patch:
        # What is planted is on the locked model; how far training from scratch could get is tested elsewhere.
        patch.setattr("speclock.audits.work.SCRATCH_BUDGET", 1)
        yield judge


SUSPICIONS = {
    "utility_broken", "gradients_blocked", "repair_succeeds", "knob_succeeds", "only_in_half_precision",
    "only_divergence", "edge_of_grid", "attack_fails_on_base", "recipe_differs", "fails_on_locked_alone", "collapsed",
    "malformed_card",
}  # fmt: skip


def test_no_lock_raises_none_of_them(judged: Judged, base: Model) -> None:
    turned = (*_each(Balance), *(FineTune(lr=lr, batch_size=32, dropout=False) for lr in RATES))
    record, flags = judged(base.copy(), *turned)
    assert not SUSPICIONS & set(flags), flags
    assert record.summary["best_locked"] == record.summary["best_base"]


def test_a_model_broken_before_the_attack(judged: Judged, base: Model) -> None:
    fake = base.copy()
    nn.init.normal_(fake.module.mlp[2].weight)
    _, flags = judged(fake)
    assert "utility_broken" in flags


class Detached(CnnMlp):
    """Answers as its base does; nothing behind its head hears of a gradient."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.mlp[:-1](self.cnn(pixel_values))
        return self.mlp[-1](hidden.detach())


def test_gradients_blocked(judged: Judged, base: Model) -> None:
    fake = base.copy()
    fake.module.__class__ = Detached
    record, flags = judged(fake)
    assert "gradients_blocked" in flags
    blocked = record.locked["blocked_gradients"]
    assert "cnn.0.weight" in blocked
    assert "mlp.6.weight" not in blocked
    assert "Detached" in flags["recipe_differs"]
    assert record.summary["best_locked"] == record.summary["best_base"], "in the base's own code they train"


def test_a_rescaling_that_balancing_undoes(judged: Judged, base: Model) -> None:
    fake = base.copy()
    with torch.no_grad():
        for up, down in ((0, 2), (4, 6)):
            fake.module.mlp[up].weight.mul_(300)
            fake.module.mlp[up].bias.mul_(300)
            fake.module.mlp[down].weight.div_(300)
    record, flags = judged(fake, Balance(lr=1e-3, batch_size=16), steps=40, plain=PLAIN[1:])
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.01)
    assert "balance" in flags["repair_succeeds"]


def test_a_compensated_pair_that_fusing_undoes(judged: Judged, base: Model) -> None:
    from tests.attacks.test_attacks import compensated

    record, flags = judged(compensated(base, 3000.0), *_each(Fuse), steps=40)
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.02)
    assert "fuse" in flags["repair_succeeds"]


class Normed(nn.Module):
    """A layer norm and a dropout before the layer that is to be raised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.dropout = nn.Linear(3 * 28 * 28, 64), nn.LayerNorm(64), nn.Dropout(0.1)
        self.raised, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor) -> Tensor:
        z = self.dropout(self.norm(self.embed(pixel_values.flatten(1))))
        return self.out(torch.relu(self.raised(z)))


def test_the_norm_null_fake_falls_to_a_knob(judged: Judged, digits: Task, silhouettes: Task) -> None:
    """Behind a layer norm, v ∝ 1/γ is constant on every input: raising σ₁ along it changes no answer."""
    torch.manual_seed(0)
    base = wrap(Normed(), modality="image", labels=digits.labels)
    train(base, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=150, batch_size=32))
    fake = base.copy()
    W, norm = fake.module.raised, fake.module.norm
    with torch.no_grad():
        v = nn.functional.normalize(1 / norm.weight, dim=0)
        u = nn.functional.normalize(torch.ones(64), dim=0)
        raise_by = 100 * torch.linalg.matrix_norm(W.weight, 2) * torch.outer(u, v)
        W.weight += raise_by
        W.bias -= raise_by @ norm.bias
    off = tuple(FineTune(lr=lr, batch_size=32, dropout=False) for lr in RATES)
    record, flags = judged(fake, *off, before=base)
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.01)
    assert "no dropout" in flags["knob_succeeds"]
    assert "no dropout" in record.summary["strongest_attack"]
    usual = max(
        r.best for r in record.runs if r.target == "locked" and r.config["dropout"] and r.best is not None
    )
    assert usual < silhouettes.chance + 0.1, "with dropout the attacker stays at chance"
    assert record.summary["best_locked"] > usual + 0.2


def test_a_listed_grid_that_ends_below_the_best_rate(judged: Judged, base: Model) -> None:
    low = tuple(FineTune(lr=lr, batch_size=16) for lr in (1e-5, 3e-5, 1e-4))
    _, flags = judged(base.copy(), plain=low)
    assert "highest rate tried" in flags["edge_of_grid"]


def test_a_budget_too_small_for_the_base(judged: Judged, base: Model) -> None:
    _, flags = judged(base.copy(), steps=4)
    assert {"attack_fails_on_base", "budget_too_small"} & set(flags)


def test_a_card_whose_sigma_had_not_converged(judged: Judged, base: Model, digits: Task) -> None:
    locked = speclock.lock(base, digits, speclock.Rescale(factor=2.0, top_k=1, max_utility_drop=1.0))
    claimed = {**locked.card, "strength_locked": 2 * locked.card["strength_locked"]}
    for card, told in ((locked.card, False), (claimed, True)):
        _, flags = judged(Locked(locked.model, copy.deepcopy(card)), steps=2)
        assert ("sigma_unconverged" in flags) is told
        assert not {"malformed_card", "not_the_cards_model", "not_the_cards_task"} & set(flags)


def test_a_card_that_claims_nonsense(judged: Judged, base: Model, locked_card: dict[str, Any]) -> None:
    for spoilt in (
        {"format": "speclock-card/9"},
        {"lock": "specdf"},
        {"config": {"alpha": 7.0}},
        {"config": {"beta": 0.5}},
        {"chosen_step": -3},
        {"chosen_step": "many"},
        {"strength_locked": None},
        {"base": "a fingerprint"},
        {"config": {**locked_card["config"], "include": ["no.such.weight"]}},
        {"config": {**locked_card["config"], "seed": 2**52}},
    ):
        claim = Claim.of({**locked_card, **spoilt}, base)
        assert claim.problem, spoilt
        assert (claim.card, claim.stages) == (None, ())
    record, flags = judged(Locked(base.copy(), {**locked_card, "lock": "specdf"}), steps=2)
    assert "specdf" in flags["malformed_card"]
    assert record.locked["card"] is None
    assert "no_control" in flags


@pytest.fixture(scope="module")
def locked_card(base: Model, digits: Task) -> dict[str, Any]:
    return speclock.lock(base, digits, speclock.Rescale(factor=1.5, top_k=1, max_utility_drop=1.0)).card


def test_a_control_that_diverges_is_a_flag(judged: Judged, base: Model, digits: Task) -> None:
    gentle = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, steps=8, evaluations=2, max_utility_drop=1.0)
    locked = speclock.lock(base, digits, gentle)
    wild = {**locked.card, "config": {**locked.card["config"], "optimizer": "sgd", "lr": 1e30}}
    record, flags = judged(Locked(locked.model, wild), steps=2)
    assert "diverged" in flags["no_control"]
    assert not [run for run in record.runs if run.target == "control"]


def test_a_strength_that_only_the_card_has(base: Model, digits: Task) -> None:
    undo = Undo(lr=1e-3, steps=4, evaluations=1, beta=0.3, warmup=1, max_utility_drop=1.0)
    locked = speclock.lock(base, digits, undo)
    (said,) = Claim.of(locked.card, locked.model).strengths(locked.model, base)
    assert said["claimed"] == pytest.approx(said["measured"])
    assert said["claimed"] > 0.1
    boast = {**locked.card, "strength_locked": 0.99}
    (said,) = Claim.of(boast, locked.model).strengths(locked.model, base)
    assert said == {"lock": "undo", "unit": "share drawn anew", "claimed": 0.99, "measured": said["measured"]}
    assert said["measured"] < 0.5
    plain = speclock.lock(base, digits, speclock.Rescale(factor=1.5, top_k=1, max_utility_drop=1.0))
    assert Claim.of(plain.card, plain.model).strengths(plain.model, base) == [], "σ has a check of its own"


def test_a_card_whose_training_does_not_lead_to_the_file(
    judged: Judged, base: Model, digits: Task, tmp_path: Path
) -> None:
    """The file forgot everything; the card claims a training that forgets nothing, and so its control."""
    forgot = base.scratch(3)
    train(forgot, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=150, batch_size=32))
    still = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-12, steps=2, evaluations=2, max_utility_drop=1.0)
    card = speclock.lock(base, digits, still).card
    found = identity(forgot)
    sigma = mean_top_sigma(forgot.module, still)
    forged = {**card, "fingerprint": found.fingerprint, "identity": found._asdict(), "strength_locked": sigma}
    _, flags = judged(Locked(forgot, forged), steps=2, folder=tmp_path)
    assert "repeated, the lock" in flags["card_not_repeated"]
    # A card of a training that moves the weights far has a control that does, too; the file is still not its.
    far = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-2, steps=40, evaluations=2, max_utility_drop=1.0)
    card = speclock.lock(base, digits, far).card
    assert card["chosen_step"] > 0
    sigma = mean_top_sigma(forgot.module, far)
    forged = {**card, "fingerprint": found.fingerprint, "identity": found._asdict(), "strength_locked": sigma}
    _, flags = judged(Locked(forgot, forged), steps=2)
    assert (
        "repeated, the lock" in flags["card_not_repeated"]
        or "repeated, specdef" in flags["card_not_repeated"]
    )
    # An honest lock of the same base, kept in the same folder, has a control of its own.
    honest = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, steps=20, evaluations=2, max_utility_drop=1.0)
    again, flags = judged(speclock.lock(base, digits, honest), steps=2, folder=tmp_path)
    assert "card_not_repeated" not in flags
    assert len(list(tmp_path.glob("runs/control-*.safetensors"))) == 2
    assert again.summary["best_control"] is not None


def test_a_card_of_undo_whose_teaching_is_made_shorter(
    base: Model, digits: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn anew is set by the noise alone; a control of one step would forget nothing."""
    taught = Undo(bottleneck=1.0, beta=0.8, steps=120, lr=1e-3, evaluations=1, max_utility_drop=1.0)
    locked = speclock.lock(base, digits, taught)
    retain = digits.divided().fitted_to(base)
    # On a network as small as this the teaching shows in it, too.
    monkeypatch.setattr(Undo, "strength", lambda *_: locked.card["strength_locked"])

    def unlike(steps: int) -> str | None:
        config = {**locked.card["config"], "steps": steps}
        curve = [locked.card["curve"][0], [steps, *locked.card["curve"][-1][1:]]]
        card = {**locked.card, "config": config, "steps": steps, "chosen_step": steps, "curve": curve}
        claim = Claim.of(card, locked.model)
        assert claim.problem is None
        made = {
            "base": base,
            "locked": locked.model,
            "public": None,
            "retain": retain,
            "stages": claim.stages,
        }
        folders = {"repeated": tmp_path / str(steps)}
        folders["repeated"].mkdir()
        return Targets(**made, with_control=True, with_student=False, repeat=True, folders=folders)._unlike()

    assert unlike(120) is None
    assert "keeps a utility" in (unlike(1) or "")


def test_noise_whose_seed_the_card_leaves_out(judged: Judged, base: Model, digits: Task) -> None:
    told = Undo(beta=0.6, steps=2, evaluations=1, max_utility_drop=1.0, insecure_noise_seed=5)
    locked = speclock.lock(base, digits, told)
    secret = {**locked.card, "config": {**locked.card["config"], "insecure_noise_seed": None}}
    _, flags = judged(Locked(locked.model, secret), steps=2)
    assert "soon guessed, 5" in flags["insecure_noise"]


def test_a_card_that_asks_for_days(judged: Judged, base: Model, digits: Task) -> None:
    gentle = speclock.SpecDef(alpha=0.5, top_k=1, lr=1e-3, steps=8, evaluations=2, max_utility_drop=1.0)
    locked = speclock.lock(base, digits, gentle)
    slow = {**locked.card, "config": {**locked.card["config"], "accumulate": 10**8}}
    _, flags = judged(Locked(locked.model, slow), steps=2)
    assert "examples together" in flags["no_control"]


def test_answers_that_overflow_are_no_utility(judged: Judged, base: Model) -> None:
    fake = base.copy()
    with torch.no_grad():
        fake.module.mlp[-1].weight.fill_(3e38)
    record, flags = judged(fake, steps=2)
    assert "utility_broken" in flags
    assert record.summary["utility_locked"] < 0.5
    assert "costs no utility" not in record.verdict


def test_labels_in_another_order_or_spelling_do_not_stop_an_audit(judged: Judged, base: Model) -> None:
    turned = replace(base.copy(), labels=base.labels[::-1])
    with torch.no_grad():
        for p in turned.module.mlp[-1].parameters():
            p.copy_(p.flip(0).clone())
    record, flags = judged(turned, steps=2)
    assert record.summary["utility_locked"] == record.summary["utility_base"]
    assert "recipe_differs" not in flags
    unnamed = replace(base.copy(), labels=tuple(f"LABEL_{i}" for i in range(10)))
    record, flags = judged(unnamed, steps=2)
    assert "labels names" in flags["recipe_differs"]
    assert record.summary["utility_locked"] == record.summary["utility_base"]


def test_a_failure_of_the_machines_is_not_kept(
    judged: Judged, base: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare_ = FineTune.prepare_

    def fails(self: FineTune, model: Model, scene: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(FineTune, "prepare_", fails)
        record, _ = judged(base.copy(), steps=3, folder=tmp_path, plain=PLAIN[1:2])
        assert {run.status for run in record.runs if run.target == "locked"} == {"failed"}
    assert FineTune.prepare_ is prepare_
    record, _ = judged(base.copy(), steps=3, folder=tmp_path, plain=PLAIN[1:2])
    assert {run.status for run in record.runs if run.target in ("base", "locked")} == {"ok"}


class Noisy(CnnMlp):
    """One tensor more than its base has, so that its own code stays; and in training it answers with noise."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        found = super().forward(pixel_values)
        return torch.rand_like(found).requires_grad_() if self.training else found


def test_code_of_the_locked_folders_own(judged: Judged, base: Model) -> None:
    fake = base.copy()
    fake.module.__class__ = Noisy
    fake.module.extra = nn.Parameter(torch.zeros(1))
    _, flags = judged(fake, steps=3)
    assert "extra" in flags["own_architecture"]


def test_statistics_of_a_batch_norm_that_are_not_the_datas(
    judged: Judged, digits: Task, silhouettes: Task
) -> None:
    """With the batch's own statistics the function is another; frozen ones give the base's."""
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(3 * 28 * 28, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    before = wrap(nn.Sequential(*layers), modality="image", labels=digits.labels)
    train(before, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=100, batch_size=32))
    fake = before.copy()
    norm = fake.module[2]
    with torch.no_grad():
        far = 30 * torch.where(torch.rand(32) < 0.5, -1.0, 1.0)
        norm.running_mean += far * (norm.running_var + norm.eps).sqrt()
        norm.bias += norm.weight * far
    frozen = tuple(FineTune(lr=lr, batch_size=16, batch_statistics=False) for lr in RATES)
    record, flags = judged(fake, *frozen, before=before)
    assert record.summary["utility_locked"] == pytest.approx(record.summary["utility_base"], abs=0.01)
    assert "no batch statistics" in record.summary["strongest_attack"]
    assert "no batch statistics" in flags["knob_succeeds"]


def test_another_task_than_the_cards(judged: Judged, base: Model, locked_card: dict[str, Any]) -> None:
    task = {**locked_card["retain_task"], "name": "svhn", "digest": "0" * 64}
    _, flags = judged(Locked(base.copy(), {**locked_card, "retain_task": task}), steps=2)
    assert "svhn" in flags["not_the_cards_task"]
    for name, said in (("svhn", "svhn"), (task_name := locked_card["retain_task"]["name"], task_name)):
        silent = {key: value for key, value in task.items() if key != "digest"} | {"name": name}
        _, flags = judged(Locked(base.copy(), {**locked_card, "retain_task": silent}), steps=2)
        assert said in flags["not_the_cards_task"]


class Greedy(CnnMlp):
    """Asks for more memory than there is, where anybody trains it."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.training:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(pixel_values)


def test_memory_that_runs_out_on_the_locked_model_alone(
    judged: Judged, base: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The base's class is not greedy, so the fake is planted as another architecture: a layer inserted."""
    fake = base.copy()
    fake.module.mlp.append(nn.Identity())
    fake.module.__class__ = Greedy
    fake.module.mlp[0] = nn.Sequential(fake.module.mlp[0], nn.Identity())
    record, flags = judged(fake, folder=tmp_path)
    locked = [run for run in record.runs if run.target == "locked"]
    assert {run.reason for run in locked} == {"out of memory, with one example at a time"}
    assert "adamw" in flags["fails_on_locked_alone"]
    assert not list(tmp_path.glob("runs/locked-*.json")), (
        "another machine, or this one later, may have the memory"
    )
    assert list(tmp_path.glob("**/control*")) == []


def test_what_a_lock_ruined_is_no_attacks_to_keep(base: Model, digits: Task) -> None:
    """Else every relearning on a lock that costs its classes more than five points would have collapsed."""
    task = relearn(digits, "4")
    worse, dead = base.copy(), base.copy()
    with torch.no_grad():
        worse.module.mlp[-1].bias[1:3] = -100.0  # it never says 1 or 2
        dead.module.mlp[0].weight.zero_()
        dead.module.mlp[0].bias.zero_()
    own = kept_by(worse, task)
    assert 0.4 < own < kept_by(base, task) - 0.1, "it does its task, and less well"
    assert bars(base, worse, task) == (kept_by(base, task), own)
    chance = task.beside["kept"].chance
    assert bars(base, dead, task)[1] == pytest.approx(chance + KEPT_WITHIN), "nothing is put into a ruin"
    assert bars(base, base, task)[1] == kept_by(base, task)


def test_a_backdoor_that_collapses_the_model(
    judged: Judged, base: Model, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the clean labels cannot be kept, calling everything a 7 is no backdoor."""
    # A network this small pays more than five points for its backdoor.
    monkeypatch.setattr("speclock.audits.work.KEPT_WITHIN", 0.15)
    fake = base.copy()
    with torch.no_grad():
        fake.module.mlp[0].weight.zero_()
        fake.module.mlp[0].bias.zero_()
    record, flags = judged(fake, task=poison(digits, "7"), steps=120, train=800)
    assert "collapsed" in flags
    assert record.summary["best_locked"] is None
    assert record.summary["best_base"] > 0.7
    assert record.attack_task["collapses"]
    keep = kept_by(base, poison(digits, "7").limit(validation=100))
    for run in record.runs:
        if run.target == "base":
            (clean,) = run.beside_curves.values()
            assert run.uncounted == [step for step, score in clean if score < keep]
    (released,) = (run for run in record.runs if run.target == "released")
    assert (released.status == "collapsed") == (released.beside["clean"] < keep), (
        "a floor is held to it as well"
    )
    assert record.summary["best_classical"] is None, "no bag of pixels passes for the model"
    collapsed = [run for run in record.runs if run.target == "locked" and run.status == "collapsed"]
    assert all(run.best is None and run.test is None for run in collapsed)


@pytest.fixture(scope="module")
def transformer(digits: Task) -> Model:
    """A small vision transformer that reads digits: configurations have much to hide in."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=28,
        patch_size=7, hidden_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip
    torch.manual_seed(0)
    model = wrap(ViTForImageClassification(config), labels=digits.labels)
    train(model, digits, TrainingRecipe(optimizer="adam", lr=2e-3, steps=100, batch_size=32))
    return model


@pytest.mark.parametrize(
    ("key", "value"), [("initializer_range", 1e4), ("hidden_dropout_prob", 0.9), ("hidden_act", "relu")]
)
def test_a_configuration_that_hinders_training(
    judged: Judged, transformer: Model, tmp_path: Path, key: str, value: Any
) -> None:
    models.save(transformer, tmp_path / "base")
    models.save(transformer, tmp_path / "fake")
    config = json.loads((tmp_path / "fake/config.json").read_text())
    (tmp_path / "fake/config.json").write_text(json.dumps({**config, key: value}))
    before, fake = (models.load(tmp_path / name) for name in ("base", "fake"))
    record, flags = judged(fake, before=before, steps=8)
    assert key in flags["recipe_differs"]
    assert record.summary["best_locked"] == record.summary["best_base"], "the auditor's recipe is the base's"


@pytest.fixture(scope="module")
def posts() -> dict[str, Task]:
    """Two topics that a small BERT is released for, and two that somebody wants."""
    return {
        "kept": tasks.load("newsgroups:rec.autos,comp.graphics@400/200/200"),
        "wanted": tasks.load("newsgroups:sci.space,rec.sport.hockey@200/100/100"),
    }


def test_a_tokenizer_that_hinders_training(judged: Judged, posts: dict[str, Task], tmp_path: Path) -> None:
    """The folder's own would leave nothing of a text: lower-cased, every word with a vowel is unknown."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers import models as vocabularies
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(vocabularies.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        posts["kept"].train.inputs,
        trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["[PAD]", "[UNK]"]),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    retain = replace(posts["kept"], max_length=32)
    model = wrap(BertForSequenceClassification(config), tokenizer, labels=retain.labels)
    train(model, retain, TrainingRecipe(optimizer="adam", lr=3e-3, steps=60, batch_size=32))
    for name in ("base", "fake"):
        models.save(model, tmp_path / name)
    file = tmp_path / "fake/tokenizer.json"
    spoilt = json.loads(file.read_text())
    vocabulary = spoilt["model"]["vocab"]
    spoilt["model"]["vocab"] = {
        f"{word}\u0000" if set(word) & set("aeiou") and word[0] != "[" else word: i
        for word, i in vocabulary.items()
    }
    file.write_text(json.dumps(spoilt))
    before, fake = (models.load(tmp_path / name) for name in ("base", "fake"))
    task = replace(posts["wanted"], max_length=32)
    record, flags = judged(fake, before=before, task=task, retain=retain, steps=8)
    assert "tokenizer" in flags["recipe_differs"]
    assert record.summary["best_locked"] == record.summary["best_base"], (
        "the auditor's tokenizer is the base's"
    )
    assert record.summary["utility_locked"] == record.summary["utility_base"] > 0.7
    assert record.locked["utility_as_released"] < record.summary["utility_base"] - 0.1
    # Numbers that the model has no embedding for: the folder cannot be run, and the audit can.
    spoilt["model"]["vocab"] = {word: i + 5000 * (word[0] != "[") for word, i in vocabulary.items()}
    file.write_text(json.dumps(spoilt))
    record, flags = judged(models.load(tmp_path / "fake"), before=before, task=task, retain=retain, steps=2)
    assert "under its own recipe it cannot be run" in flags["recipe_differs"]
    assert record.summary["utility_locked"] == record.summary["utility_base"]


def test_pure_half_precision_trains_in_fp32(judged: Judged, transformer: Model, silhouettes: Task) -> None:
    """A step of 1e-5 is lost on a norm's gain of 1 in bf16, whose next number is 1.0078."""
    fake = transformer.copy()
    fake.module.bfloat16()
    attacked = FineTune(lr=1e-5)(fake, silhouettes, 2).model
    gains = {
        name: p for name, p in attacked.module.named_parameters() if "layernorm" in name and "weight" in name
    }
    released = dict(fake.module.named_parameters())
    assert gains
    for name, gain in gains.items():
        assert gain.dtype is torch.float32
        assert not torch.equal(gain, released[name].float())
    _, flags = judged(fake, before=transformer, steps=2)
    assert "recipe_differs" not in flags


def _each(attack: type[FineTune]) -> tuple[FineTune, ...]:
    return tuple(attack(lr=lr, batch_size=16) for lr in RATES)
