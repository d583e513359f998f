"""Finished runs on disk, so that a killed audit goes on and audits of one base share what they can."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from speclock.attacks.base import Attack
from speclock.audits.record import RunRecord
from speclock.workspace import write_text


class KeptRuns:
    """Finished runs, one file each, whole or not there."""

    def __init__(self, folder: Path, shared: Path | None) -> None:
        self.folder = folder / "runs"
        self.shared = self.folder if shared is None else shared / "runs"
        for place in (self.folder, self.shared):
            place.mkdir(parents=True, exist_ok=True)

    def get(self, target: str, attack: Attack) -> RunRecord | None:
        path = self._path(target, attack.name, attack.config(), attack.seed)
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        return RunRecord(**{**kept, "curve": [(step, score) for step, score in kept["curve"]]})

    def put(self, run: RunRecord) -> None:
        write_text(
            self._path(run.target, run.attack, run.config, run.seed), json.dumps(dataclasses.asdict(run))
        )

    def __len__(self) -> int:
        return sum(1 for place in {self.folder, self.shared} for _ in place.glob("*.json"))

    def _path(self, target: str, *what: Any) -> Path:
        digest = hashlib.sha256(json.dumps([target, *what], sort_keys=True).encode()).hexdigest()[:16]
        place = self.shared if target in ("base", "scratch") else self.folder
        return place / f"{target}-{digest}.json"
