"""A cache of the test's own, and a folder that pip takes its packages from."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

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
    return hashlib.sha256(content).hexdigest()
