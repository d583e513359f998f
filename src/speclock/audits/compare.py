"""Several locks of one base side by side: what each costs in utility and leaves in uplift."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speclock.errors import InputError
from speclock.workspace import write_text

FORMAT = "speclock-compare/1"


@dataclass
class Comparison:
    """The table of several audits, JSON-able: what `compare.json` holds."""

    locks: list[dict[str, Any]]
    """One row a lock, in the order asked for."""
    suite: dict[str, Any]
    retain_task: dict[str, Any]
    attack_task: dict[str, Any]
    request: dict[str, Any]
    """What a resumed command must ask for to be the same one."""
    command: str = ""
    format: str = FORMAT

    def save(self, folder: Path) -> None:
        """Write `compare.json` into ``folder``."""
        write_text(folder / "compare.json", json.dumps(vars(self), indent=1, allow_nan=False))


def compare(audits: dict[str, dict[str, Any]], request: dict[str, Any]) -> Comparison:
    """The comparison of audit records (parsed ``audit.json``) by the names to show them under.

    Raises :class:`InputError` unless they share suite, tasks and base: other numbers do not compare.
    """
    first = next(iter(audits.values()))
    for name, record in audits.items():
        for what in ("suite", "retain_task", "attack_task"):
            if record[what] != first[what]:
                raise InputError(f"{name} was audited with another {what.replace('_', ' ')}; audit it again.")
        if record["base"]["fingerprint"] != first["base"]["fingerprint"]:
            raise InputError(f"{name} was audited against another base; audit it again.")
    return Comparison(
        locks=[_row(name, record) for name, record in audits.items()],
        suite=first["suite"],
        retain_task=first["retain_task"],
        attack_task=first["attack_task"],
        request=request,
    )


def _row(name: str, record: dict[str, Any]) -> dict[str, Any]:
    summary, card = record["summary"], record["locked"].get("card") or {}
    return {
        "name": name,
        "lock": card.get("lock"),
        "config": card.get("config"),
        "strength": [card.get("strength_base"), card.get("strength_locked")],
        "utility_base": summary["utility_base"],
        "utility_locked": summary["utility_locked"],
        "utility_interval": proportion(summary["utility_locked"], record["retain_task"]["test"]),
        **{key: summary[key] for key in ("best_base", "best_scratch", "best_control", "best_locked")},
        "uplift": summary["uplift"],
        "uplift_interval": summary["intervals"]["uplift"],
        "slowdown": summary["slowdown"],
        "strongest_attack": summary["strongest_attack"],
        "price": summary["price"],
        "flags": [flag["name"] for flag in record["flags"]],
    }


def proportion(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion ``p`` seen on ``n`` examples.

    >>> proportion(0.5, 100)
    (0.40..., 0.59...)
    """
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half
