from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclock import tasks
from speclock.errors import InputError
from speclock.tasks.text import TextClassification

from .test_files import ROWS, write

LABEL = st.text("abcxyz.-", min_size=1, max_size=8)


@given(
    st.sampled_from(["mnist", "newsgroups", "data/x.jsonl", "./dir", "a-b.csv"]),
    st.lists(LABEL, max_size=3),
    st.lists(st.integers(1, 10**6), max_size=3),
)
def test_what_is_written_is_what_is_parsed(base: str, labels: list[str], sizes: list[int]) -> None:
    counts = "@" + "/".join(map(str, sizes)) if sizes else ""
    spec = base + (":" + ",".join(labels) if labels else "") + counts
    assert tasks.parse(spec) == (base, tuple(labels), *sizes, *[None] * (3 - len(sizes)))


def test_a_path_that_exists_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("odd:name@7.jsonl"), ROWS)
    assert tasks.parse("odd:name@7.jsonl") == ("odd:name@7.jsonl", (), None, None, None)
    assert tasks.parse("odd:name@7.jsonl@5") == ("odd:name@7.jsonl", (), 5, None, None)
    assert tasks.parse("odd:name@7.jsonl:yes,no@5") == ("odd:name@7.jsonl", ("yes", "no"), 5, None, None)
    assert tasks.parse(r"C:\data\x.jsonl") == (r"C:\data\x.jsonl", (), None, None, None)


@pytest.mark.parametrize(
    "row",
    [{"text": "a"}, {"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b", "label": True}],
)
def test_rows_for_a_language_model_are_told_their_columns(row: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r'language model have "completion" or "messages", and no "label"\.$'
    ):
        tasks.load(str(write(tmp_path / "corpus.jsonl", [row] * 4)))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("mnits", "unknown task 'mnits'. Did you mean 'mnist'? Known: mnist, fashion-mnist,"),
        (
            "mnist@many",
            "mnist@many: 'many' after @ is not a number of examples. Write for example mnist@640,",
        ),
        ("mnist@0", "mnist@0: '0' after @ is not a number of examples."),
        (
            "mnist:1,,2",
            "mnist:1,,2: a label is missing after the colon. Write for example mnist:LABEL,LABEL.",
        ),
        ("nowhere/x.jsonl", "nowhere/x.jsonl: no such file."),
        ("nowhere.csv", "nowhere.csv: no such file."),
    ],
)
def test_a_specification_that_means_nothing(spec: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        tasks.load(spec)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_file_with_labels_and_limit(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "label": ("no", "yes", "maybe", "maybe not")[i % 4]} for i in range(80)]
    path = write(tmp_path / "x.jsonl", rows)
    spec = f"{path}:maybe,yes@10"
    task = tasks.load(spec, tasks.Reading(max_length=9), seed=3)
    assert isinstance(task, TextClassification)
    assert (task.name, task.labels, task.max_length) == (spec, ("maybe", "yes"), 9)
    assert np.bincount(task.train.labels).tolist() == [5, 5]
    assert len(task.test) == 8
    np.testing.assert_array_equal(task.train.inputs, tasks.load(spec, seed=3).train.inputs)
    assert set(task.train.inputs) != set(tasks.load(spec, seed=4).train.inputs)
    assert list(task.test.inputs) == list(tasks.load(spec, seed=4).test.inputs)
    assert tasks.load(f"{path}:may,no").labels == ("maybe", "maybe not", "no")

    with pytest.raises(InputError, match=r"1 is less than one example for each of the 4 labels"):
        tasks.load(f"{path}@1")
    with pytest.raises(InputError, match=r"unknown label 'yess'\. Did you mean 'yes'\?"):
        tasks.load(f"{path}:yess,no")


def test_listing_tasks_costs_no_torch_import() -> None:
    code = (
        "import sys, speclock.tasks as t; print(len(t.TASKS.descriptions)); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(tasks.TASKS)
