"""Finished runs on disk, so that a killed audit goes on and audits share what is the same for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speclock.attacks.base import Attack
from speclock.audits.record import RunRecord
from speclock.workspace import write_text


class KeptRuns:
    """Finished runs, one file each, whole or not there, in a folder for each target.

    A file is found again only by the same request: what ``bound`` says of a target (data, weights, budget) is
    part of its name, so a run made on other data is another run.
    """

    def __init__(
        self, folders: dict[str, Path], bound: dict[str, Any], needed: Mapping[str, Any] | None = None
    ) -> None:
        """``needed`` is what only those attacks depend on that have a true attribute of that name (needs_public)."""
        self.folders = folders
        self.bound = bound
        self.needed = needed or {}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, target: str, attack: Attack, **settings: Any) -> RunRecord | None:
        """The run kept for this request, or None."""
        path = self._path(target, attack, settings)
        return RunRecord.from_dict(json.loads(path.read_text())) if path.exists() else None

    def put(self, run: RunRecord, attack: Attack, **settings: Any) -> None:
        """Keep a finished run."""
        write_text(self._path(run.target, attack, settings), json.dumps(run.to_dict()))

    def once(self, target: str, make: Callable[[], RunRecord]) -> RunRecord:
        """The only run there is on a target: kept, or made and kept."""
        digest = hashlib.sha256(json.dumps(self.bound[target], sort_keys=True).encode()).hexdigest()[:24]
        path = self.folders[target] / f"{target}-{digest}.json"
        if not path.exists():
            write_text(path, json.dumps(make().to_dict()))
        return RunRecord.from_dict(json.loads(path.read_text()))

    def _path(self, target: str, attack: Attack, settings: dict[str, Any]) -> Path:
        request = [self.bound[target], attack.name, attack.config(), attack.seed, settings]
        request += [what for need, what in self.needed.items() if getattr(attack, need)]
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]
        return self.folders[target] / f"{target}-{digest}.json"
