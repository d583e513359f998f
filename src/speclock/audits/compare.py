"""Several locks of one base side by side: what each costs in utility and leaves in uplift."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from speclock.audits.record import TARGETS, Record
from speclock.errors import InputError
from speclock.locks.base import SpectralLock
from speclock.numbers import percent, points, unit
from speclock.tasks.base import is_proportion
from speclock.workspace import write_text

FORMAT = "speclock-compare/2"

_Bounds = tuple[float, float] | None

_OF_THE_SUITE = ("name", "version", "steps", "seeds", "public_base", "siblings")
"""What of a suite must be the same; ``budget`` need not, since a lock may have had it extended."""


@dataclass(kw_only=True)
class Row:
    """One lock of a comparison."""

    name: str
    lock: str | None
    """The lock that its card names; None without a card that can be read."""
    config: dict[str, Any] | None
    strength: tuple[float | None, float | None]
    """Base's and locked model's, in the lock's own unit, as the card has it; of a composition the last lock's, and of
    one that ends with a spectral lock as the audit found it."""
    unit: str
    """What that is measured in."""
    budget: int
    """Steps that its finalists had; more than the suite's where the audit extended them."""
    utility_base: float
    utility_locked: float
    utility_interval: _Bounds
    """95%, over the retain task's test split; None where a single passage is tested."""
    best: dict[str, float | None]
    """Best test score of the attacker on each target."""
    best_interval: dict[str, _Bounds]
    floor: float
    floor_by: str | None
    """The target that sets the floor; None where that is chance."""
    worth: float | None
    uplift: float | None
    uplift_interval: _Bounds
    uplift_uninformed: float | None
    """Left by attackers that do no more than fine-tune."""
    uplift_informed: float | None
    """Left by those that heal, look inside, operate or distil first; an audit of before does not say."""
    excess: float | None
    """Uplift over the student instead of the floor."""
    excess_interval: _Bounds
    slowdown: float | str | None
    """In steps; "> x" where no run reached the target."""
    slowdown_interval: tuple[float | None, float | None] | None
    """An end that is None cannot be told."""
    slowdown_examples: float | str | None
    slowdown_tflops: float | str | None
    strongest_attack: str | None
    price: dict[str, float | None]
    """Passes and 10¹² operations that it took."""
    flags: list[str]
    verdict: str
    epochs_worth: float | None = None
    """What making the lock took, in epochs of plain fine-tuning on the retain task; None where no card says."""

    @property
    def judged(self) -> bool:
        """Whether uplift and slowdown say anything: not where the base is worth next to nothing."""
        return self.uplift is not None and "nothing_to_protect" not in self.flags


@dataclass(kw_only=True)
class Comparison:
    """The table of several audits, JSON-able: what `compare.json` holds."""

    locks: list[Row]
    """In the order asked for."""
    suite: dict[str, Any]
    """What of the suite all of them share."""
    base: dict[str, Any]
    retain_task: dict[str, Any]
    attack_task: dict[str, Any]
    request: dict[str, Any]
    """What a resumed command must ask for to be the same one."""
    command: str = ""
    format: str = FORMAT

    @property
    def headline(self) -> str:
        """The lock that leaves the attacker least and the one that leaves most, with what each costs.

        Shares below nothing are nothing; 95% intervals over test examples, and over seeds where there are several; and
        how many flags say when not to trust it.
        """

        def share(uplift: float | None) -> str:
            return percent(max(0.0, uplift or 0.0), 0)

        worth, utility = self.attack_task["metric"], self.retain_task["metric"]
        judged = sorted((row for row in self.locks if row.judged), key=lambda row: row.uplift or 0.0)
        if not judged:
            return "What each lock costs, and what it leaves the attacker."
        ends = judged if len(judged) < 2 else [judged[0], judged[-1]]
        said = [
            f"{row.name} leaves the attacker {share(row.uplift)}"
            + (f" ({' to '.join(map(share, row.uplift_interval))})" if row.uplift_interval else "")
            + f" of the {100 * (row.worth or 0.0):.{0 if is_proportion(worth) else 1}f}{unit(worth)} that the weights "
            + f"are worth, at {points(row.utility_locked - row.utility_base, utility)}"
            + f"{' of utility' if is_proportion(utility) else ''}, with {_counted(row.flags)}"
            for row in ends
        ]
        return "; ".join(said) + "."

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain containers."""
        return dataclasses.asdict(self)

    def save(self, folder: Path) -> None:
        """Write `compare.json` into ``folder``; `speclock.report.write_comparison` makes the page from it."""
        write_text(folder / "compare.json", json.dumps(self.to_dict(), indent=1, allow_nan=False))


def compare(records: dict[str, Record], request: dict[str, Any]) -> Comparison:
    """The comparison of audits by the names to show them under.

    Raises :class:`InputError` unless they share suite, budget (before any extension), seeds, both tasks by their
    data, and base: other numbers do not compare.
    """
    if not records:
        raise InputError("there is nothing to compare: no audit was named.")
    first = next(iter(records.values()))
    for name, record in records.items():
        for what, of in _SHARED.items():
            if of(record) != of(first):
                raise InputError(f"{name} was audited {what}; audit it again as the others were.")
    return Comparison(
        locks=[_row(name, record) for name, record in records.items()],
        suite={key: first.suite[key] for key in _OF_THE_SUITE if key in first.suite},
        base=first.base,
        retain_task=first.retain_task,
        attack_task=first.attack_task,
        request=request,
    )


_SHARED = {
    "with another suite": lambda record: (record.suite["name"], record.suite["version"]),
    "with another budget": lambda record: record.suite["steps"],
    "under other seeds": lambda record: record.suite["seeds"],
    "by an attacker who knows other models": lambda record: [
        [model["fingerprint"] for model in (record.suite.get("siblings") or [])],
        (record.suite.get("public_base") or {}).get("fingerprint"),
    ],
    "with another retain task": lambda record: record.retain_task["digest"],
    "with another attack task": lambda record: record.attack_task["digest"],
    "against another base": lambda record: record.base["fingerprint"],
}
"""What two audits must share, by what is said of one that does not."""


def _counted(flags: list[str]) -> str:
    return f"{len(flags)} {'flag' if len(flags) == 1 else 'flags'}" if flags else "no flag"


def _strength(record: Record, card: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """What the parts before left is no base: a lock of the spectrum may raise what another had flattened."""
    last = card.get("parts", [card])[-1]
    k = last.get("config", {}).get("top_k")
    if "parts" not in card or last.get("unit") != SpectralLock.unit or not k or not record.spectra:
        return card.get("strength_base"), card.get("strength_locked")
    base, locked = (
        fmean(value for matrix in record.spectra for value in matrix[name][:k]) for name in ("base", "locked")
    )
    return base, locked


def _row(name: str, record: Record) -> Row:
    summary, card, intervals = record.summary, record.locked.get("card") or {}, record.summary["intervals"]
    same = (
        "utility_base", "utility_locked", "floor", "floor_by", "worth", "uplift", "uplift_uninformed", "excess",
        "slowdown", "slowdown_interval", "slowdown_examples", "slowdown_tflops", "strongest_attack", "price",
    )  # fmt: skip
    return Row(
        name=name,
        lock=card.get("lock"),
        config=card.get("config"),
        strength=_strength(record, card),
        unit=card.get("unit", "mean top σ"),
        uplift_informed=summary.get("uplift_informed"),
        budget=record.suite["budget"],
        utility_interval=intervals.get("utility_locked") or _of_before(record),
        # Records of before have no score of the model as it is released.
        best={target: summary.get(f"best_{target}") for target in TARGETS},
        best_interval={target: intervals.get(f"best_{target}") for target in TARGETS},
        uplift_interval=intervals["uplift"],
        excess_interval=intervals["excess"],
        flags=[flag.name for flag in record.flags],
        verdict=record.verdict,
        epochs_worth=card.get("epochs_worth"),
        **{key: summary[key] for key in same},
    )


def _of_before(record: Record) -> _Bounds:
    """Utility's interval where the record does not say it: those of before are all of accuracies."""
    if not is_proportion(record.retain_task["metric"]):
        return None
    return proportion(record.summary["utility_locked"], record.retain_task["test"])


def proportion(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion ``p`` seen on ``n`` examples.

    >>> proportion(0.5, 100)
    (0.40..., 0.59...)
    """
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half
