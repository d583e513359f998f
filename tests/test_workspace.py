from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speclock.errors import InputError
from speclock.workspace import Workspace, new_folder

REQUEST = {"command": "lock", "steps": 3}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path) -> None:
    for name in ("config.json", "model.safetensors", "speclock.json"):
        (folder / name).write_text(name)
    (folder / "deep").mkdir()
    (folder / "deep" / "x.txt").write_text("x")


@pytest.mark.parametrize(
    ("out", "where"),
    [
        ("out", "out"),
        ("out/", "out"),
        ("./a/../out", "out"),
        ("../beside", "../beside"),
        (".", "."),
        ("./", "."),
        ("../here", "."),
    ],
)
def test_a_relative_out_is_the_folder_that_it_names(here: Path, out: str, where: str) -> None:
    with Workspace(Path(out), REQUEST, record="speclock.json") as work:
        with new_folder(Path(out)) as folder:
            write(folder)
        work.close()
    assert names(here / where) == ["config.json", "deep", "model.safetensors", "speclock.json"]
    assert (here / where / "deep" / "x.txt").read_text() == "x"
    assert set(names(here.parent)) | set(names(here)) <= {"here", "beside", "out", *names(here / where)}


def test_the_current_folder_is_filled_and_not_replaced(here: Path) -> None:
    before = here.stat().st_ino
    with new_folder(Path()) as folder:
        write(folder)
    assert here.stat().st_ino == before
    assert Path("config.json").read_text() == "config.json"


def test_a_block_that_fails_leaves_the_current_folder_empty(here: Path) -> None:
    def fail() -> None:
        with new_folder(Path()) as folder:
            write(folder)
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert names(here) == []
    assert names(here.parent) == ["here"]


def test_a_current_folder_that_holds_something_is_left_alone(here: Path) -> None:
    (here / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"already holds notes\.txt"):
        Workspace(Path(), REQUEST, record="speclock.json")
    assert names(here) == ["notes.txt"]
    assert names(here.parent) == ["here"]


def test_the_root_is_no_out() -> None:
    with pytest.raises(InputError, match=r"^/ already holds "):
        Workspace(Path("/"), REQUEST, record="speclock.json")


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link") as folder:
        write(folder)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").is_file()


KILLED = """
import os, signal
from pathlib import Path
from speclock import workspace
from speclock.workspace import Workspace, new_folder

work = Workspace(Path(), {request}, record="speclock.json")
replace, left = os.replace, {renames}

def killed(*arguments):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(*arguments)

with new_folder(Path()) as folder:
    for name in ("config.json", "model.safetensors", "speclock.json"):
        (folder / name).write_text('{{"request": {{"command": "lock", "steps": 3}}}}')
    os.replace = killed
"""


@pytest.mark.parametrize("renames", range(4))
def test_a_run_killed_while_it_fills_is_no_model_and_can_be_resumed(here: Path, renames: int) -> None:
    script = KILLED.format(request=REQUEST, renames=renames)
    killed = subprocess.run([sys.executable, "-c", script], cwd=here, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (here / "config.json").exists()
    assert renames == 0 or (here / ".filling" / "config.json").is_file()
    work = Workspace(Path(), REQUEST, record="speclock.json", resume=True)
    if renames:
        assert work.finished == {"request": REQUEST}
        assert names(here) == ["config.json", "model.safetensors", "speclock.json"]
    else:
        assert work.finished is None
        assert work.resumed
        assert names(here) == []
    work.close()


def test_a_run_in_the_current_folder_is_claimed_by_one_process(here: Path) -> None:
    work = Workspace(Path(), REQUEST, record="speclock.json")
    with pytest.raises(InputError, match=r"here\.partial"):
        Workspace(Path(os.pardir, "here"), REQUEST, record="speclock.json", resume=True)
    work.close()
    assert names(here.parent) == ["here"]


def test_a_run_below_the_current_folder_is_named_from_there(here: Path) -> None:
    """Cards name the model that they were made from, and say nothing of the machine."""
    with Workspace(here / "deep" / "out", REQUEST, record="speclock.json") as work:
        assert work.folder == Path("deep/out.partial")
        work.close()
