"""Whether a folder is what its publisher released, and where it is not, whether it still carries the lock.

Two questions, since a copy that was rounded to bf16 has no file of the publisher's left and all of the lock. The first
is answered by digests. The second by two numbers, over the matrices that the lock changed:

* *σ kept*: how much of the rise of the top singular values is still there, log(σ/σ_base) / log(σ_locked/σ_base), of the
  matrices that it raised by a twentieth or more;
* *way back*: how far the weights have gone from the locked ones to the base's, <X−L, B−L> / ‖B−L‖², from sketches.

Neither says that training is as slow as it was: that is what an audit is for. A lock that is still in the weights may
have been paid for by whoever trained them; a rescaling between layers leaves the function and none of these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from speclock.errors import InputError
from speclock.numbers import percent
from speclock.release.files import Shipped
from speclock.release.manifest import NAME, Manifest, Measured, digests, matrices, read_manifest, sketch
from speclock.release.signature import is_signed
from speclock.spectra import singular_values

RAISED = 1.05
"""σ₁ over the base's from which a matrix counts among those that the lock raised."""
GONE, WEAKENED = 0.5, 0.1
"""Of a lock, what is lost of it when it is called gone, or weakened."""

State = Literal["intact", "carried", "weakened", "gone", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What a folder still is of the release that a manifest describes."""

    signed: bool | None
    """Whether the manifest is the publisher's; None where nobody asked."""
    lock: State
    """intact: its weight files are the publisher's; unknown: there is nothing to tell by."""
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    """Files by what became of them."""
    matrices: int = 0
    """Those that were compared."""
    absent: list[str] = field(default_factory=list)
    """Those of the manifest that the folder lacks, or has in another shape."""
    sigma_kept: float | None = None
    way_back: float | None = None
    moved: float | None = None
    """‖X−L‖ / ‖L‖, from sketches."""

    @property
    def holds(self) -> bool:
        """Whether all of it is as the publisher left it."""
        return self.signed is not False and self.lock == "intact" and not (self.changed or self.missing)

    def __str__(self) -> str:
        signature = {
            None: "The signature was not checked",
            True: "Signed",
            False: "NOT the publisher's manifest",
        }
        files = [
            f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for what, names in (
                ("changed", self.changed),
                ("missing", self.missing),
                ("further", self.further),
            )
            if names
        ]
        if self.lock == "intact":
            lock = "the weights are the publisher's, and with them the lock"
        else:
            told = [
                f"{percent(value)} {what}"
                for value, what in (
                    (self.sigma_kept, "of the rise of σ is there"),
                    (self.way_back, "of the way back to the base is covered"),
                    (self.moved, "of their norm the weights have moved"),
                )
                if value is not None
            ]
            if self.absent:
                told.append(f"{len(self.absent)} matrices are not there")
            says = {
                "carried": "other weights, which carry the lock",
                "weakened": "other weights, which carry a part of the lock",
                "gone": "the lock is gone",
                "unknown": "other weights, and nothing to tell by whether they carry the lock",
            }
            lock = f"{says[self.lock]} ({'; '.join(told)})" if told else says[self.lock]
        return f"{signature[self.signed]}; {lock}. Files: {'; '.join(files) or 'all as released'}."


def verify(folder: Path, public_key: Path | None = None, manifest: Path | None = None) -> Verdict:
    """Compare ``folder`` with the release that ``manifest`` describes, by default its own.

    Raises :class:`InputError` where there is no manifest or no model, and for a file that is no public key.
    """
    file = manifest or folder / NAME
    told = read_manifest(file)
    signed = None if public_key is None else is_signed(file, public_key)
    shipped, now = Shipped.at(folder), digests(folder)
    released = told["files"]
    changed = [name for name, sha256 in released.items() if name in now and now[name] != sha256]
    missing = [name for name in released if name not in now]
    further = [name for name in now if name not in released]
    verdict = Verdict(signed, "intact", changed, missing, further)
    loaded = {weights.relative_to(folder).as_posix() for weights in shipped.weights}
    if loaded <= set(released) - set(changed):
        return verdict
    pairs = list(_compared(told, shipped))
    if not pairs:
        raise InputError(
            f"{folder} shares no weight matrix with {told['name']}. Is it a copy of this release?"
        )
    absent = sorted(set(told["matrices"]) - {name for name, *_ in pairs})
    kept = _sigma_kept([(of, sigma) for _, of, sigma, _ in pairs])
    back, moved = _distances([(of, drawn) for _, of, _, drawn in pairs])
    return replace(
        verdict,
        lock=_state(kept, back, len(absent) / len(told["matrices"])),
        matrices=len(pairs),
        absent=absent,
        sigma_kept=kept,
        way_back=back,
        moved=moved,
    )


def _compared(told: Manifest, shipped: Shipped) -> Iterator[tuple[str, Measured, float, np.ndarray]]:
    """(name, what the manifest has, σ₁ now, sketch now) of every matrix that both have."""
    for name, W in matrices(shipped):
        of = told["matrices"].get(name)
        if of is not None and of["shape"] == list(W.shape):
            if not W.isfinite().all():
                raise InputError(
                    f"{shipped.path}: {name} has weights that are not finite. It is no working copy."
                )
            yield name, of, float(singular_values(W, 1)[0]), sketch(name, W)


def _sigma_kept(pairs: list[tuple[Measured, float]]) -> float | None:
    """The mean over the matrices that the lock raised; None where it raised none."""
    kept = [
        math.log(max(sigma, 1e-30) / of["sigma_base"][0]) / math.log(of["sigma"][0] / of["sigma_base"][0])
        for of, sigma in pairs
        if "sigma_base" in of and of["sigma"][0] > RAISED * of["sigma_base"][0] > 0
    ]
    return sum(kept) / len(kept) if kept else None


def _distances(pairs: list[tuple[Measured, np.ndarray]]) -> tuple[float | None, float | None]:
    """The way back to the base, and the distance moved over the locked weights' norm; None where no sketch tells."""
    along = lock = moved = norm = 0.0
    for of, now in pairs:
        locked = np.array(of["sketch"])
        if len(locked) != len(now):
            continue  # too small to have one, or not the number that this version draws
        moved, norm = moved + float(((now - locked) ** 2).sum()), norm + float((locked**2).sum())
        base: Mapping[str, list[float]] | None = of if "sketch_base" in of else None  # type: ignore[assignment]
        if base is not None and len(base["sketch_base"]) == len(now):
            step = np.array(base["sketch_base"]) - locked
            along, lock = along + float((now - locked) @ step), lock + float(step @ step)
    return (along / lock if lock else None), (math.sqrt(moved / norm) if norm else None)


def _state(kept: float | None, back: float | None, absent: float) -> State:
    """The worse of what the numbers say."""
    if kept is None and back is None:
        return "unknown"
    lost = max(absent, *(each for each in (None if kept is None else 1 - kept, back) if each is not None))
    return "gone" if lost > GONE else "weakened" if lost > WEAKENED else "carried"
