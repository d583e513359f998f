"""The models that an audit attacks: handed in, drawn fresh, or trained for the audit and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from speclock.audits.floors import STUDENT_SEARCH, STUDENT_STEPS, taught_by
from speclock.environment import ran_out_of_memory
from speclock.errors import InputError
from speclock.locks.card import Stage
from speclock.models import Model, identity
from speclock.tasks.base import NOTABLE, Task
from speclock.workspace import write_text

CONTROL_MOST, CONTROL_MOST_EXAMPLES = 20_000, 2_000_000
"""Steps and examples of the longest control that an audit trains, in each of its attempts (four at most)."""

_DRAWS_APART = 0.15
"""Utility that one lock may have more under one draw of its noise than under another. What was not taught at all has
lost most of it."""

CONTROL_RULES = 3
"""How a control is trained, and a lock repeated: what is kept of them is bound to it. 2: a training that brings the
model to chance begins again, gentler. 3: so does one that ends there, where nothing was removed."""

REPEATED_ON = 500
"""Validation examples on which the utility of a repeated lock is compared with the file's, and a control's with the
base's."""


@dataclass
class Targets:
    """What is attacked, by name and, where it is drawn fresh, by seed."""

    base: Model
    locked: Model
    public: Model | None
    retain: Task
    stages: tuple[Stage, ...]
    """What the lock card says was done, from which the control is trained; nothing where there is no card."""
    with_control: bool
    with_student: bool
    repeat: bool
    """Whether the card's lock is made once more, and compared with the file."""
    folders: dict[str, Path]
    """Where the trained ones are kept."""

    def names(self) -> list[str]:
        """The targets that there are, once those that are trained have been."""
        missing = {
            name for name in ("control", "student") if name not in self.trained() or self.problem(name)
        }
        if self.public is None:
            missing.add("public")
        return [
            name
            for name in ("base", "scratch", "public", "control", "student", "locked")
            if name not in missing
        ]

    def trained(self) -> list[str]:
        """The targets that must be trained before they are attacked."""
        return ["control"] * bool(self.stages and self.with_control) + ["student"] * self.with_student

    def model(self, name: str, seed: int) -> Model:
        """The model of that name."""
        if name == "scratch":
            return self.base.scratch(seed)
        if name not in ("control", "student"):
            found: Model = getattr(self, name)
            return found
        model = self.base.copy()
        load_model(model.module, self._weights(name))
        return model

    def prepare(self, name: str) -> None:
        """Train a target and keep it; one that cannot be trained leaves the reason instead."""
        if self._report(name).exists():
            return
        try:
            if name == "repeated":
                # What is asked of it is said at once, and nobody attacks it.
                write_text(self._report(name), json.dumps({"not_repeated": self._unlike()}))
                return
            model, report = self._train(name)
        except (
            Exception
        ) as error:  # a card is a claim: whatever it leads to is a finding, and no end of the audit
            if ran_out_of_memory(error):
                raise
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            write_text(self._report(name), json.dumps({"problem": why}))
            return
        partial = self._weights(name).with_suffix(".partial")
        save_model(model.module, str(partial))
        partial.rename(self._weights(name))
        write_text(self._report(name), json.dumps(report))

    def report(self, name: str) -> dict[str, Any]:
        """What training the target gave; empty where it was not trained."""
        path = self._report(name)
        return json.loads(path.read_text()) if path.exists() else {}

    def problem(self, name: str) -> str | None:
        """Why a target could not be trained."""
        return self.report(name).get("problem")

    def _train(self, name: str) -> tuple[Model, dict[str, Any]]:
        if name == "student":
            return taught_by(self.base, self.retain)
        control, given_up = self._as_the_card_says(spectral=False)
        kept = {"utility": self._utility(control), "utility_base": self._utility(self.base)}
        return control, {"steps": sum(stage.steps for stage in self.stages), "given_up": given_up, **kept}

    def _as_the_card_says(self, *, spectral: bool) -> tuple[Model, int]:
        """The base after all the card's training, with the locks' own terms or without; and how many times any of it
        began again."""
        # A card is a claim, and could ask for days of it.
        asked = [lock.training(taken) for lock, taken in self.stages]
        steps, examples = (sum(each) for each in zip(*asked, strict=True))
        for lock, _ in self.stages:
            if named := lock.data_of_its_own():
                # Whoever wrote the card would have the auditor open it, and a record repeat what is in it.
                raise InputError(
                    f"the card of {lock.name} names data ({', '.join(named)}), and an audit opens none for a card"
                )
        if steps > CONTROL_MOST or examples > CONTROL_MOST_EXAMPLES:
            raise InputError(
                f"the card says that the lock took {steps} steps, of {examples} examples together; "
                f"a control gets {CONTROL_MOST} and {CONTROL_MOST_EXAMPLES} at most"
            )

        model, name, given_up = self.base, "repeated" if spectral else "control", 0
        for i, (lock, taken) in enumerate(self.stages):
            states = self.folders[name] / f"{self._stem(name)}-{i}"
            states.mkdir(exist_ok=True)
            # Repeated with the very noise that it was made with, a lock leads to the file or it does not.
            again = lock.draws_in_secret or not spectral
            made = lock.control(
                model, self.retain, stop_at=taken, spectral=spectral, begin_again=again, folder=states
            )
            model, given_up = made.model, given_up + made.given_up
        return model, given_up

    def _unlike(self) -> str | None:
        """In what the locked model is not what the card's training gives: what the control shares with that training
        says nothing of another. Numbers, not weights, since another machine's rounding leads elsewhere.

        However far the control moves the weights: a card may claim a training that wrecks the model without a lock.
        """
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            # What the lock had to remark it said when it was made.
            repeated, _ = self._as_the_card_says(spectral=True)
        for lock, _ in self.stages:
            again, strength = (lock.strength(m, self.base) for m in (repeated, self.locked))
            if abs(again - strength) > 0.1 * abs(strength):
                return f"repeated, {lock.name} gives a {lock.unit} of {again:.3g}, and the file has {strength:.3g}"
        moved, file_moved = (_distance(m.module, self.base.module) for m in (repeated, self.locked))
        if not 0.5 * file_moved <= moved <= 2 * file_moved:
            return (
                f"repeated, the lock moves the weights by {moved:.3g}, and the file is {file_moved:.3g} away"
            )
        apart = NOTABLE[self.retain.metric]
        if any(lock.draws_in_secret for lock, _ in self.stages):
            apart = max(apart, _DRAWS_APART)  # with other noise another utility
        keeps, has = map(self._utility, (repeated, self.locked))
        if abs(keeps - has) > apart:
            return f"repeated, the lock keeps a utility of {keeps:.1%}, and the file has {has:.1%}"
        return None

    def _utility(self, model: Model) -> float:
        """On the validation split, as far as models of one training are compared by it."""
        some = self.retain.limit(validation=REPEATED_ON)
        return some.measured(some.answers(model, "validation"), "validation")

    def _weights(self, name: str) -> Path:
        return self.folders[name] / f"{self._stem(name)}.safetensors"

    def _report(self, name: str) -> Path:
        return self.folders[name] / f"{self._stem(name)}.json"

    def _stem(self, name: str) -> str:
        """What a trained target's files are called: after all that it follows from, since audits share folders."""
        base, locked = self._fingerprints
        taught: list[Any] = [base, self.retain.digest()]
        if name == "student":
            taught += [STUDENT_STEPS, STUDENT_SEARCH]
        else:
            taught += [[lock.name, asdict(lock), steps] for lock, steps in self.stages]
            taught += [locked, CONTROL_RULES]
        return f"{name}-{hashlib.sha256(json.dumps(taught).encode()).hexdigest()[:24]}"

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Of base and locked model: all their weights are read for it, and it is asked for at every run."""
        return identity(self.base).fingerprint, identity(self.locked).fingerprint


def _distance(one: nn.Module, other: nn.Module) -> float:
    """Root of the summed squares of all differences between weights of the same name and shape."""
    theirs = dict(other.named_parameters())
    return math.sqrt(
        sum(
            float((p.detach().double() - theirs[name].detach().double()).square().sum())
            for name, p in one.named_parameters()
            if name in theirs and theirs[name].shape == p.shape
        )
    )
