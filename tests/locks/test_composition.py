"""Several locks, one after the other: what each may cost, what the card has, and how they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import speclock
from speclock.attacks.finetune import FineTune
from speclock.audits.run import audit
from speclock.audits.suite import Family, Suite
from speclock.errors import InputError
from speclock.locks.base import Lock
from speclock.locks.card import parsed, stages
from speclock.locks.composition import Composition, lock_named
from speclock.locks.rescale import Rescale
from speclock.locks.specdef import SpecDef
from speclock.locks.undo import Undo
from speclock.models import Model, fingerprint
from speclock.tasks.base import Task

TWICE = Rescale(top_k=1, factor=2.0, evaluations=2, max_utility_drop=1.0)
TRAINED = SpecDef(top_k=1, lr=1e-3, steps=10, evaluations=2, max_utility_drop=1.0)


def test_each_lock_works_on_what_the_one_before_left(base: Model, digits: Task, tmp_path: Path) -> None:
    both = Composition((TRAINED, TWICE))
    locked = speclock.lock(base, digits, both, folder=tmp_path)
    by_hand = TWICE(TRAINED(base, digits).model, digits)
    assert locked.card["fingerprint"] == by_hand.card["fingerprint"] == fingerprint(locked.model)
    card = parsed(json.dumps(locked.card))
    assert [stage.lock for stage in stages(card)] == [TRAINED, TWICE]
    assert card["lock"] == "specdef+rescale"
    assert card["utility_base"] == digits.score(base)
    assert card["utility_locked"] == digits.score(locked.model)
    assert card["base"]["fingerprint"] == fingerprint(base)
    assert card["strength_base"] == pytest.approx(TWICE.strength(base, base)), (
        "not of what the first part left"
    )
    assert card["seconds"] == pytest.approx(sum(part["seconds"] for part in card["parts"]))


def test_a_killed_composition_does_no_part_twice(
    base: Model, digits: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = speclock.lock(base, digits, Composition((TRAINED, TWICE)))
    taken: list[str] = []
    called = Lock.__call__

    def counted(self: Lock, *args: object, **kwargs: object) -> speclock.Locked:
        taken.append(self.name)
        if taken == ["specdef", "rescale"]:
            raise KeyboardInterrupt
        return called(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Lock, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        speclock.lock(base, digits, Composition((TRAINED, TWICE)), folder=tmp_path)
    again = speclock.lock(base, digits, Composition((TRAINED, TWICE)), folder=tmp_path)
    assert taken == ["specdef", "rescale", "rescale"]
    assert again.card["fingerprint"] == whole.card["fingerprint"]


def test_utility_is_counted_from_the_base_and_not_from_each_part(base: Model, digits: Task) -> None:
    # Both may lose thirty points; what the first has lost, the second has not to lose again.
    breaking = Rescale(top_k=4, factor=30.0, evaluations=12, max_utility_drop=0.3)
    locked = speclock.lock(base, digits, Composition((breaking, breaking)))
    first, second = locked.card["parts"]
    assert first["chosen_step"] > 0
    began = first["curve"][0][1]
    kept = [
        {step: utility for step, utility, _ in part["curve"]}[part["chosen_step"]] for part in (first, second)
    ]
    assert min(kept) >= began - 0.3
    lost = [utility for _, utility, strength in second["curve"] if strength > second["strength_locked"]]
    assert lost
    assert max(lost) < began - 0.3


def test_the_control_is_all_of_the_training_and_none_of_the_locks(
    base: Model, digits: Task, tmp_path: Path
) -> None:
    retain, other = (digits.divided().limit(train=n, test=60, validation=60) for n in (200, 20))
    locked = speclock.lock(base, retain, Composition((TWICE, TRAINED)))
    suite = Suite(
        name="toy", version=1, steps=1, families=(Family((FineTune(),), searched=False),), scratch=()
    )
    record = audit(base=base, locked=locked, retain=retain, attack=other, suite=suite, folder=tmp_path)
    assert record.locked["no_control"] is None
    (weights,) = tmp_path.glob("runs/control-*.safetensors")
    control = base.copy()
    from safetensors.torch import load_model

    load_model(control.module, weights)
    # A rescaling trains nothing: what is left of the two is the second one's training of the base.
    chosen = locked.card["parts"][1]["chosen_step"]
    expected = TRAINED.control(base, retain.fitted_to(base), stop_at=chosen).model
    for found, wanted in zip(control.module.parameters(), expected.module.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_what_a_command_asks_for() -> None:
    assert lock_named("specdef", {"alpha": 0.1, "lr": 3e-4}) == SpecDef(alpha=0.1, lr=3e-4)
    both = lock_named(
        "undo:beta=0.7,insecure-noise-seed=3+specdef:retain=task+kl,include=a.*", {"lr": 1e-3, "top_k": 5}
    )
    assert both == Composition(
        (
            Undo(beta=0.7, insecure_noise_seed=3, lr=1e-3),
            SpecDef(retain="task+kl", include=("a.*",), lr=1e-3, top_k=5),
        )
    )
    assert lock_named("undo:steps=none").steps is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("specdfe", {}, "unknown lock 'specdfe'. Did you mean 'specdef'"),
        ("undo+specdfe", {}, "unknown lock 'specdfe'. Did you mean 'specdef'"),
        ("undo:bta=1", {}, "unknown field of undo 'bta'. Did you mean 'beta'"),
        ("undo:beta", {}, "'beta' is no setting of undo. Write FIELD=VALUE"),
        ("undo:beta=much", {}, "--lock undo:beta=much: beta: Input should be a valid number"),
        ("rescale+undo:beta=3", {}, r"--lock undo:beta=3: beta is 3.0; it must lie in \[0, 1\]"),
        ("rescale", {"alpha": 0.1}, "--alpha is not an option of --lock rescale"),
    ],
)
def test_bad_requests_are_one_line(spec: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        lock_named(spec, options)
    assert "\n" not in str(caught.value)
