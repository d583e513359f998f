"""A card is a claim: what fits its format is read, all else is one line that says what is wrong."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speclock.errors import InputError
from speclock.locks.card import CardError, PartClaim, describes, parsed, read_card, stages
from speclock.locks.rescale import Rescale
from speclock.locks.specdef import SpecDef
from speclock.models import Identity, Model, identity, save
from speclock.tasks.base import Task

CARD: dict[str, Any] = {
    "format": "speclock-card/1",
    "lock": "specdef",
    "config": {"alpha": 0.02, "top_k": 8, "include": ["*.weight"], "lr": 1, "steps": 80, "clip": None},
    "seed": 0,
    "base": {"name": "base", "fingerprint": "a" * 64, "source": {"kind": "file", "origin": "base"}},
    "fingerprint": "b" * 64,
    "retain_task": {"name": "mnist", "labels": ["0", "1"], "train": 100},
    "utility_base": 0.93,
    "utility_locked": 1,
    "strength_base": 4.5,
    "strength_locked": 5.5,
    "chosen_step": 40,
    "steps": 80,
    "curve": [[0, 0.93, 4.5], [40, 1, 5.5], [80, 0.5, 6]],
    "status": "ok",
    "diverged_at": None,
    "seconds": 40.13,
    "peak_memory_mb": 1290.6,
    "environment": {"python": "3.11"},
}


def put(**entries: Any) -> str:
    return json.dumps({**CARD, **entries})


def without(key: str) -> str:
    return json.dumps({name: value for name, value in CARD.items() if name != key})


def raw(key: str, text: str) -> str:
    """A card in which ``text`` stands for a value, whether it is JSON or not."""
    return put(**{key: "HERE"}).replace('"HERE"', text)


MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "it is not JSON"),
    "not JSON": ("{'lock': 1}", "it is not JSON"),
    "invalid UTF-8": (b'{"lock": "\xff\xfe"}', "it is not JSON"),
    "half a surrogate pair": (raw("lock", '"\\ud800"'), "it is not JSON"),
    "a list": ("[]", "Input should be an object"),
    "a string": ('"card"', "Input should be an object"),
    "another format": (put(format="speclock-card/9"), "format: Input should be 'speclock-card/1'"),
    "a missing key": (without("chosen_step"), "chosen_step: Field required"),
    "no curve": (put(curve=[]), "curve: List should have at least 1 item"),
    "a number as text": (put(utility_base="0.9"), "utility_base: Input should be a valid number"),
    "a fractional step": (put(chosen_step=1.5), "chosen_step: Input should be a valid integer"),
    "a truth value for a number": (put(steps=True), "steps: Input should be a valid integer"),
    "a utility beyond one": (
        put(utility_locked=1.5),
        "utility_locked: Input should be less than or equal to 1",
    ),
    "negative steps": (put(steps=-1), "steps: Input should be greater than or equal to 0"),
    "a negative strength": (put(strength_base=-1), "strength_base: Input should be greater"),
    "a step beyond the last": (put(chosen_step=81), "chosen_step is 81, beyond the 80 steps taken"),
    "a step not on the curve": (put(chosen_step=41), "chosen_step is 41, which the curve does not have"),
    "a curve that runs back": (put(curve=[[40, 1, 1], [0, 1, 1]]), "the curve's steps do not rise"),
    "a curve of pairs": (put(curve=[[0, 1]]), "curve.0.2: Field required"),
    "a short fingerprint": (put(fingerprint="abc"), "fingerprint: String should match"),
    "a base without one": (put(base={"name": "b", "source": {}}), "base.fingerprint: Field required"),
    "half an identity": (put(identity={"weights": "c" * 64}), "identity.configuration: Field required"),
    "an unknown status": (put(status="fine"), "status: Input should be 'ok' or 'diverged'"),
    "NaN": (raw("utility_base", "NaN"), "NaN is not a number that JSON can hold"),
    "minus infinity": (raw("seconds", "-Infinity"), "-Infinity is not a number that JSON can hold"),
    "infinity": (raw("strength_locked", "1e999"), "1e999 is not a number"),
    "a huge number": (raw("seed", "9" * 400), "9{20} is not a number"),
    "a number too long to read": (raw("seed", "9" * 5000), "is not a number"),
    "NaN where nobody looks": (put(environment={"cores": float("nan")}), "NaN is not a number"),
    "deep nesting": (raw("environment", '{"a":' * 30 + "1" + "}" * 30), "nested deeper than 16 levels"),
    "a recursion bomb": ("[" * 100_000 + "]" * 100_000, "nested deeper than 16 levels"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_card_is_one_clear_line(name: str, tmp_path: Path) -> None:
    text, words = MALFORMED[name]
    file = tmp_path / "speclock.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CardError, match=words) as caught:
        read_card(tmp_path)
    assert str(caught.value).startswith(f"{file} is no lock card: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert issubclass(CardError, InputError)


def test_what_cannot_be_read_is_no_card(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    os.mkfifo(tmp_path / "speclock.json")
    with pytest.raises(CardError, match="it is not a file"):
        read_card(tmp_path)
    (tmp_path / "speclock.json").unlink()
    (tmp_path / "speclock.json").write_text(" " * (5 << 20))
    with pytest.raises(CardError, match="larger than 4 MiB"):
        read_card(tmp_path)


def test_a_card_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "speclock.json").write_text(put(request={"command": "lock"}, note="kept"))
    card = read_card(tmp_path)
    assert json.loads(json.dumps(card)) == {**CARD, "request": {"command": "lock"}, "note": "kept"}


# -- the lock on a card -----------------------------------------------------------------------------------------


def test_the_lock_is_the_one_described() -> None:
    (lock, steps), *rest = stages(parsed(put()))
    assert (steps, rest) == (40, [])
    assert lock == SpecDef(alpha=0.02, top_k=8, include=("*.weight",), lr=1.0, steps=80)
    assert type(lock.lr) is float  # type: ignore[attr-defined]
    assert stages(parsed(put(lock="rescale", config={"factor": 3.0})))[0].lock == Rescale(factor=3.0)


PART = {key: CARD[key] for key in PartClaim.__annotations__ if key in CARD}


def test_a_composition_has_every_part() -> None:
    parts = [PART, {**PART, "lock": "rescale", "config": {"factor": 3.0}, "chosen_step": 80}]
    found = stages(parsed(put(lock="specdef+rescale", config={}, parts=parts)))
    assert [(type(stage.lock), stage.steps) for stage in found] == [(SpecDef, 40), (Rescale, 80)]
    with pytest.raises(CardError, match=r"lock is rescale\+specdef, which its parts are not"):
        parsed(put(lock="rescale+specdef", parts=parts))
    with pytest.raises(CardError, match="chosen_step is 41, which the curve does not have"):
        parsed(put(lock="specdef+rescale", parts=[PART, {**parts[1], "chosen_step": 41}]))
    with pytest.raises(CardError, match="parts: List should have at most 8 items"):
        parsed(put(lock="+".join(["specdef"] * 9), parts=[PART] * 9))


@pytest.mark.parametrize(
    ("lock", "config", "words"),
    [
        ("specdfe", {}, "unknown lock 'specdfe'. Did you mean 'specdef'"),
        ("__import__('os')", {}, "unknown lock"),
        ("specdef", {"alhpa": 0.1}, "unknown field of specdef 'alhpa'. Did you mean 'alpha'"),
        ("specdef", {"name": "other"}, "unknown field of specdef 'name'"),
        ("specdef", {"alpha": 3.0}, r"alpha is 3.0; it must lie in \[0, 1\]"),
        ("specdef", {"alpha": "0.1"}, "alpha: Input should be a valid number"),
        ("specdef", {"steps": True}, "steps: Input should be a valid integer"),
        ("specdef", {"steps": -5}, "steps is -5; it must be at least 1"),
        ("specdef", {"top_k": 2.5}, "top_k: Input should be a valid integer"),
        ("specdef", {"include": "*"}, "include: Input should be a valid (array|tuple)"),
        ("specdef", {"include": [1]}, "include.0: Input should be a valid string"),
        ("specdef", {"optimizer": "adma"}, "unknown optimizer 'adma'"),
        ("specdef", {"seed": {}}, "seed: Input should be a valid integer"),
        ("rescale", {"alpha": 0.5}, "unknown field of rescale 'alpha'"),
    ],
)
def test_a_lock_that_there_is_not_is_one_clear_line(lock: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(CardError, match=words) as caught:
        stages(parsed(put(lock=lock, config=config)))
    assert "\n" not in str(caught.value)


# -- whose card it is ---------------------------------------------------------------------------------------------


def test_a_real_card_is_read_back_and_knows_its_models(base: Model, digits: Task, tmp_path: Path) -> None:
    lock = Rescale(top_k=1, factor=1.5, evaluations=2, max_utility_drop=1.0)
    locked = lock(base, digits)
    save(locked.model, tmp_path / "locked", extra={"speclock.json": json.dumps(locked.card)})
    card = read_card(tmp_path / "locked")
    assert json.loads(json.dumps(card)) == json.loads(json.dumps(locked.card))
    assert stages(card) == stages(locked.card) == ((lock, locked.card["chosen_step"]),)
    assert describes(card, identity(locked.model))
    assert describes(card["base"], identity(base))
    assert not describes(card, identity(base))


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (lambda claim, it: claim.update(fingerprint=it.fingerprint, identity=it._asdict()), True),
        (lambda claim, it: claim.update(fingerprint=it.weights), True),
        (lambda claim, it: claim.update(fingerprint=it.fingerprint), False),
        (lambda claim, it: claim.update(fingerprint=it.weights, identity=it._asdict()), False),
        (
            lambda claim, it: claim.update(
                fingerprint=it.fingerprint, identity={**it._asdict(), "tokenizer": "e" * 64}
            ),
            False,
        ),
    ],
    ids=["all parts", "an older card", "parts left out", "weights alone", "another tokenizer"],
)
def test_a_card_is_known_by_all_parts_or_is_older(
    change: Callable[[dict[str, Any], Identity], None], known: bool
) -> None:
    it = Identity(*(letter * 64 for letter in "abcd"))
    claim = copy.deepcopy(CARD)
    change(claim, it)
    assert describes(parsed(json.dumps(claim)), it) is known
