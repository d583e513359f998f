"""The record of an audit: what `audit.json` holds, read and written by type."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speclock.attacks.base import Attack, Outcome, start_of
from speclock.errors import InputError
from speclock.workspace import write_text

FORMAT = "speclock-audit/2"

TARGETS = ("base", "released", "scratch", "classical", "public", "student", "control", "locked")
FLOOR = ("released", "scratch", "classical", "public")
"""What the attacker has without the locked weights."""
UNINFORMED = frozenset({"fine-tuning", "kick and settle", "adapters"})
"""Kinds of attack that anybody tries; the others operate on the weights, probe, heal or distil first."""


@dataclass(kw_only=True)
class RunRecord:
    """One attack on one target under one seed."""

    target: str
    attack: str
    config: dict[str, Any]
    seed: int
    status: str
    curve: list[tuple[int, float]]
    """(step, score on the validation split)."""
    best: float | None
    """Best score on the curve that counts."""
    stage: str = "search"
    """search: a configuration tried under the search's own seed; final: a finalist under a fresh one, which is
    scored on the test split."""
    family: str = ""
    """The attack in a few words, but for its learning rate: what a search is over."""
    kind: str = "fine-tuning"
    """The family's family: fine-tuning, adapters, surgery, …"""
    title: str = ""
    """The attack in a few words."""
    steps: int = 0
    """The budget, in steps from the first label on."""
    best_step: int | None = None
    test: float | None = None
    answers: list[int] | None = None
    samples: list[tuple[str, str]] = field(default_factory=list)
    utility_after: float | None = None
    beside: dict[str, float] = field(default_factory=dict)
    beside_curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    uncounted: list[int] = field(default_factory=list)
    """Steps of the evaluations that do not count: what stands beside the task had fallen."""
    first_label: int = 0
    pruned_at: int | None = None
    broke_at: int | None = None
    """Step at which a run that had learnt diverged; what it had scored before stands."""
    reason: str | None = None
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    passes: int = 0
    tflops: float | None = None

    @property
    def key(self) -> str:
        """What was run on what for how long, without the seed: runs with equal keys are repeats."""
        return json.dumps([self.target, self.attack, self.config, self.stage, self.steps], sort_keys=True)

    @property
    def counted(self) -> list[tuple[int, float]]:
        """The evaluations that count."""
        return [(step, score) for step, score in self.curve if step not in self.uncounted]

    @property
    def start(self) -> float | None:
        """The score before the first step, of a model that came with a head for the task."""
        return start_of(self.curve)

    @property
    def informed(self) -> bool:
        """Whether the attacker did more than fine-tune."""
        return self.kind not in UNINFORMED

    @classmethod
    def of(cls, attack: Attack, outcome: Outcome, *, target: str, stage: str, steps: int) -> RunRecord:
        """The record of an attack's outcome."""
        return cls(
            target=target,
            attack=attack.name,
            config=attack.config(),
            seed=attack.seed,
            stage=stage,
            family=attack.label,
            kind=attack.kind,
            title=attack.title,
            steps=steps,
            **{each.name: getattr(outcome, each.name) for each in dataclasses.fields(outcome)},
        )

    def to_dict(self) -> dict[str, Any]:
        """The run as plain containers; its answers as one string, which is shorter to read past."""
        found = dataclasses.asdict(self)
        found["answers"] = None if self.answers is None else " ".join(map(str, self.answers))
        return found

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> RunRecord:
        """What :meth:`to_dict` gave, before or after JSON."""
        run = cls(**found)
        run.curve = _points(run.curve)
        run.beside_curves = {name: _points(curve) for name, curve in run.beside_curves.items()}
        run.answers = None if found["answers"] is None else [int(label) for label in found["answers"].split()]
        return run

    @property
    def complete(self) -> bool:
        """Whether the run went to the end of its budget."""
        return self.status == "ok" and self.pruned_at is None and self.broke_at is None


@dataclass(kw_only=True)
class Flag:
    """A reason why an audit must not be trusted as it stands."""

    name: str
    why: str
    next: str
    """What to do about it."""


@dataclass(kw_only=True)
class Record:
    """An audit, JSON-able field by field; see DESIGN's public contract for `summary`, `runs` and `flags`."""

    suite: dict[str, Any]
    base: dict[str, Any]
    locked: dict[str, Any]
    retain_task: dict[str, Any]
    attack_task: dict[str, Any]
    runs: list[RunRecord]
    families: list[dict[str, Any]] = field(default_factory=list)
    """One row a family: its best validation score on each target, its runs and how many went to the end, and
    whether it is inert."""
    spectra: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Scores, agreement and calibration of base and locked model, by kind of input; see :mod:`speclock.audits.cost`."""
    samples: dict[str, dict[str, list[tuple[str, str]]]] = field(default_factory=dict)
    """What language models write before any attack: by task (retain, attack) and model (base, locked)."""
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Of this process; runs that an earlier one had finished have their own."""
    command: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    """What a resumed command must ask for to be the same one."""
    summary: dict[str, Any] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)
    verdict: str = ""
    format: str = FORMAT

    def to_json(self) -> str:
        """The text of `audit.json`."""
        return json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain containers."""
        return {**dataclasses.asdict(self), "runs": [run.to_dict() for run in self.runs]}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Record:
        """What :meth:`to_dict` gave. Raises TypeError or KeyError for anything else."""
        return cls(
            **{
                **found,
                "runs": [RunRecord.from_dict(run) for run in found["runs"]],
                "flags": [Flag(**flag) for flag in found["flags"]],
            }
        )

    def save(self, folder: Path) -> None:
        """Write `audit.json` into ``folder``; `speclock.report.write` makes the page from it."""
        write_text(folder / "audit.json", self.to_json())


def read(folder: Path) -> Record:
    """The record in an audit folder; :class:`InputError` when there is none that can be read."""
    path = folder / "audit.json" if folder.is_dir() else folder
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Name a folder that `speclock audit` wrote.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as an audit record: {error}. Run the audit again.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        older = isinstance(found, dict) and str(found.get("format", "")).startswith("speclock-audit/")
        mend = "Run the audit again." if older else "Name a folder that `speclock audit` wrote."
        raise InputError(f"{path} is no audit record of this version ({FORMAT}). {mend}")
    try:
        return Record.from_dict(found)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}). Run the audit again."
        ) from None


def _points(curve: list[Any]) -> list[tuple[int, float]]:
    return [(step, score) for step, score in curve]


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity; a record says null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
