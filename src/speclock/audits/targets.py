"""The models that an audit attacks: handed in, drawn fresh, or trained for the audit and kept on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from speclock.audits.floors import taught_by
from speclock.errors import InputError
from speclock.locks.base import Lock
from speclock.models import Model
from speclock.tasks.base import Task
from speclock.workspace import write_text

CONTROL_MOST = 20_000
"""Steps of the longest control that an audit trains."""


@dataclass
class Targets:
    """What is attacked, by name and, where it is drawn fresh, by seed."""

    base: Model
    locked: Model
    public: Model | None
    retain: Task
    lock: Lock | None
    """What the lock card says was done, from which the control is trained."""
    control_steps: int
    with_student: bool
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
        return ["control"] * (self.lock is not None) + ["student"] * self.with_student

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
            model, report = self._train(name)
        except InputError as error:
            write_text(self._report(name), json.dumps({"problem": str(error)}))
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
        assert self.lock is not None
        # A card is a claim, and could ask for days of it.
        if self.control_steps > CONTROL_MOST:
            raise InputError(
                f"the card says that the lock took {self.control_steps} steps; a control gets {CONTROL_MOST} at most"
            )
        states = self.folders[name] / "control"
        states.mkdir(exist_ok=True)
        control = self.lock.control(self.base, self.retain, stop_at=self.control_steps, folder=states)
        return control, {"steps": self.control_steps}

    def _weights(self, name: str) -> Path:
        return self.folders[name] / f"{name}.safetensors"

    def _report(self, name: str) -> Path:
        return self.folders[name] / f"{name}.json"
