from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from speclock.errors import InputError
from speclock.sources import packages
from speclock.sources.cache import digest
from speclock.sources.packages import (
    extract,
    fetch_debian,
    fetch_distilled,
    fetch_package,
    fetch_package_folder,
)

from .conftest import FILES, sha


def test_a_member_is_fetched_once_and_then_kept(index: Path, cache: Path) -> None:
    path = fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha"))
    assert path.read_bytes() == b"alpha"
    assert cache in path.parents
    (index / "toy-1.0-py3-none-any.whl").unlink()
    assert fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha")) == path
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["a.txt"]


def test_a_damaged_file_is_fetched_again(index: Path) -> None:
    path = fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha"))
    path.write_bytes(b"alp")
    assert fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha")).read_bytes() == b"alpha"


def test_a_folder_is_fetched_whole_and_repaired(index: Path, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pin = digest(tmp_path / "toy/folder")
    folder = fetch_package_folder("toy==1.0", "toy/folder", pin)
    assert digest(folder) == pin
    (folder / "b.txt").write_bytes(b"?")
    (folder / "extra.txt").write_bytes(b"?")
    fetch_package_folder("toy==1.0", "toy/folder", pin)
    assert sorted(p.name for p in folder.rglob("*.txt")) == ["b.txt", "c.txt"]
    assert digest(folder) == pin


def test_a_file_that_is_not_the_pinned_one_is_refused(index: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"^toy==1\.0: toy/a\.txt is not the pinned file"):
        fetch_package("toy==1.0", "toy/a.txt", sha(b"other"))
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_small_file_is_made_of_a_big_one_which_is_not_kept(index: Path, cache: Path) -> None:
    def shout(folder: Path) -> bytes:
        return (folder / "toy/a.txt").read_bytes().upper()

    path = fetch_distilled("toy==1.0", ["toy/a.txt"], shout, "shout.txt", sha(b"ALPHA"))
    assert path.read_bytes() == b"ALPHA"
    assert [p for p in cache.rglob("*") if p.is_file()] == [path]


SETUP = """
import pathlib
pathlib.Path({mark!r}).touch()
import setuptools
setuptools.setup(name="tale", version="1.0")
"""
BACKEND = """
import pathlib
pathlib.Path({mark!r}).touch()
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


@pytest.fixture
def tale(index: Path, tmp_path: Path) -> str:
    """A source archive that marks a file as soon as any of its code runs; its SHA-256."""
    files = {
        "setup.py": SETUP.format(mark=str(tmp_path / "mark")),
        "backend.py": BACKEND.format(mark=str(tmp_path / "mark")),
        "pyproject.toml": PROJECT,
        "PKG-INFO": "Metadata-Version: 2.1\nName: tale\nVersion: 1.0\n",
        "tale/a.txt": "once upon a time",
    }
    path = index / "tale-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"tale-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return digest(path)


def read(folder: Path) -> bytes:
    return (folder / "tale/a.txt").read_bytes()


def test_a_source_archive_is_read_and_none_of_its_code_runs(
    index: Path, tale: str, tmp_path: Path, cache: Path
) -> None:
    pin = sha(b"once upon a time")
    path = fetch_distilled("tale==1.0", ["tale/a.txt"], read, "a.txt", pin, archive=tale)
    assert path.read_text() == "once upon a time"
    assert [p for p in cache.rglob("*") if p.is_file()] == [path]
    assert not (tmp_path / "mark").exists()


def test_a_source_archive_found_through_an_index(
    index: Path, tale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "simple" / "tale" / "index.html"
    page.parent.mkdir(parents=True)
    links = [f'<a href="{file.as_uri()}#sha256={tale}">{file.name}</a>' for file in index.glob("tale*")]
    page.write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    pin = sha(b"once upon a time")
    path = fetch_distilled("tale==1.0", ["tale/a.txt"], read, "a.txt", pin, archive=tale)
    assert path.read_text() == "once upon a time"


def test_where_a_wheel_is_asked_for_a_source_archive_is_not_built(
    index: Path, tale: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pip could not fetch it"):
        fetch_package("tale==1.0", "tale/a.txt", sha(b"once upon a time"))
    assert not (tmp_path / "mark").exists()


def test_a_source_archive_that_is_not_the_pinned_one_is_not_opened(tale: str, cache: Path) -> None:
    with pytest.raises(InputError, match=r"^tale==1\.0: tale-1\.0\.tar\.gz is not the pinned archive"):
        fetch_distilled("tale==1.0", ["tale/a.txt"], read, "a.txt", sha(b"?"), archive=sha(b"other"))
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_source_archive_that_is_not_there_is_said_in_one_line(tale: str) -> None:
    with pytest.raises(InputError) as caught:
        fetch_distilled("tale==2.0", ["tale/a.txt"], read, "a.txt", sha(b"?"), archive=tale)
    assert str(caught.value) == ("tale==2.0: pip could not fetch it (No source archive found for tale==2.0).")


def test_what_pip_says_is_said_in_one_line(index: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch_package("toy==2.0", "toy/a.txt", sha(b"alpha"))
    assert str(caught.value) == (
        "toy==2.0: pip could not fetch it (No matching distribution found for toy==2.0)."
    )


FETCH = """
import sys, time
from speclock.sources.packages import fetch_package
time.sleep(max(0, float(sys.argv[1]) - time.time()))
sys.stdout.write(fetch_package("toy==1.0", "toy/a.txt", sys.argv[2]).read_text())
"""


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    command = [sys.executable, "-c", FETCH, str(time.time() + 2), sha(b"alpha")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["alpha", "alpha"]


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_the_file(index: Path, cache: Path) -> None:
    left = cache / "partial" / "left"
    (left / "staging").mkdir(parents=True)
    (left / "staging" / "a.txt").write_bytes(b"al")
    os.utime(left, (0, 0))
    assert fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha")).read_bytes() == b"alpha"
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPECLOCK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="Set SPECLOCK_CACHE to a folder of yours"):
        fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha"))


def test_an_archive_writes_nothing_outside_the_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as sdist:
        for name in ("evil-1/data/../../../out.txt", "evil-1/data/ok.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            sdist.addfile(entry, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("evil-1/data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        sdist.addfile(link)
    extract(tmp_path / "evil.tar.gz", ["data/"], tmp_path / "a" / "b")
    assert [p.name for p in tmp_path.rglob("*.txt")] == ["ok.txt"]


def test_a_member_that_an_archive_has_not_got(index: Path) -> None:
    with pytest.raises(InputError, match=r"has no toy/e\.txt"):
        fetch_package("toy==1.0", "toy/e.txt", sha(b""))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but what a test writes there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_debian_package_is_unpacked_into_the_cache(tools: Path, cache: Path) -> None:
    tool(tools / "apt-get", "open(sys.argv[2] + '_1_all.deb', 'w').write(sys.argv[1])")
    tool(
        tools / "dpkg-deb",
        "folder = sys.argv[3] + '/usr/share/datasets/toy-set'\nos.makedirs(folder)\n"
        "open(folder + '/x.gz', 'w').write('alpha')",
    )
    (path,) = fetch_debian("dataset-toy", {"toy-set/x.gz": sha(b"alpha")})
    assert path.read_bytes() == b"alpha"
    assert cache in path.parents


def test_without_apt_the_line_says_so(tools: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"^dataset-toy: apt-get is not installed on this machine\.$"):
        fetch_debian("dataset-toy", {"toy-set/x.gz": sha(b"alpha")})


def test_an_installed_debian_package_is_read_where_it_is(
    tools: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "DEBIAN_DATASETS", tmp_path / "datasets")
    (tmp_path / "datasets/toy-set").mkdir(parents=True)
    (tmp_path / "datasets/toy-set/x.gz").write_bytes(b"alpha")
    paths = fetch_debian("dataset-toy", {"toy-set/x.gz": sha(b"alpha")})
    assert paths == [tmp_path / "datasets/toy-set/x.gz"]
