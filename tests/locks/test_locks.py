"""The contract of every lock, and what each does to the spectrum."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speclock
from speclock.errors import InputError
from speclock.locks import LOCKS
from speclock.locks.base import Lock
from speclock.locks.retain import Teacher
from speclock.models import Model, fingerprint
from speclock.spectra import weight_matrices
from speclock.tasks.base import Task

SETTINGS: dict[str, dict[str, Any]] = {
    "specdef": {
        "alpha": 0.5, "top_k": 1, "optimizer": "adam", "lr": 1e-3, "steps": 20, "evaluations": 4,
        "max_utility_drop": 0.05,
    },
    "rescale": {"top_k": 1, "factor": 1.5, "evaluations": 3, "max_utility_drop": 1.0},
    "undo": {
        "beta": 0.5, "bottleneck": 1.0, "steps": 40, "lr": 1e-3, "evaluations": 2, "max_utility_drop": 0.5,
        "insecure_noise_seed": 0,
    },
    "scheduled": {"top_k": 1, "factor": 1.5, "lr": 1e-3, "steps": 20, "evaluations": 4, "max_utility_drop": 0.5},
    "compensated": {"top_k": 1, "factor": 10.0, "evaluations": 3},
    "reparameterise": {"top_k": 1, "factor": 10.0, "evaluations": 3},
}  # fmt: skip


def test_every_lock_is_in_the_contract() -> None:
    assert set(SETTINGS) == set(LOCKS)


@pytest.fixture(params=sorted(SETTINGS))
def lock(request: pytest.FixtureRequest) -> Lock:
    return LOCKS[request.param](**SETTINGS[request.param])


@pytest.fixture
def base(base: Model, request: pytest.FixtureRequest) -> Model:
    """With a layer behind another and nothing between, for the lock that needs one."""
    wanted = getattr(request.node, "callspec", None)
    return paired(base) if wanted and wanted.params.get("lock") == "compensated" else base


def paired(base: Model) -> Model:
    """The base with its widest layer followed by one that does nothing."""
    model = base.copy()
    layer = model.module.mlp[0]
    second = torch.nn.Linear(layer.out_features, layer.out_features)
    torch.nn.init.eye_(second.weight)
    torch.nn.init.zeros_(second.bias)
    model.module.mlp[0] = torch.nn.Sequential(layer, second)
    model.build = None
    return model


def test_contract(lock: Lock, base: Model, digits: Task) -> None:
    before = fingerprint(base)
    locked, card = lock(base, digits)
    assert fingerprint(base) == before, "a lock never changes the model it was handed"
    assert fingerprint(locked) == card["fingerprint"] != before
    assert card["strength_locked"] > 1.05 * card["strength_base"] + 0.01
    assert card["unit"] == lock.unit
    assert lock.strength(locked, base) == pytest.approx(card["strength_locked"], rel=1e-3)
    assert card["utility_locked"] == digits.score(locked)
    # The guard holds on the validation split; two standard errors of 300 examples more on the test split.
    assert card["utility_locked"] >= card["utility_base"] - lock.max_utility_drop - 0.05
    assert [step for step, *_ in card["curve"]] == sorted({step for step, *_ in card["curve"]})
    assert fingerprint(lock(base, digits).model) == card["fingerprint"], "same seed, same result"


def test_the_control_lacks_only_the_spectral_term(lock: Lock, base: Model, digits: Task) -> None:
    control = lock.control(base, digits, stop_at=lock.total_steps(digits)).model
    locked = lock(base, digits)
    halfway = 0.5 * (lock.strength(base, base) + locked.card["strength_locked"])
    assert lock.strength(control, base) < halfway


def test_rescale_multiplies_the_top_values_and_no_others(base: Model, digits: Task) -> None:
    lock = LOCKS["rescale"](top_k=2, factor=3.0, evaluations=1, max_utility_drop=1.0)
    locked = lock(base, digits).model
    for before, after in zip(weight_matrices(base.module), weight_matrices(locked.module), strict=True):
        one = torch.linalg.svdvals(before.matrix.detach().double())
        two = torch.linalg.svdvals(after.matrix.detach().double())
        one[:2] *= 3
        torch.testing.assert_close(two, one.sort(descending=True).values, rtol=1e-4, atol=1e-6)


def test_the_guard_falls_back_to_the_strongest_state_that_holds(base: Model, digits: Task) -> None:
    lock = LOCKS["rescale"](top_k=4, factor=1e6, evaluations=12, max_utility_drop=0.02)
    locked, card = lock(base, digits)
    floor = card["curve"][0][1] - 0.02
    holding = [point for point in card["curve"] if point[1] >= floor]
    assert len(holding) < len(card["curve"]), "the last states must be broken for this to test anything"
    step, utility, strength = max(holding, key=lambda point: point[2])
    assert (card["chosen_step"], card["strength_locked"]) == (step, strength)
    # Chosen on the validation split, quoted on the test split.
    assert digits.divided().score(locked, "validation") == utility
    assert card["utility_locked"] == digits.score(locked)


def test_a_lock_that_nothing_guards_keeps_its_last_state_whatever_its_strength(
    base: Model, digits: Task
) -> None:
    """As the paper has it: decay takes σ down, and what comes out of the training is the lock."""
    weak = {
        "alpha": 1.0,
        "weight_decay": 10.0,
        "optimizer": "adamw",
        "lr": 1e-2,
        "steps": 10,
        "evaluations": 2,
    }
    unguarded = LOCKS["specdef"](**weak, max_utility_drop=1)(base, digits).card
    assert unguarded["chosen_step"] == 10
    assert unguarded["strength_locked"] < unguarded["curve"][0][2]
    assert LOCKS["specdef"](**weak, max_utility_drop=0.99)(base, digits).card["chosen_step"] == 0


def test_a_lock_that_diverges_returns_the_base(base: Model, digits: Task) -> None:
    lock = LOCKS["specdef"](optimizer="sgd", lr=1e30, steps=20, evaluations=2)
    locked, card = lock(base, digits)
    assert (card["status"], card["chosen_step"]) == ("diverged", 0)
    assert fingerprint(locked) == fingerprint(base)


def test_alpha_one_pulls_nothing(base: Model, digits: Task) -> None:
    lock = LOCKS["specdef"](**{**SETTINGS["specdef"], "alpha": 1.0, "max_utility_drop": 1.0})
    one = lock.control(base, digits, stop_at=20).model
    two = base.copy()
    from speclock.locks.base import Run

    def run(path: Path) -> None:
        for _ in lock.trajectory(two, digits, spectral=True, run=Run.in_folder(path)):
            pass

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
    assert fingerprint(one) == fingerprint(two)


def test_a_teacher_answers_each_example_once_and_as_if_asked_anew(
    base: Model, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    logits = type(digits).logits

    def counted(self: Task, module: torch.nn.Module, batch: Any) -> torch.Tensor:
        asked.append(len(batch["labels"]))
        return logits(self, module, batch)

    task = digits.limit(train=50)
    remembers, anew = Teacher(base.copy(), task, repeats=True), Teacher(base.copy(), task, repeats=False)
    rows = [task.encode(task.train.take(np.array(some)), base) for some in ([3, 7, 40], [49, 3], [40])]
    monkeypatch.setattr(type(digits), "logits", counted)
    found = [remembers.logits(batch) for batch in rows]
    assert sum(asked) == 50
    for batch, answers in zip(rows, found, strict=True):
        torch.testing.assert_close(answers, anew.logits(batch))
    asked.clear()
    other = {**rows[0], "pixel_values": rows[0]["pixel_values"] + 1}
    torch.testing.assert_close(remembers.logits(other), anew.logits(other))
    assert asked == [3, 3], "what is no training example is computed"


@pytest.mark.parametrize("retain", ["task", "kl", "task+kl"])
def test_the_step_is_algorithm_1s(retain: str, base: Model, digits: Task) -> None:
    """One SGD step against a dense twin: autograd through svdvals, line 7 as the design writes it."""
    lr, alpha, k = 1e-2, 0.3, 2
    lock = LOCKS["specdef"](
        alpha=alpha, top_k=k, retain=retain, optimizer="sgd", lr=lr, steps=1, evaluations=1, batch_size=800,
        max_utility_drop=1.0,
    )  # fmt: skip
    moved = dict(lock(base, digits).model.module.named_parameters())
    twin = base.copy()
    twin.module.train()
    batch = digits.encode(digits.train, twin)
    logits = digits.logits(twin.module, batch)
    wanted = digits.logits(base.module.eval(), batch).detach().log_softmax(-1)
    losses = {
        "task": torch.nn.functional.cross_entropy(logits, batch["labels"]),
        "kl": (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean(),
    }
    spectra = [torch.linalg.svdvals(weight.matrix)[:k] for weight in weight_matrices(twin.module)]
    total = alpha * sum(losses[part] for part in retain.split("+")) - (1 - alpha) * torch.cat(spectra).mean()
    total.backward()
    for name, parameter in twin.module.named_parameters():
        expected = parameter.detach() - lr * parameter.grad
        torch.testing.assert_close(moved[name].detach(), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("stop", [3, 12])
def test_a_killed_lock_resumes_to_the_same_card(
    base: Model, digits: Task, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speclock.training import Checkpoint

    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    lock = LOCKS["specdef"](**SETTINGS["specdef"])
    whole = lock(base, digits)

    class Killed(BaseException):
        pass

    trajectory = type(lock).trajectory

    def dies(*args: Any, **kwargs: Any) -> Any:
        yield from itertools.islice(trajectory(*args, **kwargs), stop)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(lock), "trajectory", dies)
        with pytest.raises(Killed):
            lock(base, digits, folder=tmp_path)
    resumed = lock(base, digits, folder=tmp_path)
    for key in ("fingerprint", "curve", "chosen_step", "utility_locked", "strength_locked"):
        assert resumed.card[key] == whole.card[key]


def test_a_model_that_does_not_do_its_task_is_refused(base: Model, digits: Task) -> None:
    with pytest.raises(InputError, match=r"does not do mnist.*chance.*speclock train"):
        LOCKS["specdef"](steps=1)(base.scratch(0), digits)


def test_a_model_whose_answers_are_not_finite_is_refused(base: Model, digits: Task) -> None:
    broken = base.copy()
    broken.module.mlp[-1].bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"does not do mnist.*it scores nan%"):
        LOCKS["rescale"](evaluations=1)(broken, digits)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alpha": -0.1}, r"alpha is -0.1; it must lie in \[0, 1\]"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"retain": "klt"}, "Did you mean 'kl'"),
        ({"max_utility_drop": 2.0}, "max_utility_drop is 2.0"),
    ],
)
def test_bad_settings_say_what_is_wrong(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LOCKS["specdef"](**fields)


def test_the_public_verb_takes_a_plain_module(base: Model, digits: Task) -> None:
    model = speclock.wrap(base.copy().module, labels=digits.labels)
    model.image_size = 28
    locked = speclock.lock(model, digits, speclock.SpecDef(**SETTINGS["specdef"]))
    assert locked.card["strength_locked"] > locked.card["strength_base"]


def test_the_guard_does_not_slide_by_its_resolution(
    base: Model, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States each a little weaker and a little better than the one before would else end far below the strongest."""
    strengths, utilities = iter([0.0, 0.8, 0.76, 0.72, 0.68]), iter([0.9, 0.90, 0.91, 0.92, 0.93])
    lock = LOCKS["rescale"](evaluations=4, max_utility_drop=0.05)
    monkeypatch.setattr(type(lock), "resolution", 0.05)
    monkeypatch.setattr(type(lock), "strength", lambda *_: next(strengths))
    monkeypatch.setattr(type(digits), "score", lambda self, model, split="test": next(utilities, 0.9))
    assert lock(base, digits).card["strength_locked"] == 0.76
