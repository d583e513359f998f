"""What the README and the docs say is so: its blocks run, its words are counted, its flags are those that there are."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from speclock.audits import classical, suite
from speclock.audits.flags import FLAGS
from speclock.models import Model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_readme_is_short() -> None:
    before = README.partition("## Develop")[0]
    assert len(re.findall(r"\S+", before)) <= 500


@pytest.fixture
def _few_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the docs show is that an audit runs; that each of its families does is tested where they are."""
    monkeypatch.setattr(suite, "QUICK", replace(suite.QUICK, families=suite.QUICK.families[:2]))
    monkeypatch.setattr(classical, "HELD_OUT", 1)


@pytest.mark.usefixtures("_few_families")
def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from speclock import models, tasks
    from speclock.recipe import TrainingRecipe
    from speclock.training import train

    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    digits = tasks.load("mnist:0,1,2,3,4@2000/300")
    base = models.load("cnn-mlp", labels=digits.labels)
    train(base, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=60, batch_size=32))
    # As it stands but for the budget: the same calls, on fewer examples and in fewer steps.
    code = blocks[0].replace("/1000", "/300").replace("attack=attack)", "attack=attack, steps=2)")
    assert code != blocks[0]
    exec(compile(code, "README.md", "exec"), {"model": base.module})
    assert "The lock costs" in capsys.readouterr().out


def test_the_readmes_commands_have_the_options_that_it_names() -> None:
    commands = re.findall(r"^speclock (\w+) ([^#`\n]*)", README.replace("\\\n", " "), flags=re.MULTILINE)
    assert [name for name, _ in commands] == ["train", "lock", "audit", "lock", "audit"]
    for name, rest in commands:
        command = importlib.import_module(f"speclock.cli.{name}").command
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


@pytest.mark.usefixtures("_few_families")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_short(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.main(steps=2)
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_examples_pass_mypy(tmp_path: Path) -> None:
    """A user's own file, checked against the installed package's types; torch leaves `backward` without any."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--allow-untyped-calls",
        "--cache-dir",
        str(tmp_path),
        *map(str, EXAMPLES),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_flag_is_in_the_docs_with_what_to_do() -> None:
    text = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", text, flags=re.MULTILINE))
    assert set(rows) == {flag.__name__ for flag in FLAGS}


def test_a_model_is_any_module(base: Model) -> None:
    from speclock import models, tasks

    digits = tasks.load("mnist@50/50")
    assert models.adopted(base, digits) is base
    wrapped = models.adopted(base.module, digits)
    assert (wrapped.labels, wrapped.modality) == (digits.labels, "image")
