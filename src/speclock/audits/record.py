"""The record of an audit: what `audit.json` holds."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speclock.errors import InputError
from speclock.workspace import write_text

FORMAT = "speclock-audit/1"
TARGETS = ("base", "scratch", "control", "locked")


@dataclass
class RunRecord:
    """One attack on one target under one seed."""

    target: str
    attack: str
    config: dict[str, Any]
    seed: int
    status: str
    curve: list[tuple[int, float]]
    best: float | None
    utility_after: float | None
    seconds: float
    peak_memory_mb: float
    pruned_at: int | None = None
    reason: str | None = None
    beside: dict[str, float] = field(default_factory=dict)
    passes: int = 0
    tflops: float | None = None
    kind: str = "fine-tuning"
    """The attack's family."""
    label: str = ""
    """The attack in a few words, but for its learning rate."""
    title: str = ""
    """The attack in a few words."""

    @property
    def key(self) -> str:
        """What was run on what, without the seed: runs with equal keys are repeats."""
        return json.dumps([self.target, self.attack, self.config], sort_keys=True)


@dataclass
class Record:
    """An audit, JSON-able field by field; see DESIGN's public contract for `summary`, `runs` and `flags`."""

    suite: dict[str, Any]
    base: dict[str, Any]
    locked: dict[str, Any]
    retain_task: dict[str, Any]
    attack_task: dict[str, Any]
    runs: list[RunRecord]
    spectra: list[dict[str, Any]]
    environment: dict[str, Any]
    seconds: float = 0.0
    command: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    """What a resumed command must ask for to be the same one."""
    summary: dict[str, Any] = field(default_factory=dict)
    flags: list[dict[str, str]] = field(default_factory=list)
    verdict: str = ""
    format: str = FORMAT

    def to_json(self) -> str:
        """The text of `audit.json`."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=1, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """What reading `audit.json` gives."""
        return json.loads(self.to_json())

    def save(self, folder: Path) -> None:
        """Write `audit.json` into ``folder``; `speclock.report.write` makes the page from it."""
        write_text(folder / "audit.json", self.to_json())


def read(folder: Path) -> dict[str, Any]:
    """The parsed `audit.json` of an audit folder; :class:`InputError` when there is none that can be read."""
    path = folder / "audit.json" if folder.is_dir() else folder
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Name a folder that `speclock audit` wrote.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an audit record: {error}. Run the audit again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path} is not an audit record ({FORMAT}). Name a folder that `speclock audit` wrote."
        )
    return record


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity; a record says null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
