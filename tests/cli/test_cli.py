"""The command line: help without torch, one clear line for bad input, a chain of real processes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speclock import models, tasks
from speclock.audits.cost import cost
from speclock.audits.tune import Trial
from speclock.cli import COMMANDS, main
from speclock.models import Model
from speclock.recipe import TrainingRecipe
from speclock.tasks.base import Task
from speclock.training import train

OPTIONS = ["--optimizer", "adam", "--lr", "1e-3", "--steps", "24"]

PROCESSES = multiprocessing.get_context("forkserver")
"""Processes of their own, forked from one that has the libraries: to import those takes longer than what is tested."""
PROCESSES.set_forkserver_preload(
    ["speclock.audits.run", "speclock.models.zoo", "speclock.report.html", "sklearn.pipeline", "sklearn.svm"]
)

COMMAND_LINE = """
import os, sys, torch
from dataclasses import replace
from speclock.audits import classical, suite
from speclock.cli import entry_point

# That an audit comes to its end is seen with two families and a floor that is chosen once.
classical.HELD_OUT = 1
suite.QUICK = replace(suite.QUICK, families=suite.QUICK.families[:2])
torch.set_num_threads(1)  # tests of several processes on few cores should not spin at each other's barriers
for number, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
sys.argv = ["speclock", *arguments]
entry_point()
"""


def ended(code: str, **given: Any) -> int:
    """Exit status of a process that ran ``code`` with the names that are given; minus the signal that killed it."""
    process = PROCESSES.Process(target=exec, args=(code, given))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str, str]]:
    out, err = (tmp_path_factory.mktemp("streams") / name for name in ("out", "err"))

    def run(*arguments: Any) -> tuple[int, str, str]:
        status = ended(COMMAND_LINE, arguments=[str(part) for part in arguments], out=out, err=err)
        return status, out.read_text(), err.read_text()

    return run


def test_the_program_runs() -> None:
    """In a process that is started as a user's is; the others are forked from one that has imported all."""
    command = [sys.executable, "-m", "speclock", "inspect", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("speclock inspect: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def base_folder(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cnn-mlp that reads digits, as a user has it."""
    folder = tmp_path_factory.mktemp("cli") / "base"
    model = models.load("cnn-mlp", labels=digits.labels, device="cpu")
    train(model, digits, TrainingRecipe(optimizer="adam", lr=1e-3, steps=150, batch_size=32))
    models.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def locked_folder(base_folder: Path) -> Path:
    out = base_folder.parent / "locked"
    assert (
        main(
            ["lock", str(base_folder), "--task", "mnist@800/300", "--out", str(out), *OPTIONS, "--top-k", "1"]
        )
        == 0
    )
    return out


def test_help_costs_no_torch_import() -> None:
    probe = (
        "import sys; from speclock.cli import main\n"
        "for command in [[]] + [[name] for name in {commands}]: main([*command, '--help'])\n"
        "main(['ls', 'tasks']); main(['ls', 'models']); main(['ls', 'attacks'])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    code = probe.format(commands=list(COMMANDS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"Usage: speclock {name}" in done.stdout
    assert done.stdout.count("Example: speclock") >= len(COMMANDS), "every command's help has an example"


def test_options_stand_under_those_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "--help"]) == 0
    _, sections = capsys.readouterr().out.split("\n\nOptions:\n")
    options: list[str] = []
    found = {"Options": options}
    for line in sections.splitlines():
        if line and not line.startswith(" "):
            options = found[line.rstrip(":")] = []
        elif line.startswith("  -"):
            options.append(line.split()[0])
    assert {"--task", "--out", "--lock", "--resume"} <= set(found["Options"])
    assert {"--lr", "--seed"} <= set(found["Training"])
    assert {"--beta", "--bottleneck"} <= set(found["undo"])
    assert found["specdef"] == ["--alpha"]
    # What several locks have under one name is said of each.
    assert "reparameterise: What the raised matrices are multiplied by." in " ".join(sections.split())
    assert "--retain" in found["specdef, scheduled"]
    assert list(found)[-1] == "Reading"
    every = [option for options in found.values() for option in options]
    assert len(every) == len(set(every))


def test_ls_lists_what_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "models", "--json"]) == 0
    assert {"cnn-mlp", "resnet18", "minilm", "smollm2-135m-instruct"} <= set(
        json.loads(capsys.readouterr().out)
    )


def test_the_whole_chain_in_real_processes(tmp_path: Path, ran: Callable[..., tuple[int, str, str]]) -> None:
    base, locked, attacked, audit = (tmp_path / name for name in ("base", "locked", "attacked", "audit"))
    code, out, err = ran(
        "train", "cnn-mlp", "--task", "mnist@800/300", "--out", base, *OPTIONS, "--batch-size", 32
    )
    assert (code, err) == (0, "")
    assert "accuracy" in out
    code, out, err = ran(
        "lock", base, "--task", "mnist@800/300", "--out", locked, *OPTIONS, "--top-k", 1, "--json"
    )
    assert (code, err) == (0, "")
    card = json.loads(out)
    assert card == json.loads((locked / "speclock.json").read_text())
    assert card["strength_locked"] > card["strength_base"]
    code, out, _ = ran("inspect", locked, "--against", base, "--top-k", 3, "--json")
    matrices = json.loads(out)["matrices"]
    assert code == 0
    assert [len(row["sigma"]) for row in matrices] == [3] * 6
    assert {"name", "shape", "sigma", "frobenius", "stable_rank"} <= set(matrices[0])
    code, out, _ = ran(
        "attack", locked, "--task", "kmnist@300/200", "--steps", 8, "--lr", "1e-3,1e-4", "--out", attacked,
        "--dropout", "false", "--optimizer", "soap",
    )  # fmt: skip
    assert code == 0
    assert "soap (no dropout) at lr 1e-3" in out
    sweep = json.loads((attacked / "attack.json").read_text())
    assert len(sweep["runs"]) == 2
    assert sweep["best"]["best"] == max(run["best"] for run in sweep["runs"])
    assert f"{sweep['best']['test']:.1%} on the test split" in out
    code, out, err = ran(
        "audit", locked, "--base", base, "--retain-task", "mnist@800/300", "--attack-task", "kmnist@40/100",
        "--steps", 4, "--out", audit,
    )  # fmt: skip
    assert (code, err) == (0, "")
    record = json.loads((audit / "audit.json").read_text())
    assert record["verdict"] in out
    assert record["command"].startswith("speclock audit ")
    assert {run["target"] for run in record["runs"]} == {
        *("base", "scratch", "classical", "control", "locked")
    }
    assert (audit / "report.html").exists()
    code, out, _ = ran("report", audit, "--out", tmp_path / "again.html")
    assert code == 0
    assert (tmp_path / "again.html").read_bytes() == (audit / "report.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.html",
        "attacked",
        "audit",
        "base",
        "locked",
    ]


DIES = """
import os, signal, sys, torch
from dataclasses import replace
from speclock import training
from speclock.audits import classical, suite
from speclock.cli import main

torch.set_num_threads(1)
classical.HELD_OUT = 1  # what the floor is chosen by is cross-validated once
fit, left = training.fit, steps
# What a killed audit goes on with is the same for one family as for many.
suite.QUICK = replace(suite.QUICK, families=suite.QUICK.families[:1])

def fatal(*arguments, **settings):
    global left
    for step in fit(*arguments, **settings):
        yield step
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

training.fit = fatal
training.Checkpoint.due = lambda self: True
sys.exit(main(arguments))
"""
"""The command line in a process that kills itself after so many steps, whatever the machine's speed."""


@pytest.mark.parametrize(("command", "first", "second"), [("lock", 7, 9), ("audit", 30, 60)])
def test_kill_9_and_resume_give_the_same_result(
    command: str, first: int, second: int, base_folder: Path, locked_folder: Path, tmp_path: Path
) -> None:
    def arguments(out: Path) -> list[Any]:
        if command == "lock":
            return [
                "lock", base_folder, "--task", "mnist@800/300", "--out", out,
                "--optimizer", "adam", "--lr", "1e-3", "--steps", 24, "--top-k", 1,
            ]  # fmt: skip
        return [
            "audit", locked_folder, "--base", base_folder, "--retain-task", "mnist@800/300",
            "--attack-task", "kmnist@40/100", "--steps", 4, "--out", out,
        ]  # fmt: skip

    def result(out: Path) -> Any:
        if command == "lock":
            card = json.loads((out / "speclock.json").read_text())
            return [card[key] for key in ("fingerprint", "curve", "chosen_step", "utility_locked")]
        return json.loads((out / "audit.json").read_text())["summary"]

    def dies_after(steps: float, *arguments: Any) -> int:
        return ended(DIES, steps=steps, arguments=[str(part) for part in arguments])

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert dies_after(math.inf, *arguments(whole)) == 0
    partial = killed.with_name("killed.partial")
    for steps, resume in ((first, []), (second, ["--resume"])):
        assert dies_after(steps, *arguments(killed), *resume) == -signal.SIGKILL
        assert partial.exists()
        assert not killed.exists()
    assert main([str(part) for part in arguments(killed)]) == 2, "it asks for --resume"
    assert dies_after(math.inf, *arguments(killed), "--resume") == 0
    assert result(killed) == result(whole)
    assert main([str(part) for part in [*arguments(killed), "--resume"]]) == 0, "nothing is left to do"
    assert not partial.exists()


@pytest.mark.parametrize(
    ("command", "begun"),
    [("lock", "speclock.locks.base.Lock.__call__"), ("tune", "speclock.audits.tune.tune")],
)
def test_a_run_does_not_go_on_with_another_model_in_the_same_folder(
    command: str,
    begun: str,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    asked = [command, str(folder), "--task", "mnist@800/300", "--out", str(tmp_path / "out")]
    if command == "tune":
        asked += ["--attack-task", "kmnist@40/100", "--max-utility-drop", "0.01"]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(begun, killed)
    assert main(asked) != 0
    trained_on = models.load(str(folder))
    with torch.no_grad():
        next(trained_on.module.parameters()).mul_(1.01)
    shutil.rmtree(folder)
    models.save(trained_on, folder)
    capsys.readouterr()
    assert main([*asked, "--resume"]) == 2
    assert "was begun with base=" in capsys.readouterr().err


def test_tune_says_what_the_chosen_lock_costs_where_nothing_was_chosen(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best of many states keeps its utility on the validation split, and here not on the test split."""

    def found(base: Model, *_: Any, folder: Path, **__: Any) -> list[Trial]:
        worse = base.copy()
        with torch.no_grad():
            for parameter in worse.module.parameters():
                parameter.zero_()
        models.save(worse, folder / "locked")
        told: dict[str, Any] = {"drop": 0.0, "lock": "undo+specdef"}
        return [
            Trial(number=0, status="audited", uplift=0.1, idle=("specdef",), **told),
            Trial(number=1, status="pruned", uplift=1.0, reason="no state was stronger", **told),
        ]

    monkeypatch.setattr("speclock.audits.tune.tune", found)
    asked = ["tune", str(base_folder), "--task", "mnist@800/300", "--attack-task", "kmnist@40/100"]
    assert main([*asked, "--max-utility-drop", "0.01", "--trials", "2", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "* drop 0.0%, uplift 0.10, specdef did nothing: undo+specdef" in printed
    assert "no state was stronger: undo+specdef" in printed
    assert "more than was allowed" in printed
    record = json.loads((tmp_path / "out" / "tune.json").read_text())
    cost = record["cost"]["test split"]
    assert cost["score_base"] - cost["score_locked"] > 0.2
    assert cost["interval_change"][1] < -0.01


def test_tune_says_what_a_lock_of_a_language_model_costs(
    writer: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Say {i}: ", "completion": "ab" * (i % 3 + 1)} for i in range(60)]
    for name in ("retain", "wanted"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models.save(writer, tmp_path / "writer")

    def found(base: Model, *_: Any, folder: Path, **__: Any) -> list[Trial]:
        models.save(base, folder / "locked")
        return [Trial(number=0, status="audited", uplift=0.1, drop=0.0, lock="specdef")]

    monkeypatch.setattr("speclock.audits.tune.tune", found)
    asked = ["tune", tmp_path / "writer", "--task", tmp_path / "retain.jsonl", "--out", tmp_path / "out"]
    asked += ["--attack-task", tmp_path / "wanted.jsonl", "--max-utility-drop", "0.01"]
    assert main([str(word) for word in asked]) == 0
    assert "On the test split, by which nothing was chosen" in capsys.readouterr().out
    cost = json.loads((tmp_path / "out" / "tune.json").read_text())["cost"]["test split"]
    assert cost["perplexity_base"] == pytest.approx(cost["perplexity_locked"])


def test_lock_says_what_it_costs_a_language_model(
    writer: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Say {i}: ", "completion": "ab" * (i % 3 + 1)} for i in range(60)]
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, base = tasks.load(str(tmp_path / "retain.jsonl")), writer.copy()
    train(base, task, TrainingRecipe(optimizer="adamw", lr=1e-2, batch_size=8, steps=12))
    models.save(base, tmp_path / "base")
    asked = ["lock", tmp_path / "base", "--task", tmp_path / "retain.jsonl", "--out", tmp_path / "locked"]
    asked += ["--steps", 4, "--lr", 1e-2, "--alpha", 0.5, "--batch-size", 8, "--max-utility-drop", 1]
    assert main([str(word) for word in asked]) == 0
    said = capsys.readouterr().out
    found = re.search(
        r"[−+][\d.]+% of a byte's likelihood \(perplexity ([−+][\d.]+)%\) on the test split", said
    )
    assert found, said
    assert "guarded to 100% of a byte's likelihood" in said
    locked = models.load(tmp_path / "locked", kind="causal-lm")
    row = cost(base, locked, task)["test split"]
    change = 100 * (row["perplexity_locked"] / row["perplexity_base"] - 1)
    assert abs(change) > 1
    assert float(found[1].replace("−", "-")) == pytest.approx(change, abs=0.1)


def bad(tmp: Path, base: Path) -> dict[str, tuple[list[Any], str]]:
    """Each kind of bad input: what is typed, and what the one line must say."""
    lock = ["lock", base, "--out", tmp / "out", "--task"]
    (tmp / "held").mkdir()
    (tmp / "held" / "keep.txt").write_text("mine")
    (tmp / "rows.jsonl").write_text('{"text": "a", "lable": 0}\n')
    (tmp / "empty.jsonl").write_text("")
    (tmp / "one.csv").write_text("text,label\na,x\nb,x\n")
    truncated, nan, pickled = tmp / "truncated", tmp / "nan", tmp / "pickled"
    for folder in (truncated, nan, pickled):
        folder.mkdir()
        (folder / "config.json").write_text((base / "config.json").read_text())
    (truncated / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:5000])
    shutil.copytree(base, tmp / "copy")
    weights = load_file(base / "model.safetensors")
    weights["mlp.2.weight"][0, 0] = float("nan")
    save_file(weights, nan / "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    return {
        "missing model": (["lock", tmp / "nowhere", "--task", "mnist", "--out", tmp / "out"], "nowhere"),
        "unknown model": (["inspect", "minilmm"], "Did you mean 'minilm'"),
        "truncated": (["inspect", truncated], "model.safetensors"),
        "nan": (["inspect", nan], "mlp.2.weight has NaN"),
        "pickle": (["inspect", pickled], "pytorch_model.bin"),
        "unknown task": ([*lock, "mnits"], "Did you mean 'mnist'"),
        "unknown lock": ([*lock, "mnist", "--lock", "specdeff"], "Did you mean 'specdef'"),
        "unknown attack": (
            ["attack", base, "--task", "kmnist", "--attack", "clipp", "--out", tmp / "out"],
            "Did you mean 'clip'",
        ),
        "attack that does not fit": (
            ["attack", base, "--task", "kmnist@300/200", "--attack", "merge", "--out", tmp / "out"],
            "merge does not fit",
        ),
        "unknown wrapper": (["attack", base, "--task", "mnist+poisn=7", "--out", tmp / "out"], "Did you mean 'poison'"),
        "unknown optimizer": ([*lock, "mnist", "--optimizer", "adamm"], "Did you mean 'adam'"),
        "unknown suite": (
            ["audit", base, "--base", tmp / "copy", "--retain-task", "mnist", "--attack-task", "mnist",
             "--suite", "quik", "--out", tmp / "out"],
            "Did you mean 'quick'",
        ),
        "its own base": (
            ["audit", base, "--base", base, "--retain-task", "mnist", "--attack-task", "mnist", "--out", tmp / "out"],
            "is the LOCKED folder itself",
        ),
        "unknown option": ([*lock, "mnist", "--alhpa", "1"], "--alpha"),
        "misspelt column": ([*lock, tmp / "rows.jsonl"], 'line 1 has no "label"'),
        "empty data": ([*lock, tmp / "empty.jsonl"], "empty.jsonl"),
        "one class": ([*lock, tmp / "one.csv"], "one.csv"),
        "missing data": ([*lock, tmp / "none.csv"], "none.csv: no such file"),
        "labels that do not fit": ([*lock, "kmnist"], "do not fit the head"),
        "alpha": ([*lock, "mnist", "--alpha", "1.5"], r"alpha is 1.5; it must lie in [0, 1]"),
        "alpha is no number": ([*lock, "mnist", "--alpha", "half"], "'half' is not a number"),
        "alpha is nan": ([*lock, "mnist", "--alpha", "nan"], "is not finite"),
        "top-k": ([*lock, "mnist", "--top-k", "0"], "top_k is 0"),
        "option of another lock": ([*lock, "mnist", "--factor", "2"], "--factor is not an option of --lock specdef"),
        "held folder": (["lock", base, "--task", "mnist@800/300", "--out", tmp / "held"], "already holds keep.txt"),
        "read-only folder": (["lock", base, "--task", "mnist@800/300", "--out", "/proc/none/out"], "cannot write"),
        "no model": (["lock"], "Missing argument 'MODEL'"),
        "unknown command": (["lokc"], "Did you mean 'lock'"),
        "no record": (["report", tmp / "held"], "audit.json does not exist"),
    }  # fmt: skip


def test_bad_input_is_one_clear_line_and_leaves_nothing(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = bad(tmp_path, base_folder)
    before = sorted(path for path in tmp_path.rglob("*"))
    for name, (arguments, words) in cases.items():
        assert main([str(part) for part in arguments]) == 2, name
        out, err = capsys.readouterr()
        assert out == "", name
        assert err.count("\n") == 1, (name, err)
        assert err.startswith("speclock"), (name, err)
        assert words in err, (name, err)
        assert "Traceback" not in err, name
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "held" / "keep.txt").read_text() == "mine"


def test_a_full_disk_is_one_clear_line(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("speclock.models.checkpoints.save_model", full)
    out = tmp_path / "out"
    assert main(["lock", str(base_folder), "--task", "mnist@800/300", "--out", str(out), *OPTIONS]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "Free some disk space" in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_k_above_a_rank_warns_and_names_the_matrix(
    base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match=r"mlp\.6\.weight"):
        assert main(["inspect", str(base_folder), "--top-k", "12", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["matrices"]}
    assert len(rows["mlp.6.weight"]["sigma"]) == 10
    assert len(rows["mlp.0.weight"]["sigma"]) == 12


def test_curvature_prints_and_parses(
    base_folder: Path, locked_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["curvature", str(locked_folder), "--task", "mnist@800/300", "--samples", "8"]
    assert main([*asked, "--against", str(base_folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sigma_max"] == pytest.approx(
        max(abs(said[name]["value"]) for name in ("lambda_max", "lambda_min"))
    )
    assert said["lambda_max"]["residual"] <= 1e-2 * said["sigma_max"]
    assert said["largest_rate"]["sgd"] == pytest.approx(2 / said["settled_lambda_max"]["value"])
    assert said["against"]["fingerprint"] != said["fingerprint"]
    assert max(bound["value"] for bound in said["bounds"]) <= said["sigma_max"] * 1.001
    assert main(asked) == 0
    table = capsys.readouterr().out
    assert "σ_max(H)" in table
    assert "stable on a quadratic, Adam" in table


def test_reproduce_writes_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "figure1", "--scale", "smoke", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"figure1.json", "figure1.svg", "figure1.png"}
    assert "8 rows" in capsys.readouterr().out
    assert main(["reproduce", "figure1", "--scale", "smoke", "--out", str(tmp_path)]) == 2
    assert "figure1.json is the record of an earlier run" in capsys.readouterr().err
    assert main(["reproduce", "figur1", "--scale", "smoke", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'figure1'?" in capsys.readouterr().err


def test_the_demo_runs_its_stages_in_folders_of_their_own_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "--task mnist@100/60 --optimizer adam --lr 1e-3 --steps 1"
    stages = {"base": ("Training", f"train cnn-mlp {task}"), "again": ("Training on", f"train BASE {task}")}
    monkeypatch.setattr("speclock.cli.demo.STAGES", stages)
    asked = ["demo", "--out", str(tmp_path / "demo")]
    assert main(asked) == 0
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["again", "base"]
    assert main(asked) == 2
    assert "--resume" in capsys.readouterr().err
    written = (tmp_path / "demo/base/model.safetensors").stat().st_mtime_ns
    assert main([*asked, "--resume"]) == 0
    assert (tmp_path / "demo/base/model.safetensors").stat().st_mtime_ns == written, "what is finished stays"
