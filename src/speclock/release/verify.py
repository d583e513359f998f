"""Whether a folder is what its publisher released and, where it is not, whether it still carries the lock.

Two questions, since a copy that was rounded to bf16 has no weight file of the publisher's left and all of the lock. The
first is answered by digests. The second, for whoever has the base, by two numbers over the weight matrices:

* *σ kept*: how much of the rise of σ₁ is still there, log(σ/σ_base) / log(σ_locked/σ_base), in the mean over the
  matrices in which the lock raised it by a twentieth or more;
* *way back*: how far the weights have gone from the released ones to the base's, <X−L, B−L> / ‖B−L‖², from sketches.

Of each matrix both count between none and all, lest one pay for the others. Neither is a defence against who wants to
be told that a file carries the lock, nor does it say that training is as slow as it was: that is what an audit is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from speclock.errors import InputError
from speclock.numbers import percent
from speclock.release.files import Shipped, is_described
from speclock.release.manifest import NAME, Manifest, Measured, digests, matrices, measured, parsed
from speclock.release.signature import is_signed

RAISED, MANY = 1.05, 0.2
"""σ₁ over the base's from which the lock raised it; and of all matrices, the share of which it must have raised for σ
kept to say something of the lock."""
GONE, WEAKENED = 0.5, 0.1
"""What is lost of a lock that is called gone, or weakened."""
FAR = 0.5
"""‖X−L‖ / ‖L‖ from which the weights are too far from the released ones to carry what these had."""
HARMLESS = frozenset({".md", ".html", ".pdf", ".png", ".jpg", ".svg"})
"""Endings of further files that no loader reads."""

State = Literal["intact", "carried", "weakened", "gone", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What a folder still is of the release that a manifest describes."""

    signed: bool | None
    """Whether the manifest is the publisher's; None where nobody asked."""
    lock: State
    """intact: its weights and their configuration are the manifest's; unknown: there is nothing to tell by."""
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    """Files by what became of them."""
    matrices: int = 0
    """Those that were compared."""
    absent: list[str] = field(default_factory=list)
    """Those of the manifest that the folder lacks, or has in another shape."""
    sigma_kept: float | None = None
    raised: int = 0
    """Matrices that σ kept is of."""
    way_back: float | None = None
    moved: float | None = None
    """‖X−L‖ / ‖L‖, from sketches."""
    problem: str | None = None
    """Why the weights could not be compared."""

    @property
    def holds(self) -> bool:
        """Whether all of it is as the publisher left it, with nothing beside it that could be loaded."""
        loadable = [name for name in self.further if PurePosixPath(name).suffix.lower() not in HARMLESS]
        return (
            self.signed is not False
            and self.lock == "intact"
            and not (self.changed or self.missing or loadable)
        )

    def __str__(self) -> str:
        if self.signed is False:
            return "NOT the publisher's manifest: by it nothing can be said of the folder."
        head = (
            "Signed"
            if self.signed
            else "The signature was not checked: what follows is by the manifest's word"
        )
        files = [
            f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for what, names in (
                ("changed", self.changed),
                ("missing", self.missing),
                ("further", self.further),
            )
            if names
        ]
        told = [
            f"{percent(value)} {what}"
            for value, what in (
                (self.sigma_kept, f"of the rise of σ₁ is there, in the {self.raised} matrices that have one"),
                (self.way_back, "of the way back to the base is covered"),
                (self.moved, "of their norm the weights have moved"),
            )
            if value is not None
        ]
        told += [f"{len(self.absent)} matrices are not there"] if self.absent else []
        told += [self.problem] if self.problem else []
        says = {
            "intact": "the weights are as released, and with them the lock",
            "carried": "other weights, which carry the lock",
            "weakened": "other weights, which carry a part of the lock",
            "gone": "the lock is gone",
            "unknown": "whether it carries the lock cannot be told",
        }[self.lock]
        lock = f"{says} ({'; '.join(told)})" if told else says
        return f"{head}; {lock}. Files: {'; '.join(files) or 'all as released'}."


def verify(
    folder: Path, public_key: Path | None = None, manifest: Path | None = None, base: Path | None = None
) -> Verdict:
    """Compare ``folder`` with the release that ``manifest`` describes, by default its own; with the base, say too how
    much of the lock is in other weights than the released ones.

    Raises :class:`InputError` where there is no folder or manifest, for a file that is no public key, and for a base
    that is not the manifest's.
    """
    file = manifest or folder / NAME
    told, content = parsed(file)
    signed = None if public_key is None else is_signed(content, file, public_key)
    now, released = digests(folder), told["files"]
    verdict = Verdict(
        signed,
        "unknown",
        changed=[name for name, sha256 in released.items() if name in now and now[name] != sha256],
        missing=[name for name in released if name not in now],
        further=[name for name in now if name not in released],
    )
    if signed is False:
        return verdict
    try:
        shipped = Shipped.at(folder)
        if {"config.json", *shipped.weights} <= set(released) - set(verdict.changed):
            return replace(verdict, lock="intact")
        compared = list(_compared(told, shipped))
    except InputError as error:
        return replace(verdict, problem=str(error))
    if not compared:
        return replace(verdict, problem="it shares no weight matrix with the release")
    return _judged(verdict, told, compared, {} if base is None else _measured_base(told, base))


class _Pair(NamedTuple):
    """A matrix as it was released, by the name that the manifest has for it, and as it is."""

    name: str
    released: Measured
    now: Measured


def _compared(told: Manifest, shipped: Shipped) -> Iterator[_Pair]:
    for found, W in matrices(shipped):
        # A model without its head, or as a part of another, has other prefixes.
        names = [
            n for n in told["matrices"] if n == found or n.endswith(f".{found}") or found.endswith(f".{n}")
        ]
        name = found if found in names else names[0] if len(names) == 1 else None
        if name is not None and told["matrices"][name]["shape"] == list(W.shape):
            if not W.isfinite().all():
                raise InputError(f"{name} has weights that are not finite")
            yield _Pair(name, told["matrices"][name], measured(name, W))


def _measured_base(told: Manifest, base: Path) -> dict[str, Measured]:
    if not is_described(told["base"], base):
        raise InputError(
            f"{base} is not the base that the manifest speaks of. Name that one, or leave --base out."
        )
    return {name: measured(name, W) for name, W in matrices(Shipped.at(base)) if name in told["matrices"]}


def _judged(verdict: Verdict, told: Manifest, pairs: list[_Pair], base: dict[str, Measured]) -> Verdict:
    """The verdict on weights other than the released ones."""
    moved = norm = 0.0
    kept: list[float] = []
    back: list[tuple[float, float]] = []
    for name, released, now in pairs:
        locked, here = np.array(released["sketch"]), np.array(now["sketch"])
        of = base.get(name)
        if of is not None and released["sigma"] > RAISED * of["sigma"] > 0:
            rise = math.log(released["sigma"] / of["sigma"])
            kept.append(_share(math.log(max(now["sigma"], 1e-30) / of["sigma"]) / rise))
        if len(locked) != len(here):
            continue  # too small to have one, or not as many as this version draws
        moved, norm = moved + _square(here - locked), norm + _square(locked)
        if of is not None and len(of["sketch"]) == len(here):
            step = np.array(of["sketch"]) - locked
            if length := _square(step):
                back.append((_share(float((here - locked) @ step) / length), length))
    absent = sorted(set(told["matrices"]) - {pair.name for pair in pairs})
    distance = math.sqrt(moved / norm) if norm else None
    total = sum(length for _, length in back)
    way_back = sum(share * length for share, length in back) / total if total else None
    sigma_kept = (
        sum(kept) / len(kept) if kept and (len(kept) >= MANY * len(pairs) or way_back is None) else None
    )
    return replace(
        verdict,
        lock=_state(sigma_kept, way_back, distance, len(absent) / len(told["matrices"])),
        matrices=len(pairs),
        absent=absent,
        sigma_kept=sigma_kept,
        raised=len(kept),
        way_back=way_back,
        moved=distance,
    )


def _state(kept: float | None, back: float | None, moved: float | None, absent: float) -> State:
    """The worse of what the numbers say; what is not there says neither."""
    lost = max([0.0, *(each for each in (None if kept is None else 1 - kept, back) if each is not None)])
    if lost > GONE:
        return "gone"
    if (kept is None and back is None) or absent > WEAKENED or (moved or 0.0) > FAR:
        return "unknown"
    return "weakened" if lost > WEAKENED else "carried"


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _square(x: Float[np.ndarray, " b"]) -> float:
    return float(x @ x)
