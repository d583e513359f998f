"""Outputs that are whole or not there, and runs that can be killed and resumed.

A command that takes ``--out DIR`` works in ``DIR.partial`` beside it and puts ``DIR`` in place with one
rename when everything is written. What a killed run leaves is ``DIR.partial``, which ``--resume`` picks up.
The current folder (``--out .``) is filled instead: to rename over it would leave the user's shell in a folder
that is no more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speclock.errors import InputError

_FILLING = ".filling"
"""What is whole and on its way into the current folder; a killed run leaves it for the next one to finish."""


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all (temporary file, flush to disk, rename)."""
    with readable_os_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; an output is as readable as any other file of the user's.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that becomes ``path`` when the block ends well.

    An empty folder at ``path`` is replaced (the current one is filled: see :func:`_fill`); one that holds
    something raises :class:`InputError`. When the block fails, by a full disk for one, nothing is left behind.
    """
    _finish(path)
    check_free(path)
    with readable_os_errors(path):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            os.chmod(temporary, 0o777 & ~_umask())
            if path == Path.cwd():
                _fill(path, temporary)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _fill(path: Path, finished: Path) -> None:
    """Move what ``finished`` holds into the empty folder ``path``.

    One rename puts all of it there under a hidden name, and further ones bring it into view; when the process
    is killed between these, the next run goes on with them.
    """
    os.replace(finished, path / _FILLING)
    _finish(path)


def _finish(path: Path) -> None:
    """Go on where a killed :func:`_fill` stopped; nothing to do anywhere else."""
    filling = path / _FILLING
    if not filling.is_dir():
        return
    with readable_os_errors(path):
        # A folder without config.json is no model, one without its record no result: these come last.
        for entry in sorted(filling.iterdir(), key=lambda e: (e.suffix == ".json", e.name == "config.json")):
            os.replace(entry, path / entry.name)
        filling.rmdir()


def _below_here(path: Path) -> Path:
    """Relative where it lies below the current folder: records name what is made in it, on whatever machine."""
    here = Path.cwd()
    return path.relative_to(here) if here in path.parents else path


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[Path]:
    """``folder``, which outlives a killed run, or a temporary one where nothing is to be kept."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def check_free(path: Path) -> None:
    """Raise :class:`InputError` unless ``path`` is missing or an empty folder."""
    with readable_os_errors(path):
        if path.is_dir():
            held = sorted(entry.name for entry in path.iterdir())
            if held:
                raise InputError(f"{path} already holds {_few(held)}. Choose another --out, or empty it.")
        elif path.exists():
            raise InputError(f"{path} is a file; --out names a folder.")


class Workspace:
    """``OUT.partial``: what a run has done so far, claimed by one process, bound to one request.

    ``request`` is what was asked for (JSON-able); the finished ``OUT`` holds it too, as ``request`` in the JSON
    file ``record``. A later run may go on with the folder only when its own request is equal, so a resumed
    result is the result of one command and not of two.
    """

    finished: dict[str, Any] | None = None
    """The record of ``OUT``, where a resumed run finds that nothing is left to do."""

    def __init__(self, out: Path, request: dict[str, Any], *, record: str, resume: bool = False) -> None:
        with readable_os_errors(out):
            self.out = _below_here(out.resolve())
        self.folder = self.out.parent / f"{self.out.name}.partial"
        self.request = json.loads(json.dumps(request))
        kept = self.folder / "request.json"
        self.resumed = kept.exists()
        _finish(out)
        with readable_os_errors(self.folder):
            done = out / record
            if resume and done.is_file():
                # Killed after the last rename, or not at all.
                self.finished = json.loads(done.read_text(encoding="utf-8"))
                _check_same(self.finished.get("request") or {}, self.request, out, resume)
            else:
                check_free(out)
                if kept.exists():
                    _check_same(json.loads(kept.read_text()), self.request, self.folder, resume)
                elif self.folder.exists() and any(entry.name != "claimed" for entry in self.folder.iterdir()):
                    raise InputError(
                        f"{self.folder} is in the way and is no run of speclock's. Move it away."
                    )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim()
            write_text(kept, json.dumps(self.request, indent=1))

    def _claim(self) -> None:
        import fcntl

        # Held until the process ends, however it ends; nothing stale can be left by kill -9.
        self._lock = (self.folder / "claimed").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(
                f"{self.folder}: another process is at work there. Wait for it to end."
            ) from None

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Bad input leaves nothing worth going on with, unless it showed late, or an earlier run had got further.
        if kind is not None and issubclass(kind, InputError) and not (self.resumed or self._holds_work()):
            self.close()
        elif kind is not None:
            self._lock.close()  # nobody is at work there any more

    def _holds_work(self) -> bool:
        files = {file.name for file in self.folder.rglob("*") if file.is_file()}
        return bool(files - {"request.json", "claimed"})

    def close(self) -> None:
        """Remove the folder: ``OUT`` is in place, or the run failed on bad input and left nothing to keep."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _check_same(kept: dict[str, Any], asked: dict[str, Any], folder: Path, resume: bool) -> None:
    if not resume:
        raise InputError(f"{folder} holds an unfinished run. Add --resume to go on with it, or delete it.")
    if differ := _difference(kept, asked):
        name, was, now = differ
        raise InputError(
            f"{folder} was begun with {name}={was!r}, and this run asks for {now!r}. "
            f"Ask for the same, or delete it to start anew."
        )


def _difference(kept: Any, asked: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The innermost place at which two requests first differ, and what each has there; what is not there is None.

    >>> _difference({"lock": "undo", "settings": [1, {"lr": 1}]}, {"lock": "undo", "settings": [1, {"lr": 2}]})
    ('settings.1.lr', 1, 2)
    """
    if isinstance(kept, list) and isinstance(asked, list) and len(kept) == len(asked):
        kept, asked = dict(enumerate(kept)), dict(enumerate(asked))
    if not (isinstance(kept, dict) and isinstance(asked, dict)):
        return None if kept == asked else (name, kept, asked)
    places = (
        _difference(kept.get(key), asked.get(key), f"{name}.{key}" if name else str(key))
        for key in {**kept, **asked}
    )
    return next(filter(None, places), None)


@contextlib.contextmanager
def readable_os_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line that names the path and the mend."""
    try:
        yield
    except OSError as error:
        mend = {
            errno.ENOSPC: "Free some disk space and run the command again.",
            errno.EDQUOT: "Free some of your disk quota and run the command again.",
            errno.EROFS: "The file system is read-only; choose an --out elsewhere.",
            errno.EACCES: "The folder is not writable; choose an --out elsewhere.",
            errno.EPERM: "The folder is not writable; choose an --out elsewhere.",
        }.get(error.errno or 0, "Choose an --out that can be written.")
        raise InputError(f"cannot write {path}: {error.strerror or error}. {mend}") from error


def _umask() -> int:
    # There is no way to read the mask without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
